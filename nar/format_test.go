package nar

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// dirOf encodes a root directory around entries, each made by entryOf.
func dirOf(entries ...string) string {
	return encode("nix-archive-1", "(", "type", "directory") + strings.Join(entries, "") + encode(")")
}

// entryOf encodes an entry; node holds the strings between the node's parentheses.
func entryOf(name string, node ...string) string {
	return encode("entry", "(", "name", name, "node", "(") + encode(node...) + encode(")", ")")
}

// rootOf encodes a NAR of a single file.
func rootOf(node ...string) string {
	return encode("nix-archive-1", "(") + encode(node...) + encode(")")
}

func readAll(data string) (paths []string, err error) {
	r := NewReader(strings.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return paths, nil
		}
		if err != nil {
			return paths, err
		}
		paths = append(paths, h.Path)
	}
}

func TestAccepted(t *testing.T) {
	file := []string{"type", "regular", "contents", "x"}
	for _, test := range []struct {
		name  string
		data  string
		paths []string
	}{
		{"root file", rootOf(file...), []string{""}},
		{"empty file", rootOf("type", "regular", "contents", ""), []string{""}},
		{"executable", rootOf("type", "regular", "executable", "", "contents", "x"), []string{""}},
		{"root symlink", rootOf("type", "symlink", "target", "t"), []string{""}},
		{"longest target", rootOf("type", "symlink", "target", strings.Repeat("t", 4095)), []string{""}},
		{"empty directory", dirOf(), []string{""}},
		{"longest name", dirOf(entryOf(strings.Repeat("n", 255), file...)), []string{"", strings.Repeat("n", 255)}},
		{"dots in names", dirOf(entryOf("...", file...), entryOf("..foo", file...), entryOf(".foo", file...)), []string{"", "...", "..foo", ".foo"}},
		{"unsigned order", dirOf(entryOf("\x7f", file...), entryOf("\x80", file...), entryOf("\xff", file...)), []string{"", "\x7f", "\x80", "\xff"}},
		{"prefix first", dirOf(entryOf("a", file...), entryOf("a\x01", file...)), []string{"", "a", "a\x01"}},
		{"case", dirOf(entryOf("A", file...), entryOf("a", file...)), []string{"", "A", "a"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			paths, err := readAll(test.data)
			if err != nil || !slices.Equal(paths, test.paths) {
				t.Errorf("got %q, %v, want %q", paths, err, test.paths)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	var (
		file = []string{"type", "regular", "contents", "x"}
		good = dirOf(entryOf("a", file...))
	)
	// patch replaces the last occurrence of from.
	patch := func(from, to string) string {
		i := strings.LastIndex(good, from)
		return good[:i] + to + good[i+len(from):]
	}
	for _, test := range []struct{ name, data, message string }{
		{"no NAR", "<html>404 Not Found, and then some</html>", "nix-archive-1"},
		{"another version", encode("nix-archive-2", "("), "nix-archive-1"},
		{"trailing byte", good + "\x00", "after the end"},
		{"trailing NAR", good + good, "after the end"},
		{"trailing byte after file", rootOf(file...) + "x", "after the end"},
		{"no parenthesis", encode("nix-archive-1", "[", "type"), `expected "("`},
		{"type missing", encode("nix-archive-1", "(", "contents", "x", "type", "regular", ")"), `expected "type"`},
		{"unknown type", rootOf("type", "fifo", "contents", "x"), "unknown file type"},
		{"type with prefix", rootOf("type", "regularx", "contents", "x"), "unknown file type"},
		{"long tag", rootOf("type", strings.Repeat("r", 33)), "unknown file type"},
		{"huge tag", encode("nix-archive-1", "(", "type") + strings.Repeat("\xff", 16), "unknown file type"},

		{"no contents", rootOf("type", "regular"), `"contents"`},
		{"executable not empty", rootOf("type", "regular", "executable", "x", "contents", "x"), `expected ""`},
		{"executable twice", rootOf("type", "regular", "executable", "", "executable", "", "contents", ""), `"contents"`},
		{"executable late", rootOf("type", "regular", "contents", "x", "executable", ""), `")"`},
		{"contents twice", rootOf("type", "regular", "contents", "x", "contents", "x"), `")"`},
		{"huge contents", encode("nix-archive-1", "(", "type", "regular", "contents") + strings.Repeat("\xff", 8), "contents of"},
		{"contents over int64", encode("nix-archive-1", "(", "type", "regular", "contents") + "\xff\xff\xff\xff\xff\xff\xff\x7f", "contents of"},

		{"no target", rootOf("type", "symlink"), `"target"`},
		{"empty target", rootOf("type", "symlink", "target", ""), "target of 0 bytes"},
		{"long target", rootOf("type", "symlink", "target", strings.Repeat("t", 4096)), "target of 4096 bytes"},
		{"NUL in target", rootOf("type", "symlink", "target", "a\x00b"), "NUL"},
		{"executable symlink", rootOf("type", "symlink", "executable", "", "target", "t"), `expected "target"`},

		{"unknown field in directory", rootOf("type", "directory", "entries"), `expected "entry"`},
		{"contents in directory", rootOf("type", "directory", "contents", "x"), `expected "entry"`},
		{"empty name", dirOf(entryOf("", file...)), "empty name"},
		{"dot", dirOf(entryOf(".", file...)), `"."`},
		{"dot dot", dirOf(entryOf("..", file...)), `".."`},
		{"slash", dirOf(entryOf("a/b", file...)), `"a/b"`},
		{"leading slash", dirOf(entryOf("/", file...)), `"/"`},
		{"NUL in name", dirOf(entryOf("a\x00b", file...)), `a\x00b`},
		{"long name", dirOf(entryOf(strings.Repeat("n", 256), file...)), "name of 256 bytes"},
		{"not sorted", dirOf(entryOf("b", file...), entryOf("a", file...)), `"a" after "b"`},
		{"duplicate", dirOf(entryOf("a", file...), entryOf("a", file...)), `"a" after "a"`},
		{"signed order", dirOf(entryOf("\x80", file...), entryOf("\x7f", file...)), "after"},
		{"prefix last", dirOf(entryOf("ab", file...), entryOf("a", file...)), `"a" after "ab"`},
		{"not sorted around a directory", dirOf(
			entryOf("m", append([]string{"type", "directory"}, "entry", "(", "name", "zz", "node", "(", "type", "directory", ")", ")")...),
			entryOf("a", file...)), `"a" after "m"`},
		{"node before name", encode("nix-archive-1", "(", "type", "directory", "entry", "(", "node", "(", "type", "directory", ")"), `expected "name"`},
		{"no node", encode("nix-archive-1", "(", "type", "directory", "entry", "(", "name", "a", ")", ")", ")"), `"node"`},
		{"two nodes", encode("nix-archive-1", "(", "type", "directory", "entry", "(", "name", "a", "node", "(", "type", "directory", ")",
			"node", "(", "type", "directory", ")", ")", ")"), `expected ")"`},

		{"padding of a tag", patch(encode("regular"), encode("regular")[:15]+"\x01"), "file type"},
		{"padding of a name", patch(encode("a"), encode("a")[:15]+"\x01"), "padding"},
		{"padding of contents", patch(encode("x"), encode("x")[:15]+"\x01"), "padding"},
		{"first padding byte", patch(encode("x"), encode("x")[:9]+"\x01"+encode("x")[10:]), "padding"},
		{"padding of a target", strings.Replace(rootOf("type", "symlink", "target", "t"), encode("t"), encode("t")[:15]+"\x01", 1), "padding"},
		{"padding of the last parenthesis", good[:len(good)-1] + "\x01", "expected"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := readAll(test.data)
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("got error %v, want ErrFormat", err)
			}
			if errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("error %v is also ErrUnexpectedEOF", err)
			}
			if !strings.Contains(err.Error(), test.message) {
				t.Errorf("error %q does not mention %q", err, test.message)
			}
		})
	}
}

// deep returns a NAR whose deepest file is at the given level.
func deep(level int) string {
	var b strings.Builder
	b.WriteString(encode("nix-archive-1", "(", "type", "directory"))
	for range level {
		b.WriteString(encode("entry", "(", "name", "d", "node", "(", "type", "directory"))
	}
	for range level {
		b.WriteString(encode(")", ")"))
	}
	b.WriteString(encode(")"))
	return b.String()
}

func TestDepth(t *testing.T) {
	for _, test := range []struct {
		level int
		ok    bool
	}{{0, true}, {1, true}, {MaxDepth - 1, true}, {MaxDepth, true}, {maxLevels - 1, true}, {maxLevels, false}} {
		r := NewReader(strings.NewReader(deep(test.level)))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if test.ok != (err == io.EOF) {
			t.Errorf("level %d: error %v, want accepted: %v", test.level, err, test.ok)
		}
		if r.Depth() != test.level {
			t.Errorf("level %d: Depth() = %d", test.level, r.Depth())
		}
	}
	r := NewReader(strings.NewReader(rootOf("type", "regular", "contents", "")))
	if _, err := r.Next(); err != nil || r.Depth() != 0 {
		t.Errorf("root file: Depth() = %d, %v", r.Depth(), err)
	}
}

func TestLongPath(t *testing.T) {
	var b strings.Builder
	b.WriteString(encode("nix-archive-1", "(", "type", "directory"))
	for range maxPathLen / 250 {
		b.WriteString(encode("entry", "(", "name", strings.Repeat("d", 250), "node", "(", "type", "directory"))
	}
	if _, err := readAll(b.String()); !errors.Is(err, ErrFormat) {
		t.Errorf("got error %v, want ErrFormat", err)
	}
}

// FuzzReader holds that what the reader accepts is canonical: writing it again
// gives the same bytes.
func FuzzReader(f *testing.F) {
	file := []string{"type", "regular", "contents", "x"}
	f.Add([]byte(rootOf(file...)))
	f.Add([]byte(rootOf("type", "symlink", "target", "t")))
	f.Add([]byte(dirOf()))
	f.Add([]byte(dirOf(entryOf("a", file...), entryOf("b", "type", "regular", "executable", "", "contents", "12345678"))))
	f.Add([]byte(deep(3)))
	f.Add([]byte(dirOf(entryOf("..", file...))))
	f.Add([]byte(rootOf(file...))[:60])
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		var out bytes.Buffer
		w := NewWriter(&out)
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				if !errors.Is(err, ErrFormat) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("unclassified error %v", err)
				}
				return
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatalf("accepted header %+v cannot be written: %v", h, err)
			}
			if _, err := io.Copy(w, r); err != nil {
				return // truncated
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), data) {
			t.Fatalf("accepted %q, wrote %q", data, out.Bytes())
		}
	})
}
