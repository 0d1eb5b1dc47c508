package compression

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"
)

var storedTypes = []Type{None, XZ, Gzip, Zstd, Brotli, LZ4}

// storedSizes are the sizes around t's block boundaries.
func storedSizes(t Type) []int {
	block := 64 << 10
	if s := must(NewStored(t, 0, 0)); s.block < MaxStored {
		block = int(s.block)
	}
	return []int{0, 1, block - 1, block, block + 1, 3*block + 5, 4 * block, 1_234_567}
}

// noise returns n bytes that are the same in every run.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// from returns the src of WriteRange for plain bytes b, writing pieces of at most piece bytes.
func from(b []byte, piece int) func(io.Writer, int64, int64) error {
	return func(w io.Writer, off, n int64) error {
		for b := b[off:][:n]; len(b) > 0; {
			p := b[:min(piece, len(b))]
			if _, err := w.Write(p); err != nil {
				return err
			}
			b = b[len(p):]
		}
		return nil
	}
}

func newStored(t testing.TB, typ Type, plain []byte) *Stored {
	t.Helper()
	s, err := NewStored(typ, int64(len(plain)), crc32.ChecksumIEEE(plain))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// store returns the whole stored encoding of plain.
func store(t testing.TB, typ Type, plain []byte) []byte {
	t.Helper()
	s := newStored(t, typ, plain)
	var b bytes.Buffer
	if err := s.WriteRange(&b, 0, s.Size(), from(plain, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if got, want := int64(b.Len()), s.Size(); got != want {
		t.Fatalf("%s: wrote %d bytes, Size is %d", typ, got, want)
	}
	return b.Bytes()
}

func TestStoredDecodes(t *testing.T) {
	for _, typ := range storedTypes {
		for _, size := range storedSizes(typ) {
			t.Run(fmt.Sprintf("%s/%d", typ, size), func(t *testing.T) {
				plain := noise(size)
				encoded := store(t, typ, plain)
				got, err := decode(typ, encoded)
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("NewReader: got %d bytes, %v, want %d", len(got), err, size)
				}
				if typ == None {
					return
				}
				if got := runCLI(t, typ, encoded, "-dc"); !bytes.Equal(got, plain) {
					t.Errorf("CLI: got %d bytes, want %d", len(got), size)
				}
				if typ == XZ {
					runCLI(t, typ, encoded, "-t")
				}
			})
		}
	}
}

// The bytes of each encoding are a promise to clients that resume.
func TestStoredGolden(t *testing.T) {
	plain := noise(300_000)
	for typ, want := range map[Type]string{
		None:   "879eb24d39e5204bc1418cdc2c871f59b34e56955e92eeed18ea381cc2225826",
		XZ:     "c88961460a6d4a7b051787f6efe425de362a61cedc3de6cd72097000b37a3089",
		Gzip:   "a8c82ff49cc5ad4c06b27c54fa2f5b8a023c7c6992b576123d237cd70f92c2cf",
		Zstd:   "b65fa879c318d09afb119175d5962e5620ad7689fa38b0cd34afae88aa7e4290",
		Brotli: "1e4d90ca394a0e26ed5d511746c4854fc37388c4c0c88ce6940cb6409d68b7c0",
		LZ4:    "7ca78673fb2fc34e8e30f9bdf25a5e546337b482a2a9e6db41c2d1f653b7f5cb",
	} {
		sum := sha256.Sum256(store(t, typ, plain))
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s: got %s, want %s", typ, got, want)
		}
	}
}

func TestStoredRanges(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, typ := range storedTypes {
		for _, size := range storedSizes(typ) {
			plain := noise(size)
			s, whole := newStored(t, typ, plain), store(t, typ, plain)
			check := func(off, n int64, piece int) {
				t.Helper()
				var b bytes.Buffer
				err := s.WriteRange(&b, off, n, from(plain, piece))
				if err != nil || !bytes.Equal(b.Bytes(), whole[off:off+n]) {
					t.Fatalf("%s of %d: range %d+%d: got %d other bytes, %v", typ, size, off, n, b.Len(), err)
				}
			}
			// Every cut near framing: around the prefix, blocks' starts, and the suffix.
			cuts := []int64{0, s.Size()}
			for block := range min(s.size/s.block+1, 5) {
				for d := int64(-10); d < 40; d++ {
					cuts = append(cuts, block*(int64(len(s.full))+s.block)+d)
				}
			}
			for d := range int64(40) {
				cuts = append(cuts, s.Size()-d)
			}
			for _, off := range cuts {
				for _, n := range []int64{0, 1, 7, s.block + 11} {
					if off >= 0 && off <= s.Size() {
						check(off, min(n, s.Size()-off), 1+rnd.IntN(100_000))
					}
				}
			}
			for range 50 {
				off := rnd.Int64N(s.Size() + 1)
				check(off, rnd.Int64N(s.Size()-off+1), 1+rnd.IntN(10_000))
			}
		}
	}
}

// Small encodings are compared range by range, all of them.
func TestStoredEveryRange(t *testing.T) {
	plain := noise(23)
	for _, typ := range storedTypes {
		s, whole := newStored(t, typ, plain), store(t, typ, plain)
		if typ != None {
			s.block = 5 // not what the headers say, but ranges do not care
			var b bytes.Buffer
			if err := s.WriteRange(&b, 0, s.Size(), from(plain, 3)); err != nil {
				t.Fatal(err)
			}
			whole = b.Bytes()
		}
		for off := range s.Size() + 1 {
			for n := range s.Size() - off + 1 {
				calls := 0
				var b bytes.Buffer
				err := s.WriteRange(&b, off, n, func(w io.Writer, off, n int64) error {
					calls++
					if n == 0 {
						t.Errorf("%s: range %d+%d: source called for nothing", typ, off, n)
					}
					return from(plain, 3)(w, off, n)
				})
				if err != nil || !bytes.Equal(b.Bytes(), whole[off:off+n]) || calls > 1 {
					t.Fatalf("%s: range %d+%d: got %x, %v, %d calls, want %x", typ, off, n, b.Bytes(), err, calls, whole[off:off+n])
				}
			}
		}
	}
}

func TestStoredErrors(t *testing.T) {
	for _, typ := range []Type{Bzip2, Lzip, LZMA, "nonsense", ""} {
		if _, err := NewStored(typ, 1, 0); !errors.Is(err, ErrUnsupported) {
			t.Errorf("NewStored(%q): got %v, want ErrUnsupported", typ, err)
		}
	}
	for _, size := range []int64{-1, MaxStored + 1, 1<<63 - 1} {
		if _, err := NewStored(XZ, size, 0); err == nil {
			t.Errorf("NewStored of %d bytes: no error", size)
		}
	}

	plain := noise(200_000)
	s := newStored(t, XZ, plain)
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, s.Size() + 1}, {s.Size(), 1}, {1, 1<<63 - 1}, {1<<63 - 1, 1}} {
		if err := s.WriteRange(io.Discard, r[0], r[1], from(plain, 10)); err == nil {
			t.Errorf("range %d+%d: no error", r[0], r[1])
		}
	}

	boom := errors.New("boom")
	for name, test := range map[string]struct {
		w    io.Writer
		src  func(io.Writer, int64, int64) error
		want error
	}{
		"source fails":     {io.Discard, func(io.Writer, int64, int64) error { return boom }, boom},
		"source too short": {io.Discard, func(w io.Writer, off, n int64) error { return from(plain, 10)(w, off, n-1) }, io.ErrUnexpectedEOF},
		"source too long": {io.Discard, func(w io.Writer, off, n int64) error {
			if err := from(plain, 10)(w, off, n); err != nil {
				return err
			}
			_, err := w.Write([]byte{0})
			return err
		}, errTooMuchPlain},
		"writer fails": {failAfter{new(int), 1000, boom}, from(plain, 100), boom},
	} {
		err := s.WriteRange(test.w, 0, s.Size(), test.src)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

// failAfter fails once limit bytes have been written.
type failAfter struct {
	n     *int
	limit int
	err   error
}

func (f failAfter) Write(p []byte) (int, error) {
	if *f.n += len(p); *f.n > f.limit {
		return 0, f.err
	}
	return len(p), nil
}

// Sizes that no test can write: the layout must still add up.
func TestStoredHuge(t *testing.T) {
	for _, typ := range storedTypes {
		for _, size := range []int64{1<<32 + 3, 1 << 45, MaxStored} {
			s := must(NewStored(typ, size, 0))
			if got := s.plainBefore(s.Size()); got != size {
				t.Errorf("%s of %d: plain bytes before the end: got %d", typ, size, got)
			}
			off := s.Size() - 100_000
			from := s.plainBefore(off)
			var b bytes.Buffer
			err := s.WriteRange(&b, off, 100_000, func(w io.Writer, off, n int64) error {
				if off != from || off+n != size {
					t.Errorf("%s of %d: source asked for %d+%d, want %d to the end", typ, size, off, n, from)
				}
				_, err := w.Write(make([]byte, n))
				return err
			})
			if err != nil || b.Len() != 100_000 || !bytes.HasSuffix(b.Bytes(), s.suffix) {
				t.Errorf("%s of %d: last bytes: got %d, %v", typ, size, b.Len(), err)
			}
		}
	}
}
