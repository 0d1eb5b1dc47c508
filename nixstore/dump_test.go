//go:build unix

package nixstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dedupd/dedupd/nixstore"
)

// A file is one that a test makes: a directory if its name ends in a slash, a symbolic
// link if there is a target.
type file struct {
	name, contents, target string
	executable             bool
}

// build makes the files in a new directory.
func build(t *testing.T, files []file) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		path := root + "/" + f.name
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case strings.HasSuffix(f.name, "/"):
		case f.target != "":
			err = os.Symlink(f.target, path)
		case f.executable:
			err = os.WriteFile(path, []byte(f.contents), 0o755)
		default:
			err = os.WriteFile(path, []byte(f.contents), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func randomText(n int) string {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return string(b)
}

// varied has everything that can be in a store path.
var varied = []file{
	{name: "empty"}, {name: "empty-dir/"}, {name: "bin/run", contents: "#!/bin/sh\n", executable: true},
	{name: "seven", contents: "1234567"}, {name: "eight", contents: "12345678"}, {name: "nine", contents: "123456789"},
	{name: "a/b"}, {name: "a-b"}, {name: "a.b"}, {name: "A"}, {name: "...", contents: "dots"}, {name: "..foo/x"},
	{name: "Z\xff\xfe not UTF-8", contents: "x"}, {name: "new\nline"}, {name: "~nix~case~hack~1"}, {name: "grün/Straße", contents: "ß"},
	{name: strings.Repeat("n", 255), contents: "long"}, {name: "d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/leaf", contents: "deep"},
	{name: "broken", target: "nowhere"}, {name: "up", target: "../../../../etc/passwd"}, {name: "odd", target: "\xff\n"},
	{name: "link-to-dir", target: "a"}, {name: "long-link", target: strings.Repeat("t/", 2000)},
	{name: "large", contents: randomText(3<<20 + 5)}, {name: "block", contents: randomText(64 << 10)},
}

// TestDump compares with nix-store --dump, from the start and from other places.
func TestDump(t *testing.T) {
	many := make([]file, 10_000)
	for i := range many {
		many[i] = file{name: fmt.Sprintf("%d/%d", i%7, i), contents: strings.Repeat("x", i%300)}
	}
	n := oneNix(t)
	for _, test := range []struct {
		name string
		root string
	}{
		{"varied", build(t, varied)},
		{"many", build(t, many)},
		{"empty directory", build(t, nil)},
		{"file", filepath.Join(build(t, varied), "nine")},
		{"executable", filepath.Join(build(t, varied), "bin/run")},
		{"empty file", filepath.Join(build(t, varied), "empty")},
		{"large file", filepath.Join(build(t, varied), "large")},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "many" && testing.Short() {
				t.Skip("takes seconds")
			}
			n := &nix{t: t, root: n.root}
			p := n.add(test.root)
			s := n.open()
			info, err := s.NarInfo(t.Context(), p.HashPart())
			if err != nil {
				t.Fatal(err)
			}
			want := n.dump(n.file(p))
			if got := readNAR(t, s, info, 0); !bytes.Equal(got, want) {
				t.Fatalf("%d bytes differ from nix-store --dump's %d", len(got), len(want))
			}
			size := int64(len(want))
			for _, off := range []int64{1, 8, 96, 100, size / 3, size / 2, size - 100, size - 17, size - 1, size} {
				off = min(max(off, 0), size)
				if got := readNAR(t, s, info, off); !bytes.Equal(got, want[off:]) {
					t.Errorf("from %d on, %d bytes differ from nix-store --dump's %d", off, len(got), size-off)
				}
			}
		})
	}
}

// TestDumpSymlink has a store path that is a symbolic link.
func TestDumpSymlink(t *testing.T) {
	n := oneNix(t)
	p := n.build("link", "/bin/ln -s /etc/passwd $out")
	s := n.open()
	info, err := s.NarInfo(t.Context(), p.HashPart())
	if err != nil {
		t.Fatal(err)
	}
	if got := readNAR(t, s, info, 0); !bytes.Equal(got, n.dump(n.file(p))) || !bytes.Contains(got, []byte("/etc/passwd")) {
		t.Errorf("got %q", got)
	}
}

