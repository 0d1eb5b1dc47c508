package compression

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"
)

func TestMemory(t *testing.T) {
	plain := sample(100_000)
	const common = commonWindow + overhead
	for _, test := range []struct {
		name string
		t    Type
		file []byte
		want int64
	}{
		{"none", None, nil, 0},
		{"xz -6", XZ, compressed(t, XZ, plain, "-6"), common},
		{"xz -9", XZ, compressed(t, XZ, plain, "-9"), 64<<20 + overhead},
		{"xz with block sizes", XZ, compressed(t, XZ, plain, "-9", "-T2"), 64<<20 + overhead},
		{"xz with filters", XZ, compressed(t, XZ, plain, "--x86", "--delta=dist=2", "--lzma2=dict=24MiB"), 24<<20 + overhead},
		{"xz of nothing", XZ, compressed(t, XZ, nil), common},
		{"xz of 4 GiB", XZ, xzWithDictionary(t, plain, 40), 1<<32 - 1 + overhead},
		{"zstd", Zstd, compressed(t, Zstd, plain), common},
		{"zstd --long=27", Zstd, compressed(t, Zstd, plain, "--long=27"), 128<<20 + overhead},
		{"zstd behind a skippable frame", Zstd, append([]byte("\x50\x2a\x4d\x18\x01\x00\x00\x00a"), zstdWithWindow(t, plain, 24)...), 16<<20 + overhead},
		{"zstd out of sight", Zstd, []byte("\x50\x2a\x4d\x18\x00\x00\x01\x00"), DefaultMaxMemory},
		{"brotli", Brotli, compressed(t, Brotli, plain, "-w", "22"), 6<<20 + brotliOverhead},
		{"brotli -w 24", Brotli, compressed(t, Brotli, plain, "-w", "24"), 24<<20 + brotliOverhead},
		{"brotli -w 10", Brotli, compressed(t, Brotli, plain, "-w", "10"), 1536 + brotliOverhead},
		{"stored brotli", Brotli, store(t, Brotli, plain), 96<<10 + brotliOverhead},
	} {
		got, err := Memory(test.t, test.file[:min(len(test.file), HeaderSize)])
		if err != nil || got != test.want {
			t.Errorf("%s: got %d, %v, want %d", test.name, got, err, test.want)
		}
	}
}

func TestMemoryBadHeader(t *testing.T) {
	badXZ := func(header ...byte) []byte {
		header = append(header, make([]byte, -len(header)&3)...)
		b := append([]byte{byte((len(header) + 4) / 4)}, header...) // room for it and the CRC
		return append(xzPrefix[:12:12], append(b, make([]byte, 8)...)...)
	}
	for name, test := range map[string]struct {
		t    Type
		file []byte
		want error
	}{
		"empty xz":             {XZ, nil, io.ErrUnexpectedEOF},
		"empty gzip":           {Gzip, nil, io.ErrUnexpectedEOF},
		"xz without magic":     {XZ, make([]byte, 100), ErrCorrupt},
		"xz cut":               {XZ, xzPrefix[:20], io.ErrUnexpectedEOF},
		"xz without LZMA2":     {XZ, badXZ(0, 3, 1, 0), ErrCorrupt},
		"xz dictionary of 41":  {XZ, badXZ(0, 0x21, 1, 41), ErrCorrupt},
		"xz filter of 2^56":    {XZ, badXZ(3, 3, 255, 255, 255, 255, 255, 255, 255, 127), ErrCorrupt},
		"xz endless integer":   {XZ, badXZ(0xc0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255), ErrCorrupt},
		"zstd without magic":   {Zstd, make([]byte, 100), ErrCorrupt},
		"large-window brotli":  {Brotli, []byte{0x11}, ErrCorrupt},
		"zstd of a bad window": {Zstd, []byte("\x28\xb5\x2f\xfd\x08\x00"), ErrCorrupt},
		"lzip":                 {Lzip, []byte("LZIP"), ErrUnsupported},
	} {
		if _, err := Memory(test.t, test.file); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

// What Memory promises is compared with the heap that decoders hold in mid-stream.
func TestMemoryBoundsHeap(t *testing.T) {
	plain := sample(3 << 20)
	large := noise(18 << 20) // several blocks of lz4
	for _, test := range []struct {
		name string
		t    Type
		file []byte
	}{
		{"xz -1", XZ, compressed(t, XZ, plain, "-1")},
		{"xz -6", XZ, compressed(t, XZ, plain, "-6")},
		{"xz -9 with filters", XZ, compressed(t, XZ, plain, "--x86", "--delta", "--lzma2=preset=1,dict=64MiB,lc=4")},
		{"gzip", Gzip, compressed(t, Gzip, plain)},
		{"zstd -3", Zstd, compressed(t, Zstd, plain)},
		{"zstd 8 MiB", Zstd, compressed(t, Zstd, plain, "-3", "--zstd=wlog=23")},
		{"zstd 64 MiB", Zstd, compressed(t, Zstd, plain, "-3", "--long=26")},
		{"zstd, small then 8 MiB", Zstd, append(store(t, Zstd, plain[:100]), compressed(t, Zstd, plain, "-3", "--zstd=wlog=23")...)},
		{"brotli", Brotli, compressed(t, Brotli, plain, "-q", "5", "-w", "22")},
		{"brotli 16 MiB", Brotli, compressed(t, Brotli, plain, "-q", "9", "-w", "24")},
		{"lz4", LZ4, compressed(t, LZ4, large)},
		{"lz4 linked", LZ4, compressed(t, LZ4, large, "-BD")},
		{"lz4 legacy", LZ4, compressed(t, LZ4, large, "-l")},
		{"lz4 legacy, one block", LZ4, compressed(t, LZ4, plain, "-l")},
		{"lz4, then legacy", LZ4, append(compressed(t, LZ4, plain), compressed(t, LZ4, large, "-l")...)},
		{"bzip2", Bzip2, compressed(t, Bzip2, plain)},
	} {
		need := must(Memory(test.t, test.file[:HeaderSize]))
		size := len(must(decode(test.t, test.file)))
		const decoders = 4
		var open [decoders]io.ReadCloser
		before := liveHeap()
		for i := range open {
			r, err := NewReader(test.t, bytes.NewReader(test.file), Limits{MaxMemory: need})
			if err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			if _, err := io.CopyN(io.Discard, r, int64(size-1)); err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			open[i] = r
		}
		got := (liveHeap() - before) / decoders
		t.Logf("%-24s %9d bytes held, %9d promised", test.name, got, need)
		if got > need {
			t.Errorf("%s: a decoder holds %d bytes, Memory promised %d", test.name, got, need)
		}
		for _, r := range open {
			r.Close()
		}
	}
}

// liveHeap returns the bytes of reachable objects, pools emptied.
func liveHeap() int64 {
	for range 3 { // a sync.Pool survives one collection
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
