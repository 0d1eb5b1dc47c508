package access

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoToken says that there is no token of an ID or name.
	ErrNoToken = errors.New("there is no such token")
	// ErrExists says that there is another token of a name.
	ErrExists = errors.New("there is a token of this name already; revoke it first, or choose another name")
)

// A tokenFile is what a token file holds, as JSON.
type tokenFile struct {
	Version int     `json:"version"`
	Tokens  []Token `json:"tokens"`
}

const (
	fileVersion = 1
	maxFile     = 16 << 20 // bytes of a token file
)

// List returns the tokens in a file, oldest first; none if there is no such file.
func List(file string) ([]Token, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	defer f.Close()
	return readTokens(f)
}

func readTokens(f *os.File) ([]Token, error) {
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("read tokens: %s is larger than %d bytes", f.Name(), maxFile)
	}
	tokens, err := parseTokens(text)
	if err != nil {
		return nil, fmt.Errorf("read tokens: %s: %w", f.Name(), err)
	}
	return tokens, nil
}

// parseTokens parses a token file. What it does not know is an error: it could be a
// limit, and nobody's rights may grow because a limit was not understood.
func parseTokens(text []byte) ([]Token, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var file tokenFile
	if err := d.Decode(&file); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows the tokens")
	}
	if file.Version != fileVersion {
		return nil, fmt.Errorf("version is %d, not %d", file.Version, fileVersion)
	}
	ids := make(map[string]bool)
	for i := range file.Tokens {
		t := &file.Tokens[i]
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("token %q: %w", t.ID, err)
		}
		if !isID(t.ID) || ids[t.ID] {
			return nil, fmt.Errorf("ID %q is malformed, or there twice", t.ID)
		}
		ids[t.ID] = true
	}
	return file.Tokens, nil
}

// Create adds a token to a file, which is made if it is not there. It sets ID, Created
// and Hash of t, and returns the text of the token, which nobody can find out again.
func Create(file string, t *Token) (text string, err error) {
	if err := t.check(); err != nil {
		return "", fmt.Errorf("create token: %w", err)
	}
	t.Created = time.Now().UTC().Truncate(time.Second)
	err = update(file, func(tokens []Token) ([]Token, error) {
		for text = ""; text == "" || slices.ContainsFunc(tokens, func(o Token) bool { return o.ID == t.ID || o.Name == t.ID }); {
			text = t.newSecret()
		}
		if slices.ContainsFunc(tokens, func(o Token) bool { return o.Name == t.Name || o.ID == t.Name }) {
			return nil, fmt.Errorf("%w: %s", ErrExists, t.Name)
		}
		return append(tokens, *t), nil
	})
	if err != nil {
		return "", fmt.Errorf("create token: %w", err)
	}
	return text, nil
}

// Revoke removes the token with an ID or a name from a file, and returns it.
func Revoke(file, idOrName string) (revoked Token, err error) {
	err = update(file, func(tokens []Token) ([]Token, error) {
		i := slices.IndexFunc(tokens, func(t Token) bool { return t.ID == idOrName || t.Name == idOrName })
		if i < 0 {
			return nil, fmt.Errorf("%w: %q", ErrNoToken, idOrName)
		}
		revoked = tokens[i]
		return slices.Delete(tokens, i, i+1), nil
	})
	if err != nil {
		return Token{}, fmt.Errorf("revoke token: %w", err)
	}
	return revoked, nil
}

// update replaces the tokens in a file by what change makes of them, one process at a
// time. When it returns nil the new file is on disk; else the old one is as it was, or
// the directory could not be synced.
func update(file string, change func([]Token) ([]Token, error)) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	// The directory is locked: the file itself is replaced, and one more would belong to
	// whoever came first.
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close() // ends the lock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	tokens, err := List(file)
	if err != nil {
		return err
	}
	if tokens, err = change(tokens); err != nil {
		return err
	}
	text, err := json.MarshalIndent(tokenFile{fileVersion, tokens}, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(file, append(text, '\n')); err != nil {
		return err
	}
	return dir.Sync()
}

// replaceFile writes a file of mode 0600, whole or not at all. The caller syncs its
// directory. It belongs to whom the old
// one belonged to, or its directory: "sudo dedupd token create" must not make a file
// that the server cannot read.
func replaceFile(file string, text []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".tokens-*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	var owner unix.Stat_t
	if err = unix.Stat(file, &owner); err != nil {
		err = unix.Stat(filepath.Dir(file), &owner)
	}
	if err == nil && os.Geteuid() == 0 {
		err = tmp.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err == nil {
		_, err = tmp.Write(text)
	}
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