// TestDamage has paths whose files are not what the database says.
func TestDamage(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(root string) error
		want   error // nil for any
	}{
		{"contents", func(root string) error { return overwrite(root+"/large", 1<<20, "other") }, nixstore.ErrDamaged},
		{"last byte", func(root string) error { return overwrite(root+"/seven", 6, "8") }, nixstore.ErrDamaged},
		{"shorter", func(root string) error { return os.Truncate(root+"/large", 1<<20) }, nixstore.ErrDamaged},
		{"longer", func(root string) error { return overwrite(root+"/seven", 7, "8") }, nixstore.ErrDamaged},
		{"more files", func(root string) error { return os.WriteFile(root+"/zz", nil, 0o644) }, nixstore.ErrDamaged},
		{"fewer files", func(root string) error { return os.Remove(root + "/seven") }, nixstore.ErrDamaged},
		{"mode", func(root string) error { return os.Chmod(root+"/seven", 0o755) }, nixstore.ErrDamaged},
		{"symlink", func(root string) error {
			return errors.Join(os.Remove(root+"/seven"), os.Symlink("/etc/hostname", root+"/seven"))
		}, nixstore.ErrDamaged},
		{"FIFO", func(root string) error {
			return errors.Join(os.Remove(root+"/seven"), syscall.Mkfifo(root+"/seven", 0o644))
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := oneNix(t)
			p := n.add(build(t, varied))
			s := n.open()
			info, err := s.NarInfo(t.Context(), p.HashPart())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(n.file(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := test.damage(n.file(p)); err != nil {
				t.Fatal(err)
			}
			body, size, err := s.NAR(t.Context(), info, 0)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			body.Close()
			if err == nil || int64(len(got)) >= size || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %d of %d bytes and error %v, want %v", len(got), size, err, test.want)
			}
			if test.want != nil {
				_, err = s.NarInfo(t.Context(), p.HashPart())
				wantNotFound(t, err)
			}
		})
	}
}

func overwrite(path string, off int64, text string) error {
	if err := os.Chmod(path, 0o644); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), off)
	return errors.Join(err, f.Close())
}

// TestDeleted has Nix delete a path that is being read: that is no damage.
func TestDeleted(t *testing.T) {
	n := oneNix(t)
	p := n.add(build(t, append(varied, file{name: "zz", contents: randomText(1 << 20)})))
	s := n.open()
	info, err := s.NarInfo(t.Context(), p.HashPart())
	if err != nil {
		t.Fatal(err)
	}
	body, _, err := s.NAR(t.Context(), info, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	n.store("--delete", p.Path("/nix/store"))
	if _, err := io.ReadAll(body); err == nil {
		t.Error("got the whole NAR")
	}
	n.add(build(t, append(varied, file{name: "zz", contents: randomText(1 << 20)})))
	if _, err := s.NarInfo(t.Context(), p.HashPart()); err != nil {
		t.Errorf("when it is there again: %v", err)
	}
}

// TestOddDirectory has a store where its path must be quoted in a URL.
func TestOddDirectory(t *testing.T) {
	n := oneNix(t)
	p := n.add("dump_test.go")
	odd := filepath.Join(t.TempDir(), "a b#%41?mode=rw&c")
	if err := os.Rename(n.root, odd); err != nil {
		t.Fatal(err)
	}
	n.root = odd
	if _, err := n.open().NarInfo(t.Context(), p.HashPart()); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(odd, "nix/var/nix/db")); err != nil || len(entries) > 6 {
		t.Errorf("got %v, %v", entries, err)
	}
}

// TestGone has paths that are valid, and not there.
func TestGone(t *testing.T) {
	n := oneNix(t)
	p, other := n.add(build(t, varied)), n.add("dump_test.go")
	s := n.open()
	info, err := s.NarInfo(t.Context(), p.HashPart())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.file(p)); err != nil {
		t.Fatal(err)
	}
	_, err = s.NarInfo(t.Context(), p.HashPart())
	wantNotFound(t, err)
	_, _, err = s.NAR(t.Context(), info, 0)
	wantNotFound(t, err)

	// Without the store directory nobody can know.
	if err := os.Rename(filepath.Join(n.root, "nix/store"), filepath.Join(n.root, "nix/elsewhere")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NarInfo(t.Context(), other.HashPart()); err == nil || !errors.Is(err, fs.ErrNotExist) || isNotFound(err) {
		t.Errorf("without the store directory: got %v", err)
	}
}

// TestCloseEarly has readers that leave in the middle: the goroutine of each must end, or
// the next has no slot.
func TestCloseEarly(t *testing.T) {
	n := oneNix(t)
	p := n.add(build(t, varied))
	s, err := nixstore.Open(t.Context(), nixstore.Options{Root: n.root, MaxDumps: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	info, err := s.NarInfo(t.Context(), p.HashPart())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{0, 1, 100, 100_000, 1 << 20} {
		body, _, err := s.NAR(t.Context(), info, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, body, n); err != nil {
			t.Error(err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}
