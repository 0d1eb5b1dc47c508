package narinfo

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Algo is a hash algorithm. The zero Algo is none.
type Algo byte

// The algorithms that all versions of Nix know.
const (
	MD5 Algo = iota + 1
	SHA1
	SHA256
	SHA512
)

var algos = [...]struct {
	name string
	size int
}{MD5: {"md5", 16}, SHA1: {"sha1", 20}, SHA256: {"sha256", 32}, SHA512: {"sha512", 64}}

// String returns Nix's name of the algorithm, in lower case.
func (a Algo) String() string {
	if int(a) < len(algos) && a != 0 {
		return algos[a].name
	}
	return fmt.Sprintf("Algo(%d)", byte(a))
}

// Size returns the length of a digest in bytes.
func (a Algo) Size() int { return algos[a].size }

func parseAlgo(name string) (Algo, error) {
	for a := MD5; a <= SHA512; a++ {
		if algos[a].name == name {
			return a, nil
		}
	}
	return 0, fmt.Errorf("unknown hash algorithm %q", name)
}

// Hash is a digest and its algorithm. It is comparable. The zero Hash is none.
type Hash struct {
	algo Algo
	sum  [64]byte // zeros behind the digest
}

// NewHash returns the Hash with the digest sum. It panics if sum does not have the
// algorithm's length.
func NewHash(algo Algo, sum []byte) Hash {
	if len(sum) != algo.Size() {
		panic(fmt.Sprintf("narinfo: %v digest of %d bytes", algo, len(sum)))
	}
	h := Hash{algo: algo}
	copy(h.sum[:], sum)
	return h
}

// IsZero reports whether h is none.
func (h Hash) IsZero() bool { return h.algo == 0 }

// Algo returns the algorithm.
func (h Hash) Algo() Algo { return h.algo }

// Sum returns a copy of the digest.
func (h Hash) Sum() []byte { return h.sum[:h.algo.Size()] }

// String returns the form that narinfos have, as in "sha256:<nix32>".
func (h Hash) String() string { return h.algo.String() + ":" + h.Nix32() }

// SRI returns the form of Subresource Integrity, as in "sha256-<base64>".
func (h Hash) SRI() string { return h.algo.String() + "-" + h.Base64() }

// Nix32 returns the digest in nix32, without the algorithm.
func (h Hash) Nix32() string { return EncodeNix32(h.Sum()) }

// Hex returns the digest in lower-case hexadecimal, without the algorithm.
func (h Hash) Hex() string { return hex.EncodeToString(h.Sum()) }

// Base64 returns the digest in padded base64, without the algorithm.
func (h Hash) Base64() string { return base64.StdEncoding.EncodeToString(h.Sum()) }

// ParseHash parses "<algo>:<digest>", where the digest's length tells whether it is
// hexadecimal (of either case), nix32 or base64, or SRI "<algo>-<base64>". A hash
// without its algorithm is an error. (Nix: src/libutil/hash.cc, parseAnyPrefixed.)
func ParseHash(s string) (Hash, error) {
	if name, digest, ok := strings.Cut(s, ":"); ok {
		algo, err := parseAlgo(name)
		if err != nil {
			return Hash{}, err
		}
		return parseDigest(algo, digest)
	}
	name, digest, ok := strings.Cut(s, "-")
	if !ok {
		return Hash{}, fmt.Errorf("hash %q does not name its algorithm", s)
	}
	algo, err := parseAlgo(name)
	if err != nil {
		return Hash{}, err
	}
	return newHash(algo, digest, decodeBase64)
}

// parseDigest parses a digest whose length tells its encoding.
func parseDigest(algo Algo, digest string) (Hash, error) {
	switch size := algo.Size(); len(digest) {
	case hex.EncodedLen(size):
		return newHash(algo, digest, hex.DecodeString)
	case Nix32Len(size):
		return newHash(algo, digest, DecodeNix32)
	case base64.StdEncoding.EncodedLen(size):
		return newHash(algo, digest, decodeBase64)
	}
	return Hash{}, fmt.Errorf("%v digest of %d characters", algo, len(digest))
}

func newHash(algo Algo, digest string, decode func(string) ([]byte, error)) (Hash, error) {
	sum, err := decode(digest)
	if err != nil {
		return Hash{}, fmt.Errorf("%v digest %q: %w", algo, digest, err)
	}
	if len(sum) != algo.Size() {
		return Hash{}, fmt.Errorf("%v digest of %d bytes", algo, len(sum))
	}
	return NewHash(algo, sum), nil
}

var errBase64 = errors.New("invalid base64")

// decodeBase64 decodes as Nix does: it skips line feeds, needs no padding, and
// ignores excess bits and whatever comes behind the first '='. (That is why key
// files with CRLF work.) (Nix: src/libutil/base-n.cc.)
func decodeBase64(s string) ([]byte, error) {
	s, _, _ = strings.Cut(s, "=")
	s = strings.ReplaceAll(s, "\n", "")
	if strings.Contains(s, "\r") { // which encoding/base64 would skip
		return nil, errBase64
	}
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, errBase64
	}
	return b, nil
}
