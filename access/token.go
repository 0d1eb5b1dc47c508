package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/dedupd/dedupd/narinfo"
)

// The text of a token is
//
//	dedupd_<ID: 8 nix32 characters>_<secret: 52 nix32 characters, 32 random bytes>
//
// It is one word for those who copy it, and has a prefix for those who look for secrets
// where none should be. The ID is public.
const (
	tokenPrefix = "dedupd_"
	idSize      = 5  // bytes
	secretSize  = 32 // bytes
)

// A Secret is what a token proves that its bearer knows.
type secret [secretSize]byte

// formatToken returns the text of a token.
func formatToken(id string, s secret) string {
	return tokenPrefix + id + "_" + narinfo.EncodeNix32(s[:])
}

// parseToken is the reverse of formatToken.
func parseToken(text string) (id string, s secret, ok bool) {
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok || len(rest) != narinfo.Nix32Len(idSize)+1+narinfo.Nix32Len(secretSize) {
		return "", s, false
	}
	id, digits, _ := strings.Cut(rest, "_")
	b, err := narinfo.DecodeNix32(digits)
	if err != nil || len(b) != secretSize || !isID(id) {
		return "", s, false
	}
	return id, secret(b), true
}

func isID(s string) bool {
	b, err := narinfo.DecodeNix32(s)
	return err == nil && len(b) == idSize
}

// A Token is what is known of a token: not its secret.
type Token struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Rights Rights `json:"rights"`
	// Match, MaxUploads, MaxNAR and Rate limit the rights; zero values do not.
	Match      []string `json:"match,omitempty"`       // see Identity
	MaxUploads int      `json:"max_uploads,omitempty"` // NARs at a time
	MaxNAR     int64    `json:"max_nar,omitempty"`     // bytes
	Rate       int64    `json:"rate,omitempty"`        // bytes per second of all its uploads

	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // never if zero
	Hash    Hash      `json:"sha256"`
}

// A Hash is the SHA-256 of a secret. A slow hash, as passwords need it, is of no use
// here: there is nothing to guess about 32 random bytes.
type Hash [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(h) {
		return errors.New("not a SHA-256")
	}
	*h = Hash(b)
	return nil
}

// is says whether h is the hash of s, in a time that does not depend on how much of it
// is right.
func (h Hash) is(s secret) bool {
	sum := sha256.Sum256(s[:])
	return subtle.ConstantTimeCompare(sum[:], h[:]) == 1
}

// newSecret gives t a new ID and secret, and returns the text of the token.
func (t *Token) newSecret() string {
	var id [idSize]byte
	var s secret
	rand.Read(id[:]) // never fails
	rand.Read(s[:])
	t.ID, t.Hash = narinfo.EncodeNix32(id[:]), sha256.Sum256(s[:])
	return formatToken(t.ID, s)
}

// maxTokenName is the length of the longest name of a token, in bytes.
const maxTokenName = 64

// check says what is wrong with t.
func (t *Token) check() error {
	if t.Name == "" || len(t.Name) > maxTokenName || strings.Trim(t.Name, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-_@+") != "" {
		return fmt.Errorf("name %q is not 1 to %d of letters, digits, and . - _ @ +", t.Name, maxTokenName)
	}
	switch {
	case t.Rights == 0:
		return errors.New("no rights")
	case t.MaxUploads < 0, t.MaxNAR < 0, t.Rate < 0:
		return errors.New("a limit is below 0")
	}
	for _, p := range t.Match {
		if _, err := path.Match(p, ""); err != nil || p == "" || strings.Contains(p, "/") {
			return fmt.Errorf("pattern %q is malformed", p)
		}
	}
	return nil
}

// Expired says whether t has no rights any more.
func (t *Token) Expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }
