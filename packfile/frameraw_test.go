package packfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"
)

// TestAppendRaw pins the bytes of the serving profile: they are in clients'
// caches and in Content-Length headers, and may never change.
func TestAppendRaw(t *testing.T) {
	const magic = "28b52ffd"
	var all, plain []byte
	for _, tt := range []struct {
		n      int
		header string // of the frame
		first  string // header of the first block
		blocks int
	}{
		{0, "2000", "010000", 1},
		{1, "2001", "090000", 1},
		{255, "20ff", "f90700", 1},
		{256, "600000", "010800", 1},
		{65791, "60ffff", "f90708", 1},
		{65792, "a000010100", "010808", 1},
		{131071, "a0ffff0100", "f9ff0f", 1},
		{131072, "a000000200", "010010", 1},
		{131073, "a001000200", "000010", 2},
		{1 << 20, "a000001000", "000010", 8},
	} {
		data := testBytes("random", tt.n, uint64(tt.n))
		got := AppendRaw([]byte("x"), data)[1:]
		if want := 4 + len(tt.header)/2 + 3*tt.blocks + tt.n; len(got) != want || RawLen(tt.n) != want {
			t.Errorf("%d bytes: frame of %d, RawLen %d, want %d", tt.n, len(got), RawLen(tt.n), want)
		}
		if want := magic + tt.header + tt.first; hex.EncodeToString(got[:len(want)/2]) != want {
			t.Errorf("%d bytes: frame begins with %x, want %s", tt.n, got[:len(want)/2], want)
		}
		all, plain = append(all, got...), append(plain, data...)
		checkPayload(t, got, tt.n)
	}
	const want = "581637317cb56d8501fa5e4cc7fef76381a976ebc855a8976c2c81787a4c451b"
	if got := fmt.Sprintf("%x", sha256.Sum256(all)); got != want {
		t.Errorf("SHA-256 of all frames is %s, want %s", got, want)
	}
	if got := zstdCLI(t, all); !bytes.Equal(got, plain) {
		t.Error("zstd decodes the frames to other bytes")
	}
}

func TestAppendRawTooLong(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	AppendRaw(nil, make([]byte, MaxChunk+1))
}

func TestParseBlock(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want zstdBlock
		ok   bool
	}{
		{"", zstdBlock{}, false},
		{"0100", zstdBlock{}, false},
		{"010000", zstdBlock{blockRaw, true, 0}, true},
		{"08000041", zstdBlock{blockRaw, false, 1}, true},
		{"0b010041", zstdBlock{blockRLE, true, 1}, true},
		{"0b0100", zstdBlock{blockRLE, true, 1}, false},
		{"14000000", zstdBlock{blockCompressed, false, 2}, false},
		{"1400000000", zstdBlock{blockCompressed, false, 2}, true},
		{"06000000", zstdBlock{3, false, 0}, false},
	} {
		in, err := hex.DecodeString(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := parseBlock(in)
		if got != tt.want || ok != tt.ok {
			t.Errorf("parseBlock(%s) = %+v, %v, want %+v, %v", tt.in, got, ok, tt.want, tt.ok)
		}
	}
}
