package access

import (
	"io"
	"log/slog"
	"strings"
	"testing"
)

var discard = slog.New(slog.DiscardHandler)

func TestTokenText(t *testing.T) {
	var token Token
	text := token.newSecret()
	id, s, ok := parseToken(text)
	if !ok || id != token.ID || !token.Hash.is(s) || formatToken(id, s) != text {
		t.Errorf("%q: got ID %q, %v", text, id, ok)
	}
	s[31] ^= 1
	if token.Hash.is(s) {
		t.Error("another secret is taken")
	}
	for _, bad := range []string{
		"", "dedupd_", text[:len(text)-1], text + "0", strings.ToUpper(text), " " + text, strings.Replace(text, "_", "-", 2),
		text[:len(text)-52] + "z" + text[len(text)-51:], // excess bits
	} {
		if _, _, ok := parseToken(bad); ok {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	var token Token
	f.Add(token.newSecret())
	f.Add("dedupd_00000000_" + strings.Repeat("0", 52))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if id, s, ok := parseToken(text); ok && formatToken(id, s) != text {
			t.Errorf("%q is taken for %q", text, formatToken(id, s))
		}
	})
}

func FuzzParseTokens(f *testing.F) {
	f.Add([]byte(`{"version":1,"tokens":[{"id":"00000000","name":"ci","rights":"read,write","match":["a*"],"created":"2026-01-01T00:00:00Z","sha256":"` + strings.Repeat("00", 32) + `"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		tokens, err := parseTokens(text)
		if err != nil {
			return
		}
		for _, token := range tokens {
			if token.check() != nil || !isID(token.ID) {
				t.Errorf("%+v is taken", token)
			}
		}
	})
}

func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
