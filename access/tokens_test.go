package access

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// after has t see the time d later.
func (t *Tokens) after(d time.Duration) {
	now := t.now()
	t.now = func() time.Time { return now.Add(d) }
}

func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "tokens.json")
	if tokens, err := List(file); len(tokens) > 0 || err != nil {
		t.Errorf("no file: got %v, %v", tokens, err)
	}
	want := Token{Name: "ci", Rights: Read | Write, Match: []string{"a*"}, MaxUploads: 2, MaxNAR: 3, Rate: 4, Expires: time.Unix(1e9, 0).UTC()}
	text, err := Create(file, &want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := List(file)
	if err != nil || len(got) != 1 || !slices.Equal(got[0].Match, want.Match) || got[0].Expires != want.Expires || got[0].Hash != want.Hash || got[0].Rate != 4 {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("got %v (%v), want mode 0600", info, err)
	}
	_, s, _ := parseToken(text)
	if b, err := os.ReadFile(file); err != nil || strings.Contains(string(b), strings.TrimPrefix(text, tokenPrefix+want.ID)) || strings.Contains(string(b), string(s[:])) {
		t.Errorf("the file has the secret: %s (%v)", b, err)
	}
	if _, err := Create(file, &Token{Name: "ci", Rights: Read}); !errors.Is(err, ErrExists) {
		t.Errorf("second token of a name: got %v, want %v", err, ErrExists)
	}
	for _, bad := range []Token{
		{Rights: Read}, {Name: "a b", Rights: Read}, {Name: "x"}, {Name: "x", Rights: Read, Match: []string{"["}},
		{Name: "x", Rights: Read, MaxNAR: -1}, {Name: strings.Repeat("x", 65), Rights: Read},
	} {
		if _, err := Create(file, &bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if _, err := Revoke(file, "other"); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoke: got %v, want %v", err, ErrNoToken)
	}
	if revoked, err := Revoke(file, want.ID); err != nil || revoked.Name != "ci" {
		t.Errorf("revoke: got %+v, %v", revoked, err)
	}
	if tokens, err := List(file); len(tokens) > 0 || err != nil {
		t.Errorf("after revoking: got %v, %v", tokens, err)
	}
}

// TestFileConcurrent has many processes, as it were, change a file at once.
func TestFileConcurrent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.json")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			name := string(rune('a' + i))
			if _, err := Create(file, &Token{Name: name, Rights: Read}); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if _, err := Revoke(file, name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if tokens, err := List(file); len(tokens) != 10 || err != nil {
		t.Errorf("got %d tokens (%v), want 10", len(tokens), err)
	}
}

func TestBadFile(t *testing.T) {
	hash := strings.Repeat("00", 32)
	for name, text := range map[string]string{
		"empty":          "",
		"no JSON":        "x",
		"cut short":      `{"version":1,"tokens":[`,
		"newer":          `{"version":2,"tokens":[]}`,
		"something else": `{"version":1,"tokens":[],"x":1}`,
		"unknown limit":  `{"version":1,"tokens":[{"id":"00000000","name":"x","rights":"read","created":"2026-01-01T00:00:00Z","sha256":"` + hash + `","only_mondays":true}]}`,
		"unknown right":  `{"version":1,"tokens":[{"id":"00000000","name":"x","rights":"fly","created":"2026-01-01T00:00:00Z","sha256":"` + hash + `"}]}`,
		"short hash":     `{"version":1,"tokens":[{"id":"00000000","name":"x","rights":"read","created":"2026-01-01T00:00:00Z","sha256":"00"}]}`,
		"two files":      `{"version":1,"tokens":[]}{"version":1,"tokens":[]}`,
	} {
		file := filepath.Join(t.TempDir(), "tokens.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if tokens, err := Open(file, discard); err == nil {
			t.Errorf("%s: got %v", name, tokens)
		}
		if _, err := Create(file, &Token{Name: "y", Rights: Read}); err == nil {
			t.Errorf("%s: a token was added", name)
		}
	}
}

// TestTokensChange changes the file below a running server.
func TestTokensChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.json")
	var log strings.Builder
	tokens, err := Open(file, logTo(&log))
	if err != nil {
		t.Fatal(err)
	}
	known := func(text string) bool {
		tokens.after(2 * time.Second)
		id, _ := tokens.identify(text)
		return id != nil
	}
	first := create(t, file, Token{Name: "first", Rights: Read, MaxUploads: 1, Expires: tokens.now().Add(time.Hour)})
	if id, _ := tokens.identify(first); id != nil {
		t.Error("the file is read at each request")
	}
	if !known(first) {
		t.Error("a new token is not known")
	}
	before, _ := tokens.identify(first)
	second := create(t, file, Token{Name: "second", Rights: Read})
	if !known(first) || !known(second) {
		t.Error("a second token is not known")
	}
	if after, _ := tokens.identify(first); after.Limits != before.Limits {
		t.Error("limits are forgotten when the file is read")
	}
	if _, err := Revoke(file, "second"); err != nil {
		t.Fatal(err)
	}
	if known(second) || !known(first) {
		t.Error("a revoked token is known, or another is not")
	}
	for _, breakFile := range []func() error{
		func() error { return os.WriteFile(file, []byte("{"), 0o600) },
		func() error { return os.Remove(file) },
	} {
		if err := breakFile(); err != nil {
			t.Fatal(err)
		}
		log.Reset()
		tokens.complain.Interval = 1
		if !known(first) || known(second) {
			t.Error("a file that cannot be read changes what is known")
		}
		if !strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("got log %q", &log)
		}
	}
	third := create(t, file, Token{Name: "third", Rights: Read, Expires: tokens.now().Add(time.Hour)})
	if known(first) || !known(third) {
		t.Error("the file is not read when it is there again")
	}
	tokens.after(2 * time.Hour)
	if known(third) {
		t.Error("an expired token is known")
	}
}
