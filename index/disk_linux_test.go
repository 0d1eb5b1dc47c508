package index

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of so many bytes. The function resizes it.
func smallDisk(t *testing.T, size string) (dir string, resize func(size string)) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		unavailable(t, "cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, func(size string) {
		t.Helper()
		must(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size="+size))
	}
}

// fillDisk applies batches until the index says that the disk is full, and returns how many.
func fillDisk(t *testing.T, b *Bolt) (batches int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		defer cancel()
		until(t, "disk full", func() bool { return b.Stats().WriteErr != nil || ctx.Err() != nil })
	}()
	for {
		var batch Batch
		batch.Put(Names, fmt.Append(nil, batches), make([]byte, 50<<10))
		batch.PutChunk(key(batches), loc(batches))
		batch.Mark("log", uint64(batches+1))
		err := b.Apply(ctx, &batch)
		if errors.Is(err, context.Canceled) {
			return batches
		}
		must(t, err)
		batches++
	}
}

func checkFilled(t *testing.T, b *Bolt, batches int) {
	t.Helper()
	for n := range batches {
		if v, err := b.Get(t.Context(), Names, fmt.Append(nil, n)); err != nil || len(v) != 50<<10 {
			t.Fatalf("row %d of %d: got %d bytes, %v", n, batches, len(v), err)
		}
		if got := chunk(t, b, key(n)); got != loc(n) {
			t.Fatalf("chunk %d of %d: got %+v", n, batches, got)
		}
	}
}

// On a full disk batches wait, everything is read, and when there is room it goes on.
func TestDiskFull(t *testing.T) {
	dir, resize := smallDisk(t, "4m")
	b := open(t, filepath.Join(dir, "index"), Options{Memtable: 1 << 20})
	batches := fillDisk(t, b)
	if err := b.Stats().WriteErr; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("WriteErr: got %v, want ENOSPC", err)
	}
	checkFilled(t, b, batches)
	marks, err := b.Marks(t.Context())
	must(t, err)
	if marks["log"] >= uint64(batches) {
		t.Errorf("mark: got %d of %d batches, with a full disk", marks["log"], batches)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("flush: got %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.Snapshot(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("snapshot: got %v", err)
	}

	resize("64m")
	must(t, b.Flush(t.Context()))
	if err := b.Stats().WriteErr; err != nil {
		t.Errorf("WriteErr with room: got %v", err)
	}
	checkFilled(t, b, batches)
	if marks, err := b.Marks(t.Context()); err != nil || marks["log"] != uint64(batches) {
		t.Errorf("marks: got %v, %v, want %d", marks, err, batches)
	}
	if got := b.Stats().Rows; got[Names] != uint64(batches) || got[Chunks] != uint64(batches) {
		t.Errorf("rows: got %v, want %d", got, batches)
	}
	must(t, verify(t.Context(), b))
	must(t, b.Close())
	b = open(t, filepath.Join(dir, "index"), Options{})
	checkFilled(t, b, batches)
}

// Closing does not wait for room. What is lost is behind the marks.
func TestCloseWithDiskFull(t *testing.T) {
	dir, resize := smallDisk(t, "4m")
	path := filepath.Join(dir, "index")
	b := open(t, path, Options{Memtable: 1 << 20})
	batches := fillDisk(t, b)
	waiting := make(chan error)
	go func() { waiting <- b.Flush(context.Background()) }()
	if err := b.Close(); !errors.Is(err, ErrBroken) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("close: got %v, want ErrBroken, ENOSPC", err)
	}
	if err := <-waiting; !errors.Is(err, ErrBroken) && !errors.Is(err, ErrClosed) {
		t.Errorf("flush: got %v", err)
	}
	resize("64m")
	b = open(t, path, Options{})
	marks, err := b.Marks(t.Context())
	must(t, err)
	if marks["log"] >= uint64(batches) {
		t.Errorf("mark: got %d of %d", marks["log"], batches)
	}
	checkFilled(t, b, int(marks["log"]))
	must(t, verify(t.Context(), b))
}
