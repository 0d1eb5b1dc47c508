package faultfs

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newTestVolume(t *testing.T) *Volume {
	t.Helper()
	v, err := Mount(t).NewVolume()
	must(t, err)
	return v
}

// tree returns the files of a volume with their contents.
func tree(t *testing.T, v *Volume) map[string]string {
	t.Helper()
	files := map[string]string{}
	must(t, filepath.WalkDir(v.Path(), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(v.Path(), path)
		files[name] = string(data)
		return err
	}))
	return files
}

// It is a file system.
func TestFileSystem(t *testing.T) {
	v := newTestVolume(t)
	path := func(name string) string { return filepath.Join(v.Path(), name) }
	must(t, os.MkdirAll(path("a/b"), 0o700))
	big := bytes.Repeat([]byte("0123456789"), 300_000)
	must(t, os.WriteFile(path("a/big"), big, 0o600))
	f, err := os.OpenFile(path("a/big"), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("xyz"), 4095)
	must(t, err)
	copy(big[4095:], "xyz")
	must(t, f.Truncate(1_000_001))
	must(t, f.Truncate(1_000_100))
	big = append(big[:1_000_001], make([]byte, 99)...)
	must(t, os.Link(path("a/big"), path("a/b/link")))
	must(t, os.Remove(path("a/big")))
	must(t, os.Rename(path("a/b/link"), path("a/b/moved")))
	got := make([]byte, len(big))
	_, err = f.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, big) {
		t.Error("an open file is not what was written")
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, len(big), syscall.PROT_READ, syscall.MAP_SHARED)
	must(t, err)
	_, err = f.WriteAt([]byte("abc"), 0)
	must(t, err)
	copy(big, "abc")
	if !bytes.Equal(m, big) {
		t.Error("a mapped file is not what was written")
	}
	must(t, syscall.Munmap(m))
	must(t, f.Close())
	if got := tree(t, v); !maps.Equal(got, map[string]string{"a/b/moved": string(big)}) {
		t.Errorf("got files %v", slices.Sorted(maps.Keys(got)))
	}
	if err := os.Remove(path("a")); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("removing a directory: got error %v", err)
	}
	if err := os.Link(path("a/b/moved"), path("a/b/moved")); !errors.Is(err, os.ErrExist) {
		t.Errorf("linking to a name that exists: got error %v", err)
	}
}

// What is synced survives every power cut; what is not does not survive all of them.
func TestCut(t *testing.T) {
	v := newTestVolume(t)
	path := func(name string) string { return filepath.Join(v.Path(), name) }
	sync := func(name string) {
		f, err := os.Open(path(name))
		must(t, err)
		must(t, errors.Join(f.Sync(), f.Close()))
	}
	for _, name := range []string{"whole", "unnamed", "unwritten"} {
		must(t, os.WriteFile(path(name), []byte("synced "+name), 0o600))
	}
	sync("whole")
	sync("unnamed")
	must(t, os.Remove(path("unnamed")))
	sync("")
	must(t, os.WriteFile(path("unnamed"), []byte("new"), 0o600))
	sync("unnamed")
	must(t, os.Rename(path("whole"), path("renamed")))

	found := map[string]int{}
	for seed := range uint64(200) {
		c, _, err := v.Cut(0, seed)
		must(t, err)
		files := tree(t, c)
		must(t, c.Drop())
		if (files["whole"] == "synced whole") == (files["renamed"] == "synced whole") {
			t.Fatalf("after cut %d: %v", seed, files)
		}
		for name, text := range files {
			found[name+": "+text]++
		}
	}
	for _, some := range []string{"whole: synced whole", "renamed: synced whole", "unnamed: new", "unwritten: synced unwritten", "unwritten: "} {
		if n := found[some]; n == 0 || n == 200 {
			t.Errorf("%q after %d of 200 cuts", some, n)
		}
	}
	k, err := v.Copy(0)
	must(t, err)
	want := map[string]string{"renamed": "synced whole", "unnamed": "new", "unwritten": "synced unwritten"}
	if got := tree(t, k); !maps.Equal(got, want) {
		t.Errorf("after a kill: got %v, want %v", got, want)
	}
}

