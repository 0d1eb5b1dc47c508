package nar_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/nar"
)

// file is one file of a NAR in memory.
type file struct {
	nar.Header
	contents string
}

// tree is a NAR in memory, in NAR order.
type tree []file

func regular(path, contents string) file {
	return file{nar.Header{Path: path, Type: nar.Regular, Size: int64(len(contents))}, contents}
}

func executable(path, contents string) file {
	f := regular(path, contents)
	f.Executable = true
	return f
}

func directory(path string) file {
	return file{Header: nar.Header{Path: path, Type: nar.Directory}}
}

func symlink(path, target string) file {
	return file{Header: nar.Header{Path: path, Type: nar.Symlink, Target: target}}
}

// varied has every construct of the format, and every length of padding.
var varied = tree{
	directory(""),
	directory("a"),
	directory("a/empty"),
	executable("a/exec", "#!/bin/sh\n"),
	regular("a-b", ""), // sorts before "a/" as a path, but not in a NAR
	regular("a.b", "1"),
	directory("b"),
	directory("b/c"),
	regular("b/c/d", strings.Repeat("x", 8)),
	symlink("b/link", "../a/exec"),
	regular("four", "1234"),
	symlink("link", "/nix/store/00000000000000000000000000000000-x"),
	executable("none", ""),
	regular("~\xff\x80", "not UTF-8"),
	symlink("\x80", "\xff"),
	regular("\xff", strings.Repeat("long", 100)),
}

func (t tree) write(w io.Writer) error {
	nw := nar.NewWriter(w)
	for i := range t {
		if err := nw.WriteHeader(&t[i].Header); err != nil {
			return err
		}
		if _, err := io.WriteString(nw, t[i].contents); err != nil {
			return err
		}
	}
	return nw.Close()
}

func (t tree) bytes(tb testing.TB) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := t.write(&b); err != nil {
		tb.Fatalf("write tree: %v", err)
	}
	return b.Bytes()
}

// readTree reads a whole NAR. The tree has the offsets that the reader reported.
func readTree(src io.Reader) (tree, error) {
	r := nar.NewReader(src)
	var t tree
	for {
		h, err := r.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return t, err
		}
		if h.Type == nar.Regular && r.Offset() != h.Offset {
			return t, fmt.Errorf("%q: Offset() = %d, header says %d", h.Path, r.Offset(), h.Offset)
		}
		contents, err := io.ReadAll(r)
		if err != nil {
			return t, err
		}
		t = append(t, file{*h, string(contents)})
	}
}

// check compares t with what was read from data.
func (t tree) check(tb testing.TB, got tree, data []byte) {
	tb.Helper()
	if len(got) != len(t) {
		tb.Fatalf("got %d files, want %d", len(got), len(t))
	}
	for i, want := range t {
		g := got[i]
		switch g.Type {
		case nar.Regular:
			if !bytes.HasPrefix(data[g.Offset:], []byte(want.contents)) {
				tb.Errorf("%q: contents are not at offset %d", g.Path, g.Offset)
			}
		case nar.Symlink:
			if !bytes.HasPrefix(data[g.Offset:], []byte(want.Target)) {
				tb.Errorf("%q: target is not at offset %d", g.Path, g.Offset)
			}
		}
		g.Offset = 0
		if g != want {
			tb.Errorf("file %d: got %+v, want %+v", i, g, want)
		}
	}
}

// randomTree returns a tree of a few hundred files at most.
func randomTree(rng *rand.Rand) tree {
	var t tree
	var add func(path string, depth int)
	add = func(path string, depth int) {
		switch kind := rng.IntN(6); {
		case path == "" && kind > 0, kind < 3 && depth < 8 && len(t) < 200:
			t = append(t, directory(path))
			for _, name := range randomNames(rng) {
				add(strings.TrimPrefix(path+"/"+name, "/"), depth+1)
			}
		case kind == 3:
			t = append(t, symlink(path, randomBytes(rng, 1+rng.IntN(100))))
		default:
			f := regular(path, randomBytes(rng, rng.IntN(1<<rng.IntN(18))))
			f.Executable = rng.IntN(2) == 0
			t = append(t, f)
		}
	}
	add("", 0)
	return t
}

func randomNames(rng *rand.Rand) []string {
	var names []string
	for range rng.IntN(6) {
		name := strings.ReplaceAll(randomBytes(rng, 1+rng.IntN(12)), "/", "_")
		if name != "." && name != ".." {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// randomBytes returns n bytes, none of them NUL.
func randomBytes(rng *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + rng.IntN(255))
	}
	return string(b)
}

// newRand returns a generator whose seed the test's log shows.
func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// wantError checks that err is want, is located, and is not also another sentinel.
func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	var located *nar.Error
	if !errors.As(err, &located) {
		t.Errorf("error %v is not a *nar.Error", err)
	}
	for _, other := range []error{nar.ErrFormat, io.ErrUnexpectedEOF, io.EOF} {
		if other != want && errors.Is(err, other) {
			t.Errorf("error %v is also %v", err, other)
		}
	}
}
