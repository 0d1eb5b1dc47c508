package narinfo

import "errors"

// nix32Alphabet leaves out e, o, u and t.
const nix32Alphabet = "0123456789abcdfghijklmnpqrsvwxyz"

// nix32Digits maps a character to its digit, and others to noDigit.
var nix32Digits = func() (digits [256]byte) {
	for i := range digits {
		digits[i] = noDigit
	}
	for i := range len(nix32Alphabet) {
		digits[nix32Alphabet[i]] = byte(i)
	}
	return digits
}()

const noDigit = 0xff

var errNix32 = errors.New("invalid nix32")

// Nix32Len returns the number of nix32 characters for n bytes.
func Nix32Len(n int) int { return (n*8 + 4) / 5 }

// AppendNix32 appends the nix32 encoding of src to dst.
//
// Nix's base 32 writes the bytes as one little-endian number, most significant
// digit first, and has an alphabet of its own. (Nix: src/libutil/base-nix-32.cc.)
func AppendNix32(dst, src []byte) []byte {
	for n := Nix32Len(len(src)) - 1; n >= 0; n-- {
		i, shift := n*5/8, n*5%8
		digit := uint16(src[i]) >> shift
		if i+1 < len(src) {
			digit |= uint16(src[i+1]) << (8 - shift)
		}
		dst = append(dst, nix32Alphabet[digit&31])
	}
	return dst
}

// EncodeNix32 returns the nix32 encoding of src.
func EncodeNix32(src []byte) string {
	return string(AppendNix32(make([]byte, 0, Nix32Len(len(src))), src))
}

// DecodeNix32 decodes s. There is exactly one encoding of any bytes: characters
// that are not in the alphabet (upper case among them), lengths that no bytes have
// and excess bits that are not zero are errors.
func DecodeNix32(s string) ([]byte, error) {
	size := len(s) * 5 / 8
	if Nix32Len(size) != len(s) {
		return nil, errNix32
	}
	dst := make([]byte, size)
	for n := range len(s) {
		digit := uint16(nix32Digits[s[len(s)-1-n]])
		if digit == noDigit {
			return nil, errNix32
		}
		i, shift := n*5/8, n*5%8
		digit <<= shift
		dst[i] |= byte(digit)
		if i+1 < size {
			dst[i+1] |= byte(digit >> 8)
		} else if digit>>8 != 0 {
			return nil, errNix32
		}
	}
	return dst, nil
}
