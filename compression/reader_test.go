package compression

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

// decodable are the types that NewReader decodes, None aside.
var decodable = []Type{XZ, Gzip, Zstd, Brotli, LZ4, Bzip2}

// sample returns n bytes that compress like program code: some noise, some repetition from afar.
func sample(n int) []byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 0, n+64)
	for len(b) < n {
		if back := rnd.IntN(len(b) + 1); back > 64 && rnd.IntN(4) > 0 {
			b = append(b, b[len(b)-back:][:32]...)
		} else {
			b = fmt.Appendf(b, "/nix/store/%x-", rnd.Uint64())
		}
	}
	return b[:n]
}

// compressed returns b as typ's program compresses it.
func compressed(t testing.TB, typ Type, b []byte, args ...string) []byte {
	t.Helper()
	return runCLI(t, typ, b, append(args, "-c")...)
}

func TestReaderRoundTrip(t *testing.T) {
	options := map[Type][]string{
		XZ: {"-0", "-6", "-9", "-6 --check=none", "-6 --check=crc32", "-6 --check=sha256", "-T2 --block-size=65536",
			"--x86 --lzma2=preset=6", "--delta=dist=4 --lzma2=preset=1"},
		Gzip:   {"-1", "-6", "-9", "-n"},
		Zstd:   {"-1", "-3", "-19", "--ultra -20", "--long=27", "--no-check", "-T2 -B65536", "--fast"},
		Brotli: {"-q 0", "-q 5", "-q 11 -w 24", "-q 3 -w 10"},
		LZ4:    {"-1", "-9", "-BD", "-q -B4", "-BX", "--no-frame-crc", "-l"},
		Bzip2:  {"-1", "-9"},
	}
	plain := sample(700_000)
	for _, typ := range decodable {
		for _, opts := range options[typ] {
			t.Run(string(typ)+" "+opts, func(t *testing.T) {
				for _, size := range []int{0, 1, 100, len(plain)} {
					if opts == "-l" && size == 0 {
						continue // a legacy lz4 frame without blocks: rejected by the decoder
					}
					file := compressed(t, typ, plain[:size], strings.Fields(opts)...)
					got, err := decode(typ, file)
					if err != nil || !bytes.Equal(got, plain[:size]) {
						t.Errorf("%d bytes: got %d, %v", size, len(got), err)
					}
				}
			})
		}
	}
}

// One file made of several, read in awkward pieces.
func TestReaderMultiStream(t *testing.T) {
	a, b := sample(100_000), noise(70_000)
	want := append(append([]byte{}, a...), b...)
	for _, typ := range []Type{XZ, Gzip, Zstd, LZ4, Bzip2} {
		parts := [][]byte{compressed(t, typ, a), compressed(t, typ, b)}
		files := map[string][]byte{"plain": bytes.Join(parts, nil)}
		skip := []byte("\x5f\x2a\x4d\x18\x03\x00\x00\x00abc\x50\x2a\x4d\x18\x00\x00\x00\x00")
		switch typ {
		case XZ:
			files["padded"] = bytes.Join(append(parts, nil), make([]byte, 4))
		case Zstd, LZ4:
			files["skippable frames"] = bytes.Join([][]byte{nil, parts[0], parts[1], nil}, skip)
		}
		for name, file := range files {
			for how, wrap := range map[string]func(io.Reader) io.Reader{
				"whole":       func(r io.Reader) io.Reader { return r },
				"bytes":       iotest.OneByteReader,
				"data at EOF": iotest.DataErrReader,
			} {
				r, err := NewReader(typ, wrap(bytes.NewReader(file)), Limits{})
				if err != nil {
					t.Errorf("%s, %s, %s: %v", typ, name, how, err)
					continue
				}
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, %s, %s: got %d bytes, %v, want %d", typ, name, how, len(got), err, len(want))
				}
				r.Close()
			}
		}
	}
}

