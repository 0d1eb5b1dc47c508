package nar_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/mikelolasagasti/xz"

	"github.com/dedupd/dedupd/nar"
)

// missing skips the test for want of a part, except in CI, where all are there.
func missing(t *testing.T, part string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", part)
	}
	t.Skipf("%s is missing", part)
}

// nix runs a program of Nix, without its configuration, and returns its output.
func nix(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		missing(t, program)
	}
	cmd := exec.Command(path, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+home, "NIX_CONF_DIR="+home,
		"NIX_CONFIG=experimental-features = nix-command", "NIX_STORE_DIR="+home, "NIX_STATE_DIR="+home)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	return out
}

// restore makes t's files at root.
func (t tree) restore(tb testing.TB, root string) {
	tb.Helper()
	for _, f := range t {
		path := root
		if f.Path != "" {
			path += "/" + f.Path
		}
		var err error
		switch f.Type {
		case nar.Directory:
			err = os.Mkdir(path, 0o755)
		case nar.Symlink:
			err = os.Symlink(f.Target, path)
		case nar.Regular:
			mode := fs.FileMode(0o644)
			if f.Executable {
				mode = 0o755
			}
			err = os.WriteFile(path, []byte(f.contents), mode)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// TestNixDump compares with what Nix makes of the same files.
func TestNixDump(t *testing.T) {
	trees := []tree{varied, listed, {regular("", "")}, {executable("", "x")}, {symlink("", "x")}, {directory("")}}
	rng := newRand(t)
	for range 10 {
		trees = append(trees, randomTree(rng))
	}
	for i, tree := range trees {
		root := filepath.Join(t.TempDir(), "root")
		tree.restore(t, root)
		want := nix(t, "nix-store", "--dump", root)
		if got := tree.bytes(t); !bytes.Equal(got, want) {
			t.Errorf("tree %d: %d bytes differ from nix-store --dump's %d", i, len(got), len(want))
		}
	}
}

// TestNixRestore has Nix read what Writer wrote, as deep as all versions allow.
func TestNixRestore(t *testing.T) {
	tree := tree{directory("")}
	for path := "d"; len(tree) < nar.MaxDepth; path += "/d" {
		tree = append(tree, directory(path))
	}
	file := filepath.Join(t.TempDir(), "nar")
	if err := os.WriteFile(file, tree.bytes(t), 0o644); err != nil {
		t.Fatal(err)
	}
	nix(t, "nix", "nar", "ls", "-R", file, "/")
}

func TestNixListing(t *testing.T) {
	data := listed.bytes(t)
	file := filepath.Join(t.TempDir(), "nar")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	// Nix 2.8 has neither the outer object nor "executable": false.
	var want, got any
	if err := json.Unmarshal(nix(t, "nix", "nar", "ls", "--json", "-R", file, "/"), &want); err != nil {
		t.Fatal(err)
	}
	listing, err := nar.List(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(listing)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	got = got.(map[string]any)["root"]
	dropNotExecutable(got)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func dropNotExecutable(node any) {
	n := node.(map[string]any)
	if n["executable"] == false {
		delete(n, "executable")
	}
	if entries, ok := n["entries"].(map[string]any); ok {
		for _, e := range entries {
			dropNotExecutable(e)
		}
	}
}

// TestRealNARs reads every NAR of two real caches and writes it again.
func TestRealNARs(t *testing.T) {
	files, _ := filepath.Glob("../../shared/corpus/real/*/nar/*.nar.xz")
	if len(files) == 0 {
		missing(t, "../../shared/corpus/real")
	}
	if testing.Short() {
		files = files[:4]
	}
	var total int64
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := rewrite(f)
		f.Close()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		total += n
	}
	t.Logf("%d NARs, %d bytes", len(files), total)
}

// rewrite reads the xz-compressed NAR src, writes it again, and compares.
func rewrite(src io.Reader) (int64, error) {
	decoder, err := xz.NewReader(src, 0)
	if err != nil {
		return 0, err
	}
	in, out := sha256.New(), sha256.New()
	r, w := nar.NewReader(io.TeeReader(decoder, in)), nar.NewWriter(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		if err := w.WriteHeader(h); err != nil {
			return 0, err
		}
		if _, err := io.Copy(w, r); err != nil {
			return 0, err
		}
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	if !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		return 0, errors.New("written again, it differs")
	}
	return r.Offset(), nil
}
