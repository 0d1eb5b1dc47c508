package nar_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/nar"
)

func TestWriterRefuses(t *testing.T) {
	long := strings.Repeat("n", 256)
	for _, test := range []struct {
		name string
		tree tree
	}{
		{"nothing", nil},
		{"no root", tree{regular("a", "")}},
		{"two roots", tree{directory(""), directory("")}},
		{"entry of a file", tree{regular("", ""), regular("a", "")}},
		{"entry of a symlink", tree{directory(""), symlink("a", "b"), regular("a/b", "")}},
		{"no parent", tree{directory(""), regular("a/b", "")}},
		{"parent closed", tree{directory(""), directory("a"), regular("b", ""), regular("a/b", "")}},
		{"parent's prefix", tree{directory(""), directory("ab"), regular("a/b", "")}},
		{"not sorted", tree{directory(""), regular("b", ""), regular("a", "")}},
		{"duplicate", tree{directory(""), regular("a", ""), regular("a", "")}},
		{"path order", tree{directory(""), regular("a-b", ""), directory("a"), regular("a/b", "")}},
		{"absolute", tree{directory(""), regular("/a", "")}},
		{"double slash", tree{directory(""), directory("a"), regular("a//b", "")}},
		{"slash behind", tree{directory(""), directory("a/")}},
		{"dot", tree{directory(""), regular(".", "")}},
		{"dot dot", tree{directory(""), regular("..", "")}},
		{"dot dot inside", tree{directory(""), directory("a"), regular("a/..", "")}},
		{"NUL", tree{directory(""), regular("a\x00", "")}},
		{"long name", tree{directory(""), regular(long, "")}},
		{"empty target", tree{symlink("", "")}},
		{"long target", tree{symlink("", strings.Repeat("t", 4096))}},
		{"NUL in target", tree{symlink("", "a\x00b")}},
		{"no type", tree{file{}}},
		{"negative size", tree{file{Header: nar.Header{Type: nar.Regular, Size: -1}}}},
		{"too short", tree{file{Header: nar.Header{Type: nar.Regular, Size: 1}}}},
		{"too short before the next", tree{directory(""), file{Header: nar.Header{Path: "a", Type: nar.Regular, Size: 1}}, directory("b")}},
		{"too long", tree{file{nar.Header{Type: nar.Regular, Size: 1}, "ab"}}},
		{"contents of a directory", tree{file{nar.Header{Type: nar.Directory}, "ab"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			wantError(t, test.tree.write(io.Discard), nar.ErrFormat)
		})
	}
}

// TestWriterDots has names that another implementation mangles.
func TestWriterDots(t *testing.T) {
	want := tree{directory(""), regular("...", ""), directory("..foo"), regular("..foo/..bar", "x")}
	data := want.bytes(t)
	got, err := readTree(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	want.check(t, got, data)
}

// failAfter is a writer that fails after n bytes.
type failAfter struct {
	n   int
	err error
}

func (w *failAfter) Write(p []byte) (int, error) {
	if len(p) > w.n {
		return w.n, w.err
	}
	w.n -= len(p)
	return len(p), nil
}

func TestWriterSticks(t *testing.T) {
	full := errors.New("disk full")
	w := nar.NewWriter(&failAfter{100 << 10, full})
	var first error
	for _, f := range []file{directory(""), regular("a", strings.Repeat("a", 1<<20)), regular("b", "b")} {
		if err := w.WriteHeader(&f.Header); first == nil {
			first = err
		} else if err != first {
			t.Errorf("WriteHeader: %v, want %v", err, first)
		}
		if _, err := io.WriteString(w, f.contents); first == nil {
			first = err
		} else if err != first {
			t.Errorf("Write: %v, want %v", err, first)
		}
	}
	wantError(t, first, full)
	if err := w.Close(); err != first {
		t.Errorf("Close: %v, want %v", err, first)
	}
}

func TestWriterClosed(t *testing.T) {
	w := nar.NewWriter(io.Discard)
	if err := w.WriteHeader(&nar.Header{Type: nar.Directory}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteHeader(&nar.Header{Path: "a", Type: nar.Directory}); err == nil {
		t.Error("WriteHeader after Close succeeded")
	}
}

// TestWriterReadFrom has contents read from sources that have as much as was announced,
// more, or less.
func TestWriterReadFrom(t *testing.T) {
	const contents = "some contents"
	want := tree{regular("", contents)}.bytes(t)
	for _, test := range []struct {
		source string
		ok     bool
	}{{contents, true}, {contents + " and more", true}, {contents[1:], false}, {"", false}} {
		var b bytes.Buffer
		w := nar.NewWriter(&b)
		if err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(contents))}); err != nil {
			t.Fatal(err)
		}
		if got := w.Offset(); got != 96 {
			t.Errorf("contents begin at %d, want 96", got)
		}
		n, err := w.ReadFrom(strings.NewReader(test.source))
		if want := int64(min(len(test.source), len(contents))); n != want || (err == nil) != test.ok {
			t.Errorf("%q: got %d bytes, %v", test.source, n, err)
		}
		if !test.ok {
			if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(w.Close(), io.ErrUnexpectedEOF) {
				t.Errorf("%q: got %v, want %v for good", test.source, err, io.ErrUnexpectedEOF)
			}
			continue
		}
		if err := w.Close(); err != nil || !bytes.Equal(b.Bytes(), want) || w.Offset() != int64(len(want)) {
			t.Errorf("%q: got %d bytes, want %d (%v)", test.source, b.Len(), len(want), err)
		}
	}
}
