package narinfo

import (
	"bytes"
	"crypto/sha256"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
)

func sum256(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

func TestNix32Vectors(t *testing.T) {
	for _, test := range []struct {
		src  []byte
		want string
	}{
		{nil, ""},
		{[]byte{0x1f}, "0z"},
		{[]byte{0xff}, "7z"},
		{sum256(""), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"},
		{sum256("abc"), "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s"},
		{make([]byte, 20), strings.Repeat("0", 32)},
		{bytes.Repeat([]byte{0xff}, 32), "1" + strings.Repeat("z", 51)},
	} {
		if got := EncodeNix32(test.src); got != test.want {
			t.Errorf("encode %x: got %s, want %s", test.src, got, test.want)
		}
		if got, err := DecodeNix32(test.want); err != nil || !bytes.Equal(got, test.src) {
			t.Errorf("decode %s: got %x, %v, want %x", test.want, got, err, test.src)
		}
	}
	for n, want := range map[int]int{0: 0, 1: 2, 16: 26, 20: 32, 32: 52, 64: 103} {
		if got := Nix32Len(n); got != want {
			t.Errorf("Nix32Len(%d) = %d, want %d", n, got, want)
		}
	}
}

// TestNix32Number compares with the definition: a little-endian number in base 32.
func TestNix32Number(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for size := range 70 {
		src := make([]byte, size)
		for i := range src {
			src[i] = byte(rng.Uint32())
		}
		bigEndian := bytes.Clone(src)
		for i := range bigEndian {
			bigEndian[i] = src[size-1-i]
		}
		n := new(big.Int).SetBytes(bigEndian)
		want := make([]byte, Nix32Len(size))
		for i := len(want) - 1; i >= 0; i-- {
			var digit big.Int
			n.DivMod(n, big.NewInt(32), &digit)
			want[i] = nix32Alphabet[digit.Int64()]
		}
		got := EncodeNix32(src)
		if got != string(want) {
			t.Errorf("encode %x: got %s, want %s", src, got, want)
		}
		if back, err := DecodeNix32(got); err != nil || !bytes.Equal(back, src) {
			t.Errorf("decode %s: got %x, %v, want %x", got, back, err, src)
		}
	}
}

func TestNix32Refused(t *testing.T) {
	zeros := strings.Repeat("0", 51)
	for _, s := range []string{
		"2" + zeros, // excess bits
		"z" + zeros, //
		"8z", "zz",  //
		"0", "000", zeros, "000000", // lengths of no bytes
		"e" + zeros, "0o" + zeros[1:], "0u" + zeros[1:], "0t" + zeros[1:], // not in the alphabet
		"A" + zeros, "0Z" + zeros[1:], // upper case
		"0-" + zeros[1:], "0\x00" + zeros[1:], "0\xff" + zeros[1:], "0 " + zeros[1:],
	} {
		if got, err := DecodeNix32(s); err == nil {
			t.Errorf("decode %q: got %x, want an error", s, got)
		}
	}
}

// FuzzNix32 holds that what can be decoded has one encoding.
func FuzzNix32(f *testing.F) {
	f.Add("0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73")
	f.Add("7z")
	f.Add("8z")
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := DecodeNix32(s); err == nil && EncodeNix32(b) != s {
			t.Errorf("%q decodes to %x, which encodes to %q", s, b, EncodeNix32(b))
		}
	})
}
