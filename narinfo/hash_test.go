package narinfo

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha512"
	"strings"
	"testing"
)

func TestHash(t *testing.T) {
	md5sum, sha1sum, sha512sum := md5.Sum(nil), sha1.Sum(nil), sha512.Sum512(nil)
	for _, test := range []struct {
		algo               Algo
		sum                []byte
		hex, nix32, base64 string
	}{
		{MD5, md5sum[:], "d41d8cd98f00b204e9800998ecf8427e", "3y8bwfr609h3lh9ch0izcqq7fl", "1B2M2Y8AsgTpgAmY7PhCfg=="},
		{SHA1, sha1sum[:], "da39a3ee5e6b4b0d3255bfef95601890afd80709", "143xibwh31h9bvxzalr0sjvbbvpa6ffs", "2jmj7l5rSw0yVb/vlWAYkK/YBwk="},
		{SHA256, sum256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			"0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},
		{SHA512, sha512sum[:],
			"cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
			"0zdl9zrg8r3i9c1g90lgg9ip5ijzv3yhz91i0zzn3r8ap9ws784gkp9dk9j3aglhgf1amqb0pj21mh7h1nxcl18akqvvf7ggqsy30yg",
			"z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg=="},
	} {
		want := NewHash(test.algo, test.sum)
		name := test.algo.String()
		for _, s := range []string{
			name + ":" + test.hex,
			name + ":" + strings.ToUpper(test.hex),
			name + ":" + test.nix32,
			name + ":" + test.base64,
			name + "-" + test.base64,
			name + "-" + strings.TrimRight(test.base64, "="),
		} {
			if got, err := ParseHash(s); err != nil || got != want {
				t.Errorf("parse %s: got %v, %v", s, got, err)
			}
		}
		if !bytes.Equal(want.Sum(), test.sum) || want.Algo() != test.algo || want.IsZero() {
			t.Errorf("%v: got %x of %v", test.algo, want.Sum(), want.Algo())
		}
		for _, out := range []struct{ got, want string }{
			{want.String(), name + ":" + test.nix32},
			{want.SRI(), name + "-" + test.base64},
			{want.Hex(), test.hex},
			{want.Nix32(), test.nix32},
			{want.Base64(), test.base64},
		} {
			if out.got != out.want {
				t.Errorf("%v: got %s, want %s", test.algo, out.got, out.want)
			}
		}
	}
	if h := (Hash{}); !h.IsZero() || len(h.Sum()) != 0 {
		t.Error("the zero Hash is something")
	}
}

func TestParseHashRefused(t *testing.T) {
	const nix32 = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
	const b64 = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	for _, s := range []string{
		"",
		nix32,
		"sha256",
		"sha256:",
		"sha256-",
		":" + nix32,
		"SHA256:" + nix32,
		"sha3:" + nix32,
		"blake3:" + nix32,
		"sha256:" + nix32[1:],
		"sha256:0" + nix32,
		"sha256:" + nix32 + "\r",
		"sha256: " + nix32[1:],
		"sha256:" + strings.ToUpper(nix32),
		"sha256:2" + nix32[1:],
		"sha256-" + nix32,
		"sha256-" + b64[4:],
		"sha256:" + strings.TrimRight(b64, "="), // a digest of 43 characters is nothing
		"sha256:" + strings.ReplaceAll(b64, "+", "-"),
		"sha256:" + strings.Replace(b64, "4", "\r", 1),
		"sha512:" + nix32,
		"md5:" + nix32,
		"sha256:g3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
	} {
		if got, err := ParseHash(s); err == nil {
			t.Errorf("parse %q: got %v, want an error", s, got)
		}
	}
}

func TestDecodeBase64(t *testing.T) {
	for s, want := range map[string]string{
		"":            "",
		"YWJj":        "abc",
		"YWI=":        "ab",
		"YWI":         "ab",
		"YQ==":        "a",
		"YR":          "a", // excess bits
		"Y\nWJj\n":    "abc",
		"YWI=\r\n":    "ab",
		"YWI= what":   "ab",
		"YW=Jj":       "a",
		"\n\nY\n\nQ=": "a",
	} {
		if got, err := decodeBase64(s); err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v, want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"YWJj\r\n", "YW J", " YWJj", "YW-_", "YW\x00J", "é"} {
		if got, err := decodeBase64(s); err == nil {
			t.Errorf("%q: got %q, want an error", s, got)
		}
	}
}
