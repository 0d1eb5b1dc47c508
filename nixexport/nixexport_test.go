package nixexport_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixexport"
)

const storeDir = "/nix/store"

func path(t testing.TB, n int) narinfo.StorePath {
	t.Helper()
	p, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-package-%d", n, n))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tree is a NAR of every kind of file, with names, targets and contents that are words of the format.
func tree(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	for _, h := range []*nar.Header{
		{Type: nar.Directory},
		{Path: "(", Type: nar.Regular, Size: 1, Executable: true},
		{Path: ")", Type: nar.Symlink, Target: ")"},
		{Path: "contents", Type: nar.Directory},
		{Path: "contents/name", Type: nar.Regular},
		{Path: "target", Type: nar.Regular, Size: 100_000},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte(")"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// file is a NAR of a file.
func file(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	if err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A record is a path and its NAR.
type record struct {
	nixexport.Path
	nar []byte
}

func records(t testing.TB) []record {
	t.Helper()
	a, b := path(t, 1), path(t, 2)
	return []record{
		{nixexport.Path{StorePath: a}, tree(t)},
		{nixexport.Path{StorePath: b, References: []narinfo.StorePath{a, b}, Deriver: path(t, 3)}, file(t, "text")},
	}
}

func write(t testing.TB, records []record) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nixexport.NewWriter(&b, storeDir)
	for _, r := range records {
		if err := w.Write(&r.Path, func(w io.Writer) error { _, err := w.Write(r.nar); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read reads a stream to its end.
func read(r io.Reader, nars bool) (all []record, err error) {
	s := nixexport.NewReader(r, storeDir)
	for {
		body, err := s.Next()
		if err == io.EOF {
			return all, nil
		} else if err != nil {
			return all, err
		}
		var text []byte
		if nars {
			if text, err = io.ReadAll(body); err != nil {
				return all, err
			}
		}
		p, err := s.Path()
		if err != nil {
			return all, err
		}
		all = append(all, record{*p, text})
	}
}

func TestStream(t *testing.T) {
	want := records(t)
	stream := write(t, want)
	for name, r := range map[string]io.Reader{
		"whole":         bytes.NewReader(stream),
		"byte by byte":  iotest.OneByteReader(bytes.NewReader(stream)),
		"error at last": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		got, err := read(r, true)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%s: got %d paths, %v", name, len(got), err)
		}
		for i := range got {
			if g, w := got[i], want[i]; g.StorePath != w.StorePath || g.Deriver != w.Deriver || !slices.Equal(g.References, w.References) || !bytes.Equal(g.nar, w.nar) {
				t.Errorf("%s: got %+v, want %+v", name, g.Path, w.Path)
			}
		}
	}
	if got, err := read(bytes.NewReader(stream), false); err != nil || len(got) != len(want) {
		t.Errorf("without NARs: got %d paths, %v", len(got), err)
	}
	if got, err := read(bytes.NewReader(slices.Concat(stream, stream)), true); err != nil || len(got) != 2*len(want) {
		t.Errorf("two streams: got %d paths, %v", len(got), err)
	}
	if got, err := read(bytes.NewReader(write(t, nil)), true); err != nil || len(got) != 0 {
		t.Errorf("an empty stream: got %d paths, %v", len(got), err)
	}
}

// TestReal reads a stream that Nix has written, and writes the same bytes.
func TestReal(t *testing.T) {
	stream := realStream(t)
	all, err := read(bytes.NewReader(stream), true)
	if err != nil || len(all) != 2 || len(all[1].References) != 2 || !all[1].Deriver.IsDerivation() {
		t.Fatalf("got %+v, %v", all, err)
	}
	if got := write(t, all); !bytes.Equal(got, stream) {
		t.Errorf("got %q, want %q", got, stream)
	}
}

// realStream is what Nix 2.26 and 2.34 write of a path that refers to itself and to another one.
func realStream(t testing.TB) []byte {
	t.Helper()
	stream, err := os.ReadFile("testdata/nix-2.26.export")
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// TestTruncated cuts a stream at every place, but for most of the large file.
func TestTruncated(t *testing.T) {
	stream := write(t, records(t))
	for n := range len(stream) {
		if n > 1200 && n < len(stream)-1200 {
			continue
		}
		for _, nars := range []bool{true, false} {
			if got, err := read(bytes.NewReader(stream[:n]), nars); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%d bytes: got %d paths, %v", n, len(got), err)
			}
		}
	}
	broken := errors.New("broken")
	if _, err := read(io.MultiReader(bytes.NewReader(stream[:len(stream)-8]), iotest.ErrReader(broken)), true); !errors.Is(err, broken) {
		t.Errorf("an error of the source: got %v", err)
	}
}

// TestMalformed changes what is between the NARs.
func TestMalformed(t *testing.T) {
	small := []record{{nixexport.Path{StorePath: path(t, 1), References: []narinfo.StorePath{path(t, 1)}}, file(t, "text")}}
	stream := string(write(t, small))
	end := len(stream) - 8
	number := func(n byte) string { return string(append([]byte{n}, make([]byte, 7)...)) }
	huge := strings.Repeat("\xff", 8)
	name := storeDir + "/" + small[0].StorePath.String()
	for what, text := range map[string]string{
		"another format":     "PK" + stream,
		"no NAR":             number(1) + number(4) + "nope\x00\x00\x00\x00",
		"a huge word":        number(1) + huge + stream[16:],
		"a huge file":        strings.Replace(stream, number(8)+"contents"+number(4), number(8)+"contents"+huge, 1),
		"another magic":      strings.Replace(stream, "NIXE", "NIXF", 1),
		"a huge name":        strings.Replace(stream, "NIXE\x00\x00\x00\x00", "NIXE\x00\x00\x00\x00"+huge, 1),
		"another store":      strings.Replace(stream, name, "/gnu/store"+name[10:], 1),
		"many references":    stream[:strings.LastIndex(stream, number(1)+number(byte(len(name))))] + huge,
		"padding":            stream[:end-17] + "x" + stream[end-16:end],
		"another signature":  stream[:end-8] + number(2),
		"a huge signature":   stream[:end-8] + number(1) + huge,
		"something behind":   stream + "more than nothing",
		"bytes after a path": stream[:end] + number(7),
	} {
		if text == stream {
			t.Fatalf("%s: nothing was changed", what)
		}
		if got, err := read(strings.NewReader(text), true); !errors.Is(err, nixexport.ErrFormat) {
			t.Errorf("%s: got %d paths, %v", what, len(got), err)
		}
	}
	// Nix before 2.0 signed paths.
	signed := stream[:end-8] + number(1) + number(3) + "sig\x00\x00\x00\x00\x00" + number(0)
	if got, err := read(strings.NewReader(signed), true); err != nil || len(got) != 1 {
		t.Errorf("a signature: got %d paths, %v", len(got), err)
	}
}

// TestWriterErrors leaves a stream without an end where a NAR cannot be had.
func TestWriterErrors(t *testing.T) {
	var b bytes.Buffer
	w := nixexport.NewWriter(&b, storeDir)
	broken := errors.New("broken")
	if err := w.Write(&nixexport.Path{}, func(io.Writer) error { return broken }); err != broken {
		t.Errorf("got %v, want %v", err, broken)
	}
	if err := w.Close(); err != broken {
		t.Errorf("close: got %v, want %v", err, broken)
	}
}

// FuzzReader reads anything, with and without NARs: the same paths come, and what was read
// whole can be written and read again.
func FuzzReader(f *testing.F) {
	f.Add(write(f, records(f)))
	f.Add(write(f, nil))
	f.Add(realStream(f))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := read(bytes.NewReader(text), true)
		skipped, err2 := read(bytes.NewReader(text), false)
		if len(all) != len(skipped) || (err == nil) != (err2 == nil) {
			t.Fatalf("got %d paths, %v; without NARs %d, %v", len(all), err, len(skipped), err2)
		}
		if err != nil {
			return
		}
		again, err := read(bytes.NewReader(write(t, all)), true)
		if err != nil || len(again) != len(all) {
			t.Fatalf("again: got %d paths, %v", len(again), err)
		}
	})
}
