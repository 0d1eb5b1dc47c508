package index

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unavailable skips a test that needs a special part, but not where all parts must be there.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// syncVictim, in the environment, makes the test binary the victim of TestSyncFails.
const (
	syncVictim = "DEDUPD_TEST_SYNC_VICTIM"
	syncUnable = "DEDUPD_TEST_SYNC_UNABLE" // a directory is in the way of the note
)

// failSync is run under strace, which lets a sync fail.
func failSync(path string) error {
	ctx := context.Background()
	b, err := OpenBolt(path, Options{})
	if err != nil {
		return err
	}
	if os.Getenv(syncUnable) != "" {
		if err := os.Mkdir(path+distrustSuffix, 0o700); err != nil {
			return err
		}
	}
	for n := range 50 {
		var batch Batch
		for i := range 1000 {
			batch.PutChunk(key(1000*n+i), loc(i))
		}
		batch.Put(Names, []byte("row"), []byte("value"))
		batch.Mark("log", uint64(n+1))
		if err := b.Apply(ctx, &batch); err != nil {
			return fmt.Errorf("apply %d: %w", n, err)
		}
		if err := b.Flush(ctx); err == nil {
			continue
		} else if !errors.Is(err, ErrBroken) || !errors.Is(err, errUnsynced) || !errors.Is(err, syscall.EIO) {
			return fmt.Errorf("flush %d: %w", n, err)
		}
		// Everything is read on, nothing is written.
		if v, err := b.Get(ctx, Names, []byte("row")); err != nil || string(v) != "value" {
			return fmt.Errorf("get: %q, %w", v, err)
		}
		var out [1]Location
		if err := b.Chunks(ctx, []Key{key(1000 * n)}, out[:]); err != nil || out[0] != loc(0) {
			return fmt.Errorf("chunk: %+v, %w", out[0], err)
		}
		if err := b.Apply(ctx, &Batch{}); !errors.Is(err, ErrBroken) {
			return fmt.Errorf("apply to a broken index: %w", err)
		}
		if err := b.Close(); !errors.Is(err, ErrBroken) {
			return fmt.Errorf("close: %w", err)
		}
		fmt.Println("as expected")
		return nil
	}
	return errors.New("no sync failed")
}

// After a sync that failed the file is not used again, whatever could be noted of it.
func TestSyncFails(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		unavailable(t, "no strace: %v", err)
	}
	for _, tt := range []struct {
		name   string
		when   string // which syncs fail, of each thread: bbolt syncs a transaction's pages, then a head
		unable bool   // to note it
	}{
		{"pages", "1+", false},
		{"head", "2+", false},
		{"later", "6+", false},
		{"nothing can be noted", "2+", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "index")
			must(t, open(t, path, Options{}).Close())
			cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", fmt.Sprint("inject=fdatasync:error=EIO:when=", tt.when), os.Args[0])
			cmd.Env = append(os.Environ(), syncVictim+"="+path)
			if tt.unable {
				cmd.Env = append(cmd.Env, syncUnable+"=1")
			}
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "ptrace") {
				unavailable(t, "strace may not trace: %s", out)
			}
			if err != nil || !strings.Contains(string(out), "as expected") {
				t.Fatalf("%v: %s", err, out)
			}
			if tt.unable {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the file is there: %v", err)
				}
				return
			}
			for range 2 {
				if _, err := OpenBolt(path, Options{}); !errors.Is(err, ErrDamaged) {
					t.Errorf("open: got %v, want ErrDamaged", err)
				}
			}
			// Put aside, the next one is new.
			must(t, os.Rename(path, path+".old"))
			b := open(t, path, Options{})
			if marks, err := b.Marks(t.Context()); err != nil || len(marks) > 0 {
				t.Errorf("marks: got %v, %v", marks, err)
			}
			must(t, b.Close())
			must(t, open(t, path, Options{}).Close())
		})
	}
}

// What is known of a commit that failed.
func TestCommitFailure(t *testing.T) {
	for _, tt := range []struct {
		err      error
		full, ok bool
	}{
		{&os.PathError{Op: "write", Err: syscall.ENOSPC}, true, true},
		{&os.PathError{Op: "write", Err: syscall.EDQUOT}, true, true},
		{&os.PathError{Op: "write", Err: syscall.EIO}, false, true},
		{errors.New("file resize error: truncate x: no space left on device"), true, true},
		{errors.New("file resize error: truncate x: file too large"), false, true},
		{errors.New("file sync error: sync x: no space left on device"), false, false},
		{syscall.ENOSPC, false, false}, // of fdatasync
		{syscall.EIO, false, false},
		{&os.PathError{Op: "sync", Err: syscall.ENOSPC}, false, false},
		{errors.New("something else"), false, false},
	} {
		err := commitFailure(tt.err)
		if got := isFull(err); got != tt.full {
			t.Errorf("%v: full: got %v", tt.err, got)
		}
		if got := !errors.Is(err, errUnsynced); got != tt.ok {
			t.Errorf("%v: known: got %v", tt.err, got)
		}
	}
}

// until waits for what happens soon.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		if t.Context().Err() != nil {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
