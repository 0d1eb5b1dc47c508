package access

import (
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Tokens are the tokens of a file, of which changes are noticed. They are for use by
// several goroutines.
type Tokens struct {
	file string
	log  *slog.Logger
	now  func() time.Time

	known atomic.Pointer[map[string]*known] // by ID; replaced as a whole
	next  atomic.Int64                      // when the file is looked at again, in Unix nanoseconds
	busy  atomic.Bool                       // held by who looks at it, and owns what follows

	seen     fs.FileInfo // of the file that known is from; nil if there was none
	complain rate.Sometimes
}

// A known is a token, and who its bearer is.
type known struct {
	Token
	identity Identity
}

const (
	lookInterval     = time.Second // between looks at the file
	complainInterval = time.Minute // between complaints that it cannot be read
)

// Open reads the tokens in a file. That there is none means that there are no tokens;
// that it cannot be read is an error. Later it is not, since the server runs: then the
// tokens stay what they were, and log says so again and again. A change counts
// after a second.
func Open(file string, log *slog.Logger) (*Tokens, error) {
	t := &Tokens{file: file, log: log, now: time.Now, complain: rate.Sometimes{Interval: complainInterval}}
	t.known.Store(&map[string]*known{})
	t.next.Store(t.now().Add(lookInterval).UnixNano())
	return t, t.read()
}

// look reads the file again if it may have changed.
func (t *Tokens) look() {
	if t.now().UnixNano() < t.next.Load() || !t.busy.CompareAndSwap(false, true) {
		return
	}
	defer t.busy.Store(false)
	t.next.Store(t.now().Add(lookInterval).UnixNano())
	info, err := os.Stat(t.file)
	if err == nil && t.seen != nil && os.SameFile(info, t.seen) && info.ModTime().Equal(t.seen.ModTime()) && info.Size() == t.seen.Size() {
		return
	}
	if err == nil || t.seen != nil {
		err = t.read()
	} else if os.IsNotExist(err) {
		return // as before
	}
	if err != nil {
		t.complain.Do(func() {
			t.log.Error("the token file cannot be read: no token is added or revoked until it can", "tokens", len(*t.known.Load()), "err", err)
		})
	}
}

// read reads the file. If it fails, the next look tries again.
func (t *Tokens) read() error {
	f, err := os.Open(t.file)
	if os.IsNotExist(err) && t.seen == nil {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	list, err := readTokens(f)
	if err != nil {
		return err
	}
	old := *t.known.Load()
	tokens := make(map[string]*known, len(list))
	for _, token := range list {
		k := &known{Token: token}
		k.identity = Identity{Name: "token:" + token.Name, Rights: token.Rights, Match: token.Match, MaxNAR: token.MaxNAR}
		if o := old[token.ID]; o != nil && o.MaxUploads == token.MaxUploads && o.Rate == token.Rate {
			k.identity.Limits = o.identity.Limits // of which requests may hold a part
		} else {
			k.identity.Limits = newLimits(token.MaxUploads, token.Rate)
		}
		tokens[token.ID] = k
	}
	if t.seen != nil || len(list) > 0 {
		t.log.Info("tokens were read", "file", t.file, "tokens", len(list))
	}
	t.seen = info
	t.known.Store(&tokens)
	return nil
}

// Count returns the number of tokens, expired ones too.
func (t *Tokens) Count() int {
	if t == nil {
		return 0
	}
	t.look()
	return len(*t.known.Load())
}

// identify returns whose token text is. If it returns nil, why says why, for the log.
func (t *Tokens) identify(text string) (id *Identity, why string) {
	if t == nil {
		return nil, "there are no tokens"
	}
	t.look()
	tokenID, s, ok := parseToken(text)
	if !ok {
		return nil, "not a token"
	}
	k := (*t.known.Load())[tokenID]
	if k == nil {
		Hash{}.is(s) // takes as long as a secret that is wrong
		return nil, "no token " + tokenID
	}
	switch {
	case !k.Hash.is(s):
		return nil, "wrong secret of token " + k.Name
	case k.Expired(t.now()):
		return nil, "token " + k.Name + " has expired"
	}
	return &k.identity, ""
}
