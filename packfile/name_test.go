package packfile

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

var testName = Name{Writer: [10]byte{1, 0x93, 0x4b, 0x5c, 0x6d, 0x7e, 0xaa, 0xbb, 0xcc, 0xdd}, Seq: 0x2a, Rand: 0xdeadbeef}

const testNameText = "01934b5c6d7eaabbccdd/000000002a-deadbeef"

func TestName(t *testing.T) {
	if got := testName.String(); got != testNameText {
		t.Errorf("got %s, want %s", got, testNameText)
	}
	for _, n := range []Name{{}, testName, {Seq: maxSeq, Rand: 1<<32 - 1}, {Writer: [10]byte{9: 1}}} {
		if got, err := ParseName(n.String()); err != nil || got != n {
			t.Errorf("text: got %v, %v, want %v", got, err, n)
		}
		b := n.Append([]byte{7})
		if len(b) != 1+NameSize || b[0] != 7 {
			t.Errorf("binary form of %v is % x", n, b)
		}
		if got, err := NameFromBytes(b[1:]); err != nil || got != n {
			t.Errorf("bytes: got %v, %v, want %v", got, err, n)
		}
	}
}

func TestNameRejects(t *testing.T) {
	for _, s := range []string{
		"", "/", "..", testNameText + "0", testNameText[1:], " " + testNameText[1:],
		strings.ToUpper(testNameText), strings.Replace(testNameText, "/", "-", 1), strings.Replace(testNameText, "-", "/", 1),
		strings.Replace(testNameText, "000000002a", "+00000002a", 1), strings.Replace(testNameText, "000000002a", "0x0000002a", 1),
		strings.Replace(testNameText, "000000002a", "00000_002a", 1), strings.Replace(testNameText, "deadbeef", "deadbeeg", 1),
		strings.Replace(testNameText, "dd/", "\x00d/", 1), strings.Replace(testNameText, "01", "..", 1),
	} {
		if n, err := ParseName(s); !errors.Is(err, ErrName) {
			t.Errorf("%q: got %v, %v", s, n, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, NameSize-1), make([]byte, NameSize+1), Name{Seq: maxSeq + 1}.Append(nil)} {
		if n, err := NameFromBytes(b); !errors.Is(err, ErrName) {
			t.Errorf("% x: got %v, %v", b, n, err)
		}
	}
}

// TestNameOrder checks that text and bytes sort alike, by writer, then sequence.
func TestNameOrder(t *testing.T) {
	names := []Name{
		{}, {Rand: 1}, {Seq: 1}, {Seq: 1, Rand: 5}, {Seq: 256}, {Seq: maxSeq},
		{Writer: [10]byte{9: 1}}, {Writer: [10]byte{0: 1}}, {Writer: [10]byte{0: 0xff}, Seq: 3},
	}
	for i := range names[1:] {
		a, b := names[i], names[i+1]
		if slices.Compare(a.Append(nil), b.Append(nil)) >= 0 || a.String() >= b.String() {
			t.Errorf("%v does not sort before %v", a, b)
		}
	}
}
