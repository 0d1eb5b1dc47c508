package narinfo

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// testKey returns a key that depends on seed only.
func testKey(t *testing.T, name string, seed byte) PrivateKey {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	k, err := ParsePrivateKey(name + ":" + base64.StdEncoding.EncodeToString(key))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyFiles(t *testing.T) {
	key, err := GenerateKey("cache-1")
	if err != nil {
		t.Fatal(err)
	}
	secret, public := key.Secret(), key.Public().String()
	if len(secret) != len("cache-1:")+88 || len(public) != len("cache-1:")+44 || !strings.HasPrefix(secret, "cache-1:") {
		t.Errorf("got %q", public)
	}
	// Line feeds are skipped, and nothing behind the padding matters.
	for _, s := range []string{secret, secret + "\n", secret + "\r\n", secret[:20] + "\n" + secret[20:], strings.TrimRight(secret, "="), secret + " comment"} {
		if got, err := ParsePrivateKey(s); err != nil || got.Secret() != secret {
			t.Errorf("secret key: %v", err)
		}
	}
	for _, s := range []string{public, public + "\n", public + "\r\n", public[:20] + "\n" + public[20:], strings.TrimRight(public, "=")} {
		if got, err := ParsePublicKey(s); err != nil || got != key.Public() {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	sig := key.Sign("text")
	if !key.Public().Verify("text", sig) || key.Public().Verify("test", sig) || sig != key.Sign("text") {
		t.Error("signature is wrong")
	}
	// Only the first colon ends the name.
	if _, err := ParsePublicKey("a:" + public); err == nil {
		t.Error("accepted a colon in base64")
	}
}

func TestKeysRefused(t *testing.T) {
	key := testKey(t, "k", 1)
	secret, public := key.Secret(), key.Public().String()
	mismatched := make([]byte, 64)
	copy(mismatched, bytes.Repeat([]byte{1}, 32))
	for name, s := range map[string]string{
		"empty": "", "no name": secret[1:], "no colon": secret[2:], "no key": "k:", "public": public, "short": secret[:80], "long": secret[:88] + "AAAA",
		"CR inside": secret[:20] + "\r" + secret[20:], "space inside": secret[:20] + " " + secret[20:], "halves": "k:" + base64.StdEncoding.EncodeToString(mismatched),
	} {
		_, err := ParsePrivateKey(s)
		if err == nil {
			t.Errorf("secret key, %s: no error", name)
		} else if len(s) > 30 && strings.Contains(err.Error(), s[10:30]) {
			t.Errorf("secret key, %s: error quotes it", name)
		}
	}
	for name, s := range map[string]string{"empty": "", "no name": public[1:], "no colon": public[2:], "no key": "k:", "secret": secret, "short": public[:40]} {
		if k, err := ParsePublicKey(s); err == nil {
			t.Errorf("public key, %s: got %v, want an error", name, k)
		}
	}
	for _, name := range []string{"", "a:b", "a b", "a\n"} {
		if _, err := GenerateKey(name); err == nil {
			t.Errorf("generate %q: no error", name)
		}
	}
}

func TestPrivateKeyIsNotPrinted(t *testing.T) {
	key := testKey(t, "k", 1)
	secret := strings.TrimPrefix(key.Secret(), "k:")
	for _, format := range []string{"%v", "%s", "%+v"} {
		if got := fmt.Sprintf(format, key); strings.Contains(got, secret[:10]) || got != "k:<secret>" {
			t.Errorf("%s: got %s", format, got)
		}
	}
}
