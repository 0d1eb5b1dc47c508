package upstream

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
)

// TestDecode decodes files that have lost their header.
func TestDecode(t *testing.T) {
	random := make([]byte, 100_000)
	rand.NewChaCha8([32]byte{1}).Read(random)
	words := new(strings.Builder) // which brotli cannot make a few bytes of
	for i := range random {
		words.WriteByte("abcdefghijklmnopqrstuvwxyz \n"[random[i]%28])
	}
	for name, text := range map[string]string{
		"empty": "", "listing": `{"version":1,"root":{"type":"directory","entries":{}}}`, "log": "built\x1b[0m\r\n" + strings.Repeat("ä€𝄞", 3000),
		"long": words.String(), "one": "x",
	} {
		var b bytes.Buffer
		w := brotli.NewWriter(&b)
		io.WriteString(w, text)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{b.String(), text} {
			if name == "empty" && file != "" {
				continue // a byte that says nothing
			}
			r, err := decode("", io.NopCloser(strings.NewReader(file)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if string(got) != text || err != nil {
				t.Errorf("%s: got %d bytes %.20q of a file of %d, %v, want %d", name, len(got), got, len(file), err, len(text))
			}
		}
	}
	for _, file := range []string{string(random), "caf\xe9 in Latin-1\n", "\x00\x01\x02", "\x0b"} {
		r, err := decode("", io.NopCloser(strings.NewReader(file)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); string(got) != file || err != nil {
			t.Errorf("%.20q: got %.20q, %v", file, got, err)
		}
	}
}
