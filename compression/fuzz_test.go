package compression

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func FuzzXZ(f *testing.F)     { fuzzReader(f, XZ) }
func FuzzGzip(f *testing.F)   { fuzzReader(f, Gzip) }
func FuzzZstd(f *testing.F)   { fuzzReader(f, Zstd) }
func FuzzBrotli(f *testing.F) { fuzzReader(f, Brotli) }
func FuzzLZ4(f *testing.F)    { fuzzReader(f, LZ4) }
func FuzzBzip2(f *testing.F)  { fuzzReader(f, Bzip2) }

// fuzzReader decodes arbitrary bytes: that ends, with one of the errors that it may end with, and
// reading in other pieces gives the same. The corpus in testdata has files made by each program.
func fuzzReader(f *testing.F, typ Type) {
	const maxMemory, maxOutput = 64 << 20, 4 << 20
	if typ.Reproducible() {
		f.Add(store(f, typ, nil))
		f.Add(store(f, typ, sample(100)))
		f.Add(append(store(f, typ, sample(30)), store(f, typ, noise(5))...))
	}
	read := func(t *testing.T, b []byte, buf []byte) (int64, error) {
		r, err := NewReader(typ, bytes.NewReader(b), Limits{MaxMemory: maxMemory})
		if err != nil {
			return 0, err
		}
		defer r.Close()
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(r, maxOutput), buf)
		if _, again := r.Read(buf); err != nil && again != err {
			t.Errorf("after error %v: got %v", err, again)
		}
		return n, err
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		need, memErr := Memory(typ, b[:min(len(b), HeaderSize)])
		if memErr == nil && need <= 0 {
			t.Errorf("Memory: got %d", need)
		}
		n, err := read(t, b, make([]byte, 64<<10))
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooMuchMemory) {
			t.Errorf("got %v, want ErrCorrupt or ErrTooMuchMemory", err)
		}
		if memErr != nil && err == nil {
			t.Errorf("Memory: %v, but it decodes", memErr)
		}
		if n2, err2 := read(t, b, make([]byte, 1000)); (err == nil) != (err2 == nil) || err == nil && n != n2 {
			t.Errorf("in large pieces: %d, %v; in small ones: %d, %v", n, err, n2, err2)
		}
	})
}

func FuzzDetect(f *testing.F) {
	for _, m := range magics {
		f.Add("x.nar"+m.t.Extension(), []byte(m.magic))
	}
	f.Add("x.nar.br", []byte{3})
	f.Add("x.nar.lz4", []byte("\x52\x2a\x4d\x18\x02\x00\x00\x00ab\x04\x22\x4d\x18"))
	f.Add("x.nar", []byte("\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, name string, prefix []byte) {
		typ, err := Detect(name, prefix)
		switch {
		case err == nil && !typ.Reproducible():
			t.Errorf("got %q without an error", typ)
		case errors.Is(err, ErrUnsupported):
			if _, err := Parse(string(typ)); err != nil || typ.Reproducible() {
				t.Errorf("got %q as unsupported", typ)
			}
		case err != nil && typ != "":
			t.Errorf("got %q, %v", typ, err)
		case err != nil && !errors.Is(err, ErrMismatch) && !errors.Is(err, ErrUnknown):
			t.Errorf("got %v", err)
		}
	})
}

// Any range of any size equals the slice of the whole, and the whole decodes.
func FuzzStored(f *testing.F) {
	f.Add(byte(1), 0, 0, 10)
	f.Add(byte(2), 65535, 65530, 100)
	f.Add(byte(3), 131073, 131000, 200)
	f.Add(byte(4), 200_000, 3, 150_000)
	plain := noise(300_000)
	f.Fuzz(func(t *testing.T, which byte, size, off, n int) {
		typ := storedTypes[int(which)%len(storedTypes)]
		plain := plain[:uint(size)%uint(len(plain)+1)]
		whole := store(t, typ, plain)
		off = int(uint(off) % uint(len(whole)+1))
		n = int(uint(n) % uint(len(whole)-off+1))
		var b bytes.Buffer
		err := newStored(t, typ, plain).WriteRange(&b, int64(off), int64(n), from(plain, 4096))
		if err != nil || !bytes.Equal(b.Bytes(), whole[off:off+n]) {
			t.Errorf("%s of %d: range %d+%d: got %d other bytes, %v", typ, len(plain), off, n, b.Len(), err)
		}
		if got, err := decode(typ, whole); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s of %d: decoded to %d bytes, %v", typ, len(plain), len(got), err)
		}
	})
}
