package nar_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/dedupd/dedupd/nar"
)

func TestReader(t *testing.T) {
	data := varied.bytes(t)
	for _, test := range []struct {
		name string
		src  io.Reader
	}{
		{"whole", bytes.NewReader(data)},
		{"one byte", iotest.OneByteReader(bytes.NewReader(data))},
		{"half", iotest.HalfReader(bytes.NewReader(data))},
		{"data with EOF", iotest.DataErrReader(bytes.NewReader(data))},
		{"empty reads", &emptyReads{src: bytes.NewReader(data)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := readTree(test.src)
			if err != nil {
				t.Fatal(err)
			}
			varied.check(t, got, data)
		})
	}
}

// emptyReads returns nothing, and no error, before every read that returns a byte.
type emptyReads struct {
	src io.Reader
	n   int
}

func (r *emptyReads) Read(p []byte) (int, error) {
	if r.n++; r.n%3 > 0 {
		return 0, nil
	}
	return r.src.Read(p[:min(1, len(p))])
}

func TestRootFileOffset(t *testing.T) {
	data := tree{regular("", "x")}.bytes(t)
	h, err := nar.NewReader(bytes.NewReader(data)).Next()
	if err != nil || h.Offset != 96 {
		t.Fatalf("got %+v, %v, want offset 96", h, err)
	}
}

// walk reads or discards everything, and returns the error that ended it.
func walk(src io.Reader, discard bool) error {
	r := nar.NewReader(src)
	for {
		h, err := r.Next()
		if err != nil {
			if _, again := r.Next(); again != err {
				return errors.New("the error did not stick")
			}
			return err
		}
		if discard {
			continue
		}
		if n, err := io.Copy(io.Discard, r); err != nil {
			if _, again := r.Next(); again != err {
				return errors.New("the error did not stick")
			}
			return err
		} else if n != h.Size {
			return errors.New("contents ended early without an error")
		}
	}
}

// plainReader hides every other method of a reader.
type plainReader struct{ io.Reader }

func TestTruncated(t *testing.T) {
	large := tree{directory(""), regular("a", strings.Repeat("a", 300<<10)), regular("b", "b")}.bytes(t)
	cut := func(t *testing.T, data []byte, n int) {
		t.Helper()
		for _, discard := range []bool{false, true} {
			wantError(t, walk(bytes.NewReader(data[:n]), discard), io.ErrUnexpectedEOF)
			wantError(t, walk(plainReader{bytes.NewReader(data[:n])}, discard), io.ErrUnexpectedEOF)
		}
	}
	small := varied.bytes(t)
	for n := range small {
		cut(t, small, n)
	}
	for n := 0; n < len(large); n += 4093 {
		cut(t, large, n)
	}
	for n := 1; n < 600; n++ { // around the end of the large file
		cut(t, large, len(large)-n)
	}
}

func TestSourceError(t *testing.T) {
	data := varied.bytes(t)
	broken := errors.New("disk on fire")
	for n := range data {
		src := io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken))
		wantError(t, walk(src, n%2 == 0), broken)
	}
	// After the last byte as well: whether more follows is not known.
	wantError(t, walk(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), false), broken)
	wantError(t, walk(iotest.ErrReader(io.ErrClosedPipe), false), io.ErrClosedPipe)
	wantError(t, walk(stuck{}, false), io.ErrNoProgress)
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// TestBitFlips flips every bit: the reader must not panic, and what it accepts must
// still be canonical.
func TestBitFlips(t *testing.T) {
	data := varied.bytes(t)
	accepted := 0
	for i := range len(data) * 8 {
		flipped := bytes.Clone(data)
		flipped[i/8] ^= 1 << (i % 8)
		got, err := readTree(bytes.NewReader(flipped))
		if err != nil {
			continue
		}
		accepted++
		if !bytes.Equal(got.bytes(t), flipped) {
			t.Fatalf("bit %d: accepted, but not canonical", i)
		}
	}
	t.Logf("%d of %d flips hit contents, names or targets and are valid", accepted, len(data)*8)
}

func TestErrorSaysWhere(t *testing.T) {
	data := tree{directory(""), directory("bin"), regular("bin/sh", "12345")}.bytes(t)
	end := bytes.Index(data, []byte("12345")) + 5
	data[end+1] = 1
	err := walk(bytes.NewReader(data), false)
	var located *nar.Error
	if !errors.As(err, &located) || located.Path != "bin/sh" || located.Offset != int64(end) {
		t.Errorf("got %v, want path bin/sh and offset %d", err, end)
	}
}

func TestReadOutsideContents(t *testing.T) {
	r := nar.NewReader(bytes.NewReader(tree{directory(""), regular("a", "abc"), symlink("b", "c")}.bytes(t)))
	p := make([]byte, 10)
	check := func(when string) {
		t.Helper()
		if n, err := r.Read(p); n != 0 || err != io.EOF {
			t.Errorf("%s: Read = %d, %v, want io.EOF", when, n, err)
		}
		if n, err := r.Discard(1); n != 0 || err != nil && err != io.EOF {
			t.Errorf("%s: Discard = %d, %v", when, n, err)
		}
	}
	check("before the root")
	r.Next()
	check("in a directory")
	r.Next()
	if n, err := r.Read(nil); n != 0 || err != nil {
		t.Errorf("empty read: %d, %v", n, err)
	}
	if n, err := r.Read(p); string(p[:n]) != "abc" || err != nil {
		t.Errorf("got %q, %v", p[:n], err)
	}
	check("behind contents")
	r.Next()
	check("in a symlink")
	if h, err := r.Next(); h != nil || err != io.EOF {
		t.Errorf("got %v, %v, want io.EOF", h, err)
	}
	check("at the end")
}

