package bucket_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/buckettest"
)

func openDir(t testing.TB, path string) bucket.Bucket {
	t.Helper()
	b, err := bucket.Open(t.Context(), "file://"+path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDirConformance(t *testing.T) {
	buckettest.Run(t, func(t *testing.T) bucket.Bucket {
		path := t.TempDir()
		t.Cleanup(func() { wantNoTmp(t, path) })
		return openDir(t, path)
	})
}

// wantNoTmp fails if a Put has left its temporary file behind.
func wantNoTmp(t *testing.T, path string) {
	entries, err := os.ReadDir(filepath.Join(path, ".tmp"))
	if err != nil || len(entries) != 0 {
		t.Errorf("temporary files: got %v, %v, want none", entries, err)
	}
}

func TestOpen(t *testing.T) {
	empty, used, newer := t.TempDir(), t.TempDir(), t.TempDir()
	mustWrite(t, filepath.Join(used, "thesis.tex"), "")
	mustWrite(t, filepath.Join(newer, ".dedupd-bucket"), "dedupd bucket, format 2\n")
	fresh := t.TempDir() // as an interrupted Open leaves it, on a new file system
	for _, dir := range []string{".tmp", "lost+found"} {
		if err := os.Mkdir(filepath.Join(fresh, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		url string
		err string // part of the message; "" for none
	}{
		{"file://" + empty, ""},
		{"file://" + empty, ""}, // now it is a bucket
		{"file://" + empty + "/new%20one", ""},
		{"file://" + fresh, ""},
		{"file://" + empty + "/no/parent", "no such file"},
		{"file://" + used, "nor empty"},
		{"file://" + newer, "newer dedupd"},
		{"file://host" + empty, "form file:///"},
		{"file://" + empty + "?x=y", "form file:///"},
		{"file:relative", "form file:///"},
		{"file://", "form file:///"},
		{"/plain/path", "scheme"},
		{"gs://b", `"gs" is not supported; use file:///`},
		{"http://user:secret@[::1", "parse"},
	} {
		b, err := bucket.Open(t.Context(), c.url)
		switch {
		case c.err == "" && err != nil:
			t.Errorf("Open(%s): %v", c.url, err)
		case c.err == "" && b.String() != c.url:
			t.Errorf("String: got %s, want %s", b, c.url)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("Open(%s): got error %v, want one with %q", c.url, err, c.err)
		case err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("Open(%s): the error gives the password away: %v", c.url, err)
		}
	}
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCheckKey(t *testing.T) {
	for _, key := range []string{"a", "Az09._-", "w/000001-x.pack", strings.Repeat("a", 255), "-", "_.."} {
		if err := bucket.CheckKey(key); err != nil {
			t.Errorf("CheckKey(%q): %v", key, err)
		}
	}
	for _, key := range []string{"", ".", "..", "a/..", ".a", "a/.b", "/a", "a/", "a//b", "a\\b", "a:b", "a\n", "é",
		strings.Repeat("a", 256), strings.Repeat("a/", 256) + "a"} {
		if err := bucket.CheckKey(key); err == nil {
			t.Errorf("CheckKey(%q): got no error", key)
		}
	}
}

// A bucket that vanishes must not look like one without objects.
func TestDirVanished(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b")
	b := openDir(t, path)
	if err := b.Put(t.Context(), "w/p", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"ReadAt": func() error { return b.ReadAt(t.Context(), "w/p", make([]byte, 1), 0) },
		"Stat":   func() error { _, err := b.Stat(t.Context(), "w/p"); return err },
		"List":   func() error { return b.List(t.Context(), "", "", func(bucket.Info) error { return nil }) },
		"Delete": func() error { return b.Delete(t.Context(), "w/p") },
		"Put":    func() error { return b.Put(t.Context(), "w/q", strings.NewReader("x"), 1) },
	} {
		err := call()
		if err == nil || errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("%s: got error %v, want one that is not ErrNotFound", name, err)
		}
	}
}

// A file system holds an object or a directory under one name. Neither is harmed.
func TestDirPutInTheWay(t *testing.T) {
	b := openDir(t, t.TempDir())
	for _, c := range []struct{ first, second string }{{"a", "a/b"}, {"a", "a/b/c"}, {"d/e", "d"}, {"d/e/f", "d/e"}} {
		if err := b.Put(t.Context(), c.first, strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
		err := b.Put(t.Context(), c.second, strings.NewReader("y"), 1)
		if err == nil || errors.Is(err, bucket.ErrExists) {
			t.Errorf("Put(%s) beside %s: got error %v, want another one", c.second, c.first, err)
		}
		if _, err := b.Stat(t.Context(), c.first); err != nil {
			t.Errorf("Stat(%s): %v", c.first, err)
		}
		if err := b.Delete(t.Context(), c.first); err != nil {
			t.Fatal(err)
		}
	}
}

// What a crash leaves behind is cleared when it is old, and never shows up.
func TestDirOldTemporaryFiles(t *testing.T) {
	path := t.TempDir()
	openDir(t, path)
	old, young := filepath.Join(path, ".tmp", "old"), filepath.Join(path, ".tmp", "young")
	mustWrite(t, old, "half a pa")
	mustWrite(t, young, "half a pa")
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	b := openDir(t, path)
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("old temporary file: got %v, want it removed", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("young temporary file: %v", err)
	}
	b.List(t.Context(), "", "", func(i bucket.Info) error {
		t.Errorf("List: got %v", i)
		return nil
	})
}

// A file is read from its start, wherever its position is, which stays.
func TestDirPutFile(t *testing.T) {
	b := openDir(t, t.TempDir())
	data := buckettest.Bytes(1, 20<<20)
	name := filepath.Join(t.TempDir(), "f")
	mustWrite(t, name, string(data))
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const position = 12345
	f.Seek(position, 0)
	if err := b.Put(t.Context(), "w/p", f, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if got, _ := f.Seek(0, 1); got != position {
		t.Errorf("position: got %d, want %d", got, position)
	}
	got := make([]byte, len(data))
	if err := b.ReadAt(t.Context(), "w/p", got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("ReadAt: %v, or other bytes", err)
	}
	if err := b.Put(t.Context(), "w/q", f, int64(len(data))+1); err == nil {
		t.Error("Put of more than the file has: got no error")
	}
	f.Close()
	if err := b.Put(t.Context(), "w/q", f, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Put of a closed file: got error %v, want os.ErrClosed", err)
	}
}

func BenchmarkDirReadAt(b *testing.B) {
	bk := openDir(b, b.TempDir())
	const size = 32 << 20
	if err := bk.Put(b.Context(), "writer/000001-abcdef", bytes.NewReader(make([]byte, size)), size); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{4 << 10, 128 << 10, 1 << 20} {
		b.Run(byteSize(n), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			for i := 0; b.Loop(); i++ {
				if err := bk.ReadAt(b.Context(), "writer/000001-abcdef", p, int64(i*n%(size-n))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("pread-4KiB", func(b *testing.B) { // what an open file would cost
		f, err := os.Open(strings.TrimPrefix(bk.String(), "file://") + "/writer/000001-abcdef")
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		p := make([]byte, 4<<10)
		b.SetBytes(int64(len(p)))
		for i := 0; b.Loop(); i++ {
			if _, err := f.ReadAt(p, int64(i*len(p)%(size-len(p)))); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDirPut(b *testing.B) {
	bk := openDir(b, b.TempDir())
	const size = 32 << 20
	name := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(name, buckettest.Bytes(1, size), 0o644); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(size)
	for b.Loop() {
		if err := bk.Put(b.Context(), "w/p", f, size); err != nil {
			b.Fatal(err)
		}
		if err := bk.Delete(b.Context(), "w/p"); err != nil {
			b.Fatal(err)
		}
	}
}

func byteSize(n int) string {
	if n >= 1<<20 {
		return "1MiB"
	}
	return map[int]string{4 << 10: "4KiB", 128 << 10: "128KiB"}[n]
}
