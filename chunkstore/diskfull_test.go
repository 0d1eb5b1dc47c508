//go:build linux

package chunkstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A full disk refuses uploads, loses none that was acknowledged, and takes new ones as
// soon as there is room.
func TestDiskFull(t *testing.T) {
	rnd := testSeed(t)
	dir := t.TempDir()
	spool := filepath.Join(dir, "state", "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", spool, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(spool, unix.MNT_DETACH) })
	s := testStore(t, dir)
	var kept [][]byte
	full := 0
	put := func() error {
		b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 700<<10)})
		_, err := s.PutNAR(t.Context(), "nar/"+randomHash(rnd)+".nar", bytes.NewReader(b), nil)
		if err == nil {
			kept = append(kept, b)
		}
		return err
	}
	for range 60 {
		if err := put(); errors.Is(err, unix.ENOSPC) {
			full++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if full == 0 {
		t.Fatal("the disk did not fill")
	}
	checkStore(t, s)
	if err := unix.Mount("tmpfs", spool, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := put(); err != nil {
			t.Errorf("with room again: %v", err)
		}
	}
	t.Logf("%d uploads refused, %d kept", full, len(kept))
	for _, b := range kept {
		checkNAR(t, s, rnd, b)
	}
}