func TestReaderTruncated(t *testing.T) {
	plain := sample(300_000)
	for _, typ := range decodable {
		file := compressed(t, typ, plain)
		cuts := []int{0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 13, 20}
		for i := range 64 {
			cuts = append(cuts, len(file)*i/64)
		}
		for i := range 40 {
			cuts = append(cuts, len(file)-1-i)
		}
		for _, cut := range cuts {
			got, err := decode(typ, file[:cut])
			if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s cut at %d of %d: got %v, want ErrCorrupt and ErrUnexpectedEOF", typ, cut, len(file), err)
			}
			if !bytes.HasPrefix(plain, got) {
				t.Errorf("%s cut at %d of %d: got bytes that are not the file's", typ, cut, len(file))
			}
		}
	}
}

func TestReaderTrailingGarbage(t *testing.T) {
	plain := sample(100_000)
	for _, typ := range decodable {
		file := compressed(t, typ, plain)
		for _, garbage := range []string{"x", "\x00", "garbage!", strings.Repeat("g", 100_000)} {
			for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.DataErrReader} {
				r, err := NewReader(typ, wrap(strings.NewReader(string(file)+garbage)), Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err = io.Copy(io.Discard, r); !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s with %d bytes of %.8q behind: got %v, want ErrCorrupt", typ, len(garbage), garbage, err)
				}
				r.Close()
			}
		}
	}
}

// With a checksum a flipped bit is noticed, or changes nothing; without one, anything but a panic.
func TestReaderBitFlips(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	plain := sample(50_000)
	for _, typ := range decodable {
		file := compressed(t, typ, plain)
		for i := range 600 {
			bit := i // the header's bits, then others
			if i >= 300 {
				bit = rnd.IntN(8 * len(file))
			}
			flipped := bytes.Clone(file)
			flipped[bit/8] ^= 1 << (bit % 8)
			got, err := decode(typ, flipped)
			if err == nil && typ != Brotli && !bytes.Equal(got, plain) {
				t.Errorf("%s: bit %d flipped: got %d wrong bytes and no error", typ, bit, len(got))
			}
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooMuchMemory) {
				t.Errorf("%s: bit %d flipped: got %v, want ErrCorrupt", typ, bit, err)
			}
		}
	}
}

// A failing input is reported as itself, wherever it fails: not as corruption, and not as the end.
func TestReaderInputError(t *testing.T) {
	plain := sample(100_000)
	for _, typ := range append([]Type{None}, decodable...) {
		file := plain
		if typ != None {
			file = compressed(t, typ, plain)
		}
		for _, want := range []error{errors.New("connection reset"), io.ErrUnexpectedEOF} {
			for _, n := range []int{0, 5, 100, len(file) / 2, len(file) - 1, len(file)} {
				r, err := NewReader(typ, io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(want)), Limits{})
				if err == nil {
					_, err = io.Copy(io.Discard, r)
					r.Close()
				}
				if !errors.Is(err, want) || errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: %v after %d bytes: got %v", typ, want, n, err)
				}
			}
		}
	}
}

// xzWithDictionary returns a stored xz file whose block header asks for another dictionary.
func xzWithDictionary(t testing.TB, plain []byte, props byte) []byte {
	file := store(t, XZ, plain)
	header := withCRC32([]byte{2, 0, 0x21, 1, props, 0, 0, 0})
	copy(file[12:], header)
	return file
}

// zstdWithWindow returns a stored zstd file whose frame header asks for another window.
func zstdWithWindow(t testing.TB, plain []byte, log int) []byte {
	file := store(t, Zstd, plain)
	file[5] = byte(log-10) << 3
	return file
}