func TestFaults(t *testing.T) {
	v := newTestVolume(t)
	f, err := os.Create(filepath.Join(v.Path(), "f")) // operation 1
	must(t, err)
	defer f.Close()
	must(t, v.SetPlan(Plan{
		Faults:    []Fault{{At: 2, Errno: syscall.ENOSPC, Short: true}, {At: 3, Count: 2, Errno: syscall.ENOSPC}, {At: 6, Errno: syscall.EIO}},
		Snapshots: []uint64{5, 7}, Freeze: 9,
	}))
	if n, err := f.WriteString("abcd"); n != 2 || !errors.Is(err, syscall.ENOSPC) { // 2 and 3
		t.Errorf("on a full disk: wrote %d bytes, got error %v", n, err)
	}
	must(t, f.Sync()) // 4: takes no space
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	for n, want := range []error{nil, syscall.EIO, nil, nil, syscall.EIO, syscall.EIO} { // 5 to 10
		if _, err := f.WriteString("x"); !errors.Is(err, want) {
			t.Errorf("operation %d: got error %v, want %v", n+5, err, want)
		}
	}
	// Of an operation that is interrupted some bytes may be written.
	for at, want := range map[uint64][2]string{5: {"ab", "xb"}, 7: {"xb", "xx"}, 0: {"xxx", "xxxx"}} {
		c, err := v.Copy(at)
		must(t, err)
		if got := tree(t, c)["f"]; got != want[0] && got != want[1] {
			t.Errorf("before operation %d: got %q, want one of %q", at, got, want)
		}
	}
	if got := v.Describe(6); got != "write f" {
		t.Errorf("operation 6: got %q", got)
	}
}

// A sync that failed leaves a file of which not everything gets to disk any more.
func TestFailedSync(t *testing.T) {
	v := newTestVolume(t)
	f, err := os.Create(filepath.Join(v.Path(), "f"))
	must(t, err)
	defer f.Close()
	dir, err := os.Open(v.Path())
	must(t, err)
	must(t, errors.Join(dir.Sync(), dir.Close()))
	lost := 0
	for seed := range uint64(50) {
		at, err := v.Ops()
		must(t, err)
		must(t, v.SetPlan(Plan{Faults: []Fault{{At: at + 2, Errno: syscall.EIO}}, Seed: seed}))
		_, err = f.WriteAt([]byte{byte(seed + 1)}, int64(seed))
		must(t, err)
		if err := f.Sync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("got error %v, want EIO", err)
		}
		must(t, f.Sync())
		c, _, err := v.Cut(0, seed)
		must(t, err)
		if text := tree(t, c)["f"]; len(text) <= int(seed) || text[seed] == 0 {
			lost++
		}
		must(t, c.Drop())
	}
	if lost == 0 || lost == 50 {
		t.Errorf("%d of 50 writes were lost", lost)
	}
}

// Of a sync that is interrupted nothing may have been done, and of a truncation nothing was.
func TestInterrupted(t *testing.T) {
	v := newTestVolume(t)
	must(t, v.SetPlan(Plan{Snapshots: []uint64{4, 5}}))
	f, err := os.Create(filepath.Join(v.Path(), "f")) // operation 1
	must(t, err)
	defer f.Close()
	dir, err := os.Open(v.Path())
	must(t, err)
	must(t, errors.Join(dir.Sync(), dir.Close())) // 2
	_, err = f.WriteString("text")                // 3
	must(t, err)
	must(t, f.Sync())      // 4
	must(t, f.Truncate(3)) // 5
	lost := 0
	for seed := range uint64(50) {
		c, _, err := v.Cut(4, seed)
		must(t, err)
		if tree(t, c)["f"] == "" {
			lost++
		}
		must(t, c.Drop())
	}
	if lost == 0 || lost == 50 {
		t.Errorf("after %d of 50 power cuts in a sync, the write before was lost", lost)
	}
	c, err := v.Copy(5)
	must(t, err)
	if got := tree(t, c)["f"]; got != "text" {
		t.Errorf("after a kill in a truncation: got %q", got)
	}
}

func TestKill(t *testing.T) {
	if path := os.Getenv("FAULTFS_WRITE"); path != "" {
		f, err := os.Create(path)
		must(t, err)
		for {
			f.WriteString("x")
		}
	}
	v := newTestVolume(t)
	must(t, v.SetPlan(Plan{Kill: 100}))
	path := filepath.Join(v.Path(), "f")
	cmd := runSelf(t, "FAULTFS_WRITE="+path)
	if err := cmd.Run(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("process ended with %v", err)
	}
	if got := tree(t, v)["f"]; len(got) != 98 && len(got) != 99 { // the name was the first operation
		t.Errorf("got %d bytes", len(got))
	}
}

func runSelf(t *testing.T, env string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), env)
	return cmd
}
