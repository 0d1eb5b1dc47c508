//go:build linux

package nixstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixstore"
)

// TestWhileNixWrites reads each path as soon as Nix says that it is there, while others
// are added.
func TestWhileNixWrites(t *testing.T) {
	forEachNix(t, func(t *testing.T, n *nix) {
		first := n.add("live_test.go")
		s := n.open()
		ctx, stop := context.WithCancel(t.Context())
		var reading sync.WaitGroup
		reading.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.NarInfo(t.Context(), first.HashPart()); err != nil {
					t.Error(err)
					return
				}
			}
		})
		for i := range 5 {
			path := filepath.Join(t.TempDir(), fmt.Sprint("file-", i))
			if err := os.WriteFile(path, []byte(path), 0o644); err != nil {
				t.Fatal(err)
			}
			p := n.add(path)
			info, err := s.NarInfo(t.Context(), p.HashPart())
			if err != nil {
				t.Fatal(err)
			}
			readNAR(t, s, info, 0)
		}
		stop()
		reading.Wait()
		n.store("--delete", first.Path("/nix/store"))
		_, err := s.NarInfo(t.Context(), first.HashPart())
		wantNotFound(t, err)
	})
}

// openVariable has the test program be another process, which opens the store that it
// names, and reads a path.
const openVariable = "DEDUPD_TEST_OPEN"

func TestMain(m *testing.M) {
	if root := os.Getenv(openVariable); root != "" {
		if err := openOther(root, os.Getenv("DEDUPD_TEST_HASH_PART")); err != nil {
			fmt.Println("error:", err)
		}
		return
	}
	os.Exit(m.Run())
}

func openOther(root, hashPart string) error {
	ctx := context.Background()
	s, err := nixstore.Open(ctx, nixstore.Options{Root: root})
	if err != nil {
		return err
	}
	defer s.Close()
	info, err := s.NarInfo(ctx, hashPart)
	if err != nil {
		return err
	}
	body, _, err := s.NAR(ctx, info, 0)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(io.Discard, body); err != nil {
		return err
	}
	fmt.Print("ok", info.Sigs)
	return nil
}

// asNobody runs openOther as a user who may write nothing.
func asNobody(t *testing.T, n *nix, p narinfo.StorePath) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), openVariable+"="+n.root, "DEDUPD_TEST_HASH_PART="+p.HashPart())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

const someSig = "a-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="

func databaseOf(n *nix) string { return filepath.Join(n.root, "nix/var/nix/db/db.sqlite") }

// sign writes a signature into the database as Nix does, and has it open until the end of
// the test: what was written is in the log only.
func sign(t *testing.T, n *nix, p narinfo.StorePath) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+databaseOf(n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("update ValidPaths set sigs = ? where path = ?", someSig, p.Path("/nix/store")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(databaseOf(n) + "-wal"); err != nil || info.Size() == 0 {
		t.Fatalf("there is no log: %v", err)
	}
	return db
}

// TestUnprivileged reads a store that belongs to somebody else, whose database is open,
// or not, or cannot be read.
func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		missing(t, "the right to be another user")
	}
	n := oneNix(t)
	p := n.add(build(t, varied))
	for dir := n.root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got := asNobody(t, n, p); got != "ok[]" {
		t.Errorf("nobody has the database open: got %q", got)
	}

	db := sign(t, n, p)
	if got, want := asNobody(t, n, p), "ok["+someSig+"]"; got != want {
		t.Errorf("what was written is in the log: got %q, want %q", got, want)
	}
	for _, ext := range []string{"-shm", "-wal"} {
		if err := os.Chmod(databaseOf(n)+ext, 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := asNobody(t, n, p); !strings.HasPrefix(got, "error: ") || strings.Contains(got, "not found") {
		t.Errorf("the log cannot be read: got %q, want an error", got)
	}
	db.Close()

	if err := os.Chmod(filepath.Join(n.file(p), "seven"), 0); err != nil {
		t.Fatal(err)
	}
	if got := asNobody(t, n, p); !strings.HasPrefix(got, "error: ") || !strings.Contains(got, fs.ErrPermission.Error()) {
		t.Errorf("a file cannot be read: got %q, want %v", got, fs.ErrPermission)
	}
}

// TestReadOnlyFileSystem reads a store where nothing can be written, as a service does that
// systemd keeps from writing, while nobody writes to it elsewhere and while somebody does.
func TestReadOnlyFileSystem(t *testing.T) {
	n := oneNix(t)
	p := n.add(build(t, varied))
	readOnly := t.TempDir()
	if err := syscall.Mount(n.root, readOnly, "", syscall.MS_BIND, ""); err != nil {
		missing(t, "the right to mount")
	}
	defer syscall.Unmount(readOnly, syscall.MNT_DETACH)
	if err := syscall.Mount("", readOnly, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s, err := nixstore.Open(t.Context(), nixstore.Options{Root: readOnly})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, want := range []int{0, 1} {
		info, err := s.NarInfo(t.Context(), p.HashPart())
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Sigs) != want {
			t.Errorf("got %d signatures, want %d", len(info.Sigs), want)
		}
		readNAR(t, s, info, 0)
		if want == 0 {
			sign(t, n, p)
		}
	}
}