// TestDiscard mixes reads and discards at random and checks bytes and offsets.
func TestDiscard(t *testing.T) {
	rng := newRand(t)
	contents := randomBytes(rng, 700<<10)
	data := tree{directory(""), regular("a", contents), regular("b", "b")}.bytes(t)
	for range 50 {
		var src io.Reader = bytes.NewReader(data)
		if rng.IntN(2) == 0 {
			src = plainReader{src}
		}
		r := nar.NewReader(src)
		r.Next()
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		pos := int64(0)
		for pos < h.Size {
			n := int64(rng.IntN(1 << rng.IntN(20)))
			want := min(n, h.Size-pos)
			if rng.IntN(2) == 0 {
				got, err := r.Discard(n)
				if got != want || err != nil {
					t.Fatalf("Discard(%d) at %d = %d, %v, want %d", n, pos, got, err, want)
				}
			} else {
				p := make([]byte, want)
				if _, err := io.ReadFull(r, p); err != nil {
					t.Fatal(err)
				}
				if string(p) != contents[pos:pos+want] {
					t.Fatalf("wrong bytes at %d", pos)
				}
			}
			pos += want
			if got := r.Offset(); got != h.Offset+pos {
				t.Fatalf("Offset() = %d, want %d", got, h.Offset+pos)
			}
		}
		if n, err := r.Discard(-1); n != 0 || err != nil {
			t.Errorf("Discard(-1) = %d, %v", n, err)
		}
		if h, err := r.Next(); err != nil || h.Path != "b" {
			t.Fatalf("got %v, %v, want b", h, err)
		}
		if h, err := r.Next(); err != io.EOF {
			t.Fatalf("got %v, %v, want io.EOF", h, err)
		}
	}
}

// countingSeeker counts the bytes that are read, not seeked over.
type countingSeeker struct {
	*bytes.Reader
	read   int
	broken bool
}

func (c *countingSeeker) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.read += n
	return n, err
}

func (c *countingSeeker) Seek(offset int64, whence int) (int64, error) {
	if c.broken {
		return 0, os.ErrInvalid
	}
	return c.Reader.Seek(offset, whence)
}

func TestSeek(t *testing.T) {
	data := tree{directory(""), regular("a", strings.Repeat("a", 10<<20)), regular("b", "b")}.bytes(t)
	for _, broken := range []bool{false, true} {
		// Not from the start: only the distance matters.
		src := &countingSeeker{Reader: bytes.NewReader(append([]byte("prefix"), data...)), broken: broken}
		io.CopyN(io.Discard, src, 6)
		if err := walk(src, true); err != io.EOF {
			t.Fatalf("broken %v: %v", broken, err)
		}
		if seeked := src.read < 1<<20; seeked == broken {
			t.Errorf("broken %v: read %d bytes", broken, src.read)
		}
	}
}

// TestLargeReadsAreDirect holds that bulk contents go from the source straight to
// the caller.
func TestLargeReadsAreDirect(t *testing.T) {
	data := tree{regular("", strings.Repeat("a", 1<<20))}.bytes(t)
	var direct bool
	p := make([]byte, 128<<10)
	src := readerFunc(func(q []byte) (int, error) {
		if &q[0] == &p[0] {
			direct = true
		}
		n := copy(q, data)
		data = data[n:]
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	})
	r := nar.NewReader(src)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := r.Read(p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatal(err)
	}
	if !direct {
		t.Error("no read went into the caller's memory")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestRandomTrees(t *testing.T) {
	rng := newRand(t)
	for range 100 {
		want := randomTree(rng)
		data := want.bytes(t)
		got, err := readTree(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		want.check(t, got, data)
		if err := walk(bytes.NewReader(data), true); err != io.EOF {
			t.Fatalf("discarding: %v", err)
		}
	}
}

func BenchmarkSmallFiles(b *testing.B) {
	t := tree{directory("")}
	for i := range 10_000 {
		t = append(t, regular(string([]byte{byte('a' + i/1000), byte('a' + i/100%10), byte('a' + i/10%10), byte('a' + i%10)}), "contents of a small file"))
	}
	benchmark(b, t.bytes(b))
}

func BenchmarkLargeFile(b *testing.B) {
	benchmark(b, tree{regular("", randomBytes(rand.New(rand.NewPCG(1, 2)), 16<<20))}.bytes(b))
}

// benchmark measures with a source that cannot seek, as in an upload.
func benchmark(b *testing.B, data []byte) {
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := walk(plainReader{bytes.NewReader(data)}, true); err != io.EOF {
			b.Fatal(err)
		}
	}
}