func TestReaderMemoryLimit(t *testing.T) {
	plain := noise(1000)
	small := Limits{MaxMemory: commonWindow + overhead}
	tests := []struct {
		name   string
		t      Type
		file   []byte
		limits Limits
		ok     bool
	}{
		{"xz 128 MiB", XZ, xzWithDictionary(t, plain, 30), Limits{}, true},
		{"xz 192 MiB", XZ, xzWithDictionary(t, plain, 31), Limits{}, false},
		{"xz 4 GiB", XZ, xzWithDictionary(t, plain, 40), Limits{}, false},
		{"xz 8 MiB of 8", XZ, xzWithDictionary(t, plain, 22), small, true},
		{"xz 12 MiB of 8", XZ, xzWithDictionary(t, plain, 23), small, false},
		{"zstd 128 MiB", Zstd, zstdWithWindow(t, plain, 27), Limits{}, true},
		{"zstd 256 MiB", Zstd, zstdWithWindow(t, plain, 28), Limits{}, false},
		{"zstd 2 GiB", Zstd, zstdWithWindow(t, plain, 31), Limits{}, false},
		{"zstd 2 TiB", Zstd, zstdWithWindow(t, plain, 41), Limits{}, false},
		{"zstd 8 MiB of 8", Zstd, zstdWithWindow(t, plain, 23), small, true},
		{"zstd 16 MiB of 8", Zstd, zstdWithWindow(t, plain, 24), small, false},
		{"zstd single segment of 2^63", Zstd, []byte("\x28\xb5\x2f\xfd\xe0\x00\x00\x00\x00\x00\x00\x00\x80\x01\x00\x00"), Limits{}, false},
		{"brotli 16 MiB of 8", Brotli, []byte{0x0f, 3}, small, false},
		{"gzip of 1 KiB", Gzip, store(t, Gzip, plain), Limits{MaxMemory: 1 << 10}, false},
		{"a later xz stream", XZ, append(store(t, XZ, plain), xzWithDictionary(t, plain, 23)...), small, false},
		{"a later zstd frame", Zstd, append(store(t, Zstd, plain), zstdWithWindow(t, plain, 24)...), small, false},
		{"a later zstd frame, default", Zstd, append(store(t, Zstd, plain), zstdWithWindow(t, plain, 28)...), Limits{}, false},
		{"a later zstd frame within 8 MiB", Zstd, append(store(t, Zstd, plain), zstdWithWindow(t, plain, 23)...), small, true},
	}
	for _, test := range tests {
		r, err := NewReader(test.t, bytes.NewReader(test.file), test.limits)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if test.ok && err != nil || !test.ok && !errors.Is(err, ErrTooMuchMemory) {
			t.Errorf("%s: got %v, want ok = %v or ErrTooMuchMemory", test.name, err, test.ok)
		}
	}
}

func TestReaderUnsupported(t *testing.T) {
	for _, typ := range []Type{Lzip, LZMA, LZOP, LRZip, GRZip, Compress} {
		_, err := NewReader(typ, strings.NewReader("whatever it is"), Limits{})
		var u *UnsupportedError
		if !errors.As(err, &u) || u.Type != typ {
			t.Errorf("%s: got %v, want UnsupportedError", typ, err)
		}
	}
	if _, err := NewReader("nonsense", strings.NewReader("x"), Limits{}); !errors.Is(err, ErrUnknown) {
		t.Errorf("nonsense: got %v, want ErrUnknown", err)
	}
}

func TestReaderClose(t *testing.T) {
	for _, typ := range storedTypes {
		r := must(NewReader(typ, bytes.NewReader(store(t, typ, noise(10))), Limits{}))
		for range 2 {
			if err := r.Close(); err != nil {
				t.Errorf("%s: Close: %v", typ, err)
			}
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("%s: Read after Close: got %d, %v", typ, n, err)
		}
	}
}

// Pooled decoders carry nothing from one stream to another, good or bad.
func TestReaderReuse(t *testing.T) {
	plain := sample(200_000)
	files := map[Type][][]byte{}
	for _, typ := range decodable {
		good := compressed(t, typ, plain)
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 0x55
		files[typ] = [][]byte{good, bad, good[:len(good)/3], store2(t, typ, plain[:70_000])}
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(i)))
			for range 40 {
				typ := decodable[rnd.IntN(len(decodable))]
				which := rnd.IntN(4)
				got, err := decode(typ, files[typ][which])
				switch {
				case which == 0 && (err != nil || !bytes.Equal(got, plain)):
					t.Errorf("%s: good file: got %d bytes, %v", typ, len(got), err)
				case which == 3 && (err != nil || !bytes.Equal(got, plain[:70_000])):
					t.Errorf("%s: stored file: got %d bytes, %v", typ, len(got), err)
				case which == 2 && err == nil:
					t.Errorf("%s: cut file: no error", typ)
				}
			}
		})
	}
	wg.Wait()
}

// store2 is store, or the program's encoding where there is no stored mode.
func store2(t testing.TB, typ Type, plain []byte) []byte {
	if typ.Reproducible() {
		return store(t, typ, plain)
	}
	return compressed(t, typ, plain)
}
