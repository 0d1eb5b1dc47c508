package narinfo

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Signature is an Ed25519 signature of a narinfo's fingerprint. It is comparable.
type Signature struct {
	Name string // of the key
	Sig  [ed25519.SignatureSize]byte
}

// ParseSignature parses "<key name>:<base64>". It decodes base64 as Nix does, so
// that a careless encoding gives the same Signature as the canonical one, which
// String returns.
func ParseSignature(s string) (Signature, error) {
	name, b, err := parseNamed(s)
	if err != nil {
		return Signature{}, fmt.Errorf("signature: %w", err)
	}
	if len(b) != ed25519.SignatureSize {
		return Signature{}, fmt.Errorf("signature of %d bytes", len(b))
	}
	return Signature{name, [ed25519.SignatureSize]byte(b)}, nil
}

// String returns the form that narinfos have.
func (s Signature) String() string { return formatNamed(s.Name, s.Sig[:]) }

// Compare orders signatures by key name, then by their bytes.
func (s Signature) Compare(t Signature) int {
	return cmp.Or(strings.Compare(s.Name, t.Name), bytes.Compare(s.Sig[:], t.Sig[:]))
}

// PublicKey verifies signatures that carry its name. It is comparable.
type PublicKey struct {
	Name string
	Key  [ed25519.PublicKeySize]byte
}

// ParsePublicKey parses "<name>:<base64 of 32 bytes>".
func ParsePublicKey(s string) (PublicKey, error) {
	name, b, err := parseNamed(s)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	if len(b) != ed25519.PublicKeySize {
		return PublicKey{}, fmt.Errorf("public key %q of %d bytes", name, len(b))
	}
	return PublicKey{name, [ed25519.PublicKeySize]byte(b)}, nil
}

// String returns the form that trusted-public-keys has.
func (k PublicKey) String() string { return formatNamed(k.Name, k.Key[:]) }

// Verify reports whether sig is this key's signature of fingerprint.
func (k PublicKey) Verify(fingerprint string, sig Signature) bool {
	return k.Name == sig.Name && ed25519.Verify(k.Key[:], []byte(fingerprint), sig.Sig[:])
}

// PrivateKey makes signatures.
type PrivateKey struct {
	Name string
	key  ed25519.PrivateKey
}

// GenerateKey returns a new random key called name, which cannot be empty or contain a
// colon or white space.
func GenerateKey(name string) (PrivateKey, error) {
	if name == "" || strings.ContainsAny(name, ": \t\r\n") {
		return PrivateKey{}, fmt.Errorf("key name %q", name)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate key: %w", err)
	}
	return PrivateKey{name, key}, nil
}

// ParsePrivateKey parses the contents of a secret key file: "<name>:<base64 of 64
// bytes>", a 32-byte seed and the public key that belongs to it. Line feeds in the
// base64 and whatever is behind its padding do not matter, as in Nix. The error does
// not quote the key. (Nix: src/libutil/signature/local-keys.cc.)
func ParsePrivateKey(s string) (PrivateKey, error) {
	name, b, err := parseNamed(s)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("secret key: %w", err)
	}
	if len(b) != ed25519.PrivateKeySize {
		return PrivateKey{}, fmt.Errorf("secret key %q of %d bytes", name, len(b))
	}
	// Signing with a public half that does not belong to the seed would give the
	// seed away.
	key := ed25519.NewKeyFromSeed(b[:ed25519.SeedSize])
	if !bytes.Equal(key, b) {
		return PrivateKey{}, fmt.Errorf("secret key %q: its halves do not belong together", name)
	}
	return PrivateKey{name, key}, nil
}

// Secret returns the contents of a secret key file, which does not end in a line
// feed.
func (k PrivateKey) Secret() string { return formatNamed(k.Name, k.key) }

// String returns the key's name only, so that logs cannot give it away.
func (k PrivateKey) String() string { return k.Name + ":<secret>" }

// Public returns the key that verifies k's signatures.
func (k PrivateKey) Public() PublicKey {
	return PublicKey{k.Name, [ed25519.PublicKeySize]byte(k.key[ed25519.SeedSize:])}
}

// Sign signs a fingerprint. The same input gives the same signature.
func (k PrivateKey) Sign(fingerprint string) Signature {
	sig := ed25519.Sign(k.key, []byte(fingerprint))
	return Signature{k.Name, [ed25519.SignatureSize]byte(sig)}
}

// parseNamed splits "<name>:<base64>". Its errors do not quote the input.
func parseNamed(s string) (name string, b []byte, err error) {
	name, digits, ok := strings.Cut(s, ":")
	if !ok || name == "" || digits == "" {
		return "", nil, errors.New("not <name>:<base64>")
	}
	if b, err = decodeBase64(digits); err != nil {
		return "", nil, err
	}
	return name, b, nil
}

func formatNamed(name string, b []byte) string {
	return name + ":" + base64.StdEncoding.EncodeToString(b)
}
