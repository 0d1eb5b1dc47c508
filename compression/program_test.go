package compression

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sync/semaphore"
)

// program returns a Program that decodes even the smallest file.
func program(t testing.TB) *Program {
	t.Helper()
	p, err := FindProgram(t.Context(), 8)
	if err != nil {
		missing(t, "xz of XZ Utils")
	}
	p.min = 1
	return p
}

// decodeWith decodes an xz file in memory that it needs, or in the most that is allowed.
func decodeWith(p *Program, r io.Reader) ([]byte, error) {
	z, err := NewReader(XZ, r, Limits{Program: p})
	if err != nil {
		return nil, err
	}
	defer z.Close()
	if got := Apart(z); got != (p != nil) {
		return nil, fmt.Errorf("Apart: got %v", got)
	}
	return io.ReadAll(z)
}

// kinds are the errors that callers tell apart.
func kinds(err error) (is []error) {
	for _, kind := range []error{ErrCorrupt, io.ErrUnexpectedEOF, ErrTooMuchMemory, ErrProgram} {
		if errors.Is(err, kind) {
			is = append(is, kind)
		}
	}
	return is
}

// The program and the library in Go take, and refuse, the same files.
func TestProgramAgrees(t *testing.T) {
	p := program(t)
	plain := sample(200_000)
	one, two := compressed(t, XZ, plain), compressed(t, XZ, noise(3000), "--check=crc32")
	padded, whole := slices.Concat(one, make([]byte, 8), two, make([]byte, 4)), slices.Concat(plain, noise(3000))
	files := map[string][]byte{
		"plain": one, "empty": compressed(t, XZ, nil), "two streams": slices.Concat(one, two), "padded": padded,
		"sha256": compressed(t, XZ, plain, "--check=sha256"), "no check": compressed(t, XZ, plain, "--check=none"),
		"blocks": compressed(t, XZ, plain, "-T2", "--block-size=65536"), "x86": compressed(t, XZ, plain, "--x86", "--lzma2=preset=6"),
		"delta": compressed(t, XZ, plain, "--delta=dist=4", "--lzma2=preset=1"), "stored": store(t, XZ, plain),
		"64 MiB": compressed(t, XZ, plain, "-9"), "192 MiB": xzWithDictionary(t, plain, 31),
		"4 GiB, later": slices.Concat(one, xzWithDictionary(t, plain, 40)),
		"padded by 3":  slices.Concat(one, make([]byte, 3)), "garbage": append(slices.Clone(one), "garbage!"...),
		"long garbage": append(slices.Clone(one), strings.Repeat("garbage!", 20_000)...), "lzma behind": append(slices.Clone(one), "\x5d\x00\x00\x80\x00"...),
		"unknown check": unknownCheck(t, plain),
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	n := 150
	if testing.Short() {
		n = 30
	}
	for i := range n {
		flipped := bytes.Clone(padded)
		bit := rnd.IntN(8 * len(padded))
		if i%2 == 0 { // in the headers and the index, where there is most to go wrong
			bit = 8*[]int{0, len(one) - 40, len(one), len(padded) - 60}[rnd.IntN(4)] + rnd.IntN(320)
		}
		flipped[bit/8] ^= 1 << (bit % 8)
		files[fmt.Sprintf("bit %d flipped", bit)] = flipped
		cut := rnd.IntN(len(padded))
		files[fmt.Sprintf("cut at %d", cut)] = padded[:cut]
	}
	for name, file := range files {
		want, wantErr := decodeWith(nil, bytes.NewReader(file))
		got, err := decodeWith(p, bytes.NewReader(file))
		if strings.Contains(name, "flipped") && wantErr == nil && errors.Is(err, ErrCorrupt) && bytes.Equal(want, whole) {
			// The first byte of what a range coder made is 0. Only xz looks at it; nothing depends on it.
			continue
		}
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) || errors.Is(err, ErrProgram) {
			t.Errorf("%s: got %d bytes, %v, the library has %d, %v", name, len(got), err, len(want), wantErr)
		} else if !slices.Equal(kinds(err), kinds(wantErr)) {
			t.Errorf("%s: got %v, the library says %v", name, err, wantErr)
		}
	}
}

// unknownCheck returns a file whose check is of a type that is not defined.
func unknownCheck(t testing.TB, plain []byte) []byte {
	file := compressed(t, XZ, plain, "--check=sha256")
	header := withCRC32([]byte{0, 11})
	copy(file[6:], header)
	footer := file[len(file)-12:]
	copy(footer, slices.Concat(withCRC32(append(slices.Clone(footer[4:8]), 0, 11))[6:], footer[4:8], []byte{0, 11}))
	return file
}

// A process ends, and gives its slot back, whatever becomes of the reader.
func TestProgramEnds(t *testing.T) {
	p := program(t)
	p.processes = semaphore.NewWeighted(1)
	plain := noise(1 << 20)
	file := compressed(t, XZ, plain, "-0")
	broken := errors.New("connection reset")
	for name, end := range map[string]func(io.ReadCloser){
		"closed at once":    func(io.ReadCloser) {},
		"closed in between": func(r io.ReadCloser) { io.CopyN(io.Discard, r, 1000) },
		"read to the end": func(r io.ReadCloser) {
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		},
		"killed": func(r io.ReadCloser) {
			r.(*decoder).r.(*process).cmd.Process.Kill()
			if _, err := io.Copy(io.Discard, r); !errors.Is(err, ErrProgram) || errors.Is(err, ErrCorrupt) {
				t.Errorf("killed: got %v, want ErrProgram", err)
			}
		},
	} {
		r := must(NewReader(XZ, bytes.NewReader(file), Limits{Program: p}))
		if !Apart(r) {
			t.Fatalf("%s: the one before has not ended", name)
		}
		end(r)
		r.Close()
	}
	for _, n := range []int{100, len(file) / 2, len(file)} {
		_, err := decodeWith(p, io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrProgram) {
			t.Errorf("source that fails after %d bytes: got %v", n, err)
		}
	}
}

// Small files, and what finds no process free, are decoded here.
func TestProgramIsNotUsed(t *testing.T) {
	p := program(t)
	p.min = programMin
	small, large := compressed(t, XZ, noise(programMin/2)), compressed(t, XZ, noise(2*programMin))
	for _, test := range []struct {
		name string
		file []byte
		busy bool
		want bool
	}{{"small", small, false, false}, {"large", large, false, true}, {"large, all busy", large, true, false}} {
		p.processes = semaphore.NewWeighted(1)
		if test.busy {
			p.processes.TryAcquire(1)
		}
		r := must(NewReader(XZ, bytes.NewReader(test.file), Limits{Program: p}))
		if got := Apart(r); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		r.Close()
	}
}

// Another program of that name is not run.
func TestFindProgram(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := FindProgram(t.Context(), 1); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("without one: got %v, want ErrNotFound", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "xz"), []byte("#!/bin/sh\necho 'xz: unrecognized option' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if p, err := FindProgram(t.Context(), 1); p != nil || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("busybox: got %v, %v, want ErrUnsupported", p, err)
	}
}
