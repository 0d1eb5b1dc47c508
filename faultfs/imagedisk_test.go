//go:build linux

package faultfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestDiskFlushes holds that an fsync on the ext4 reaches the image as a flush: what was
// synced is there after each cut, and what was not is missed after some.
func TestDiskFlushes(t *testing.T) {
	if err := DiskNeeds(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	image := NewImage(64 << 20)
	dir, root := t.TempDir(), t.TempDir()
	missed := 0
	const rounds = 6
	for round := range rounds {
		disk, err := Serve(image, dir)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		if round == 0 {
			if err := disk.Format(); err != nil {
				t.Fatal(err)
			}
		}
		if err := disk.Mount(root); err != nil {
			t.Fatal(err)
		}
		for r := range round {
			if b, err := os.ReadFile(name(root, "synced", r)); err != nil || string(b) != "text" {
				t.Errorf("round %d: what was synced in round %d is %q (%v)", round, r, b, err)
			}
			if _, err := os.ReadFile(name(root, "unsynced", r)); err != nil {
				missed++
			}
		}
		before := image.Stats()
		writeSynced(t, name(root, "synced", round))
		if now := image.Stats(); now.Writes == before.Writes || now.Flushes == before.Flushes {
			t.Errorf("an fsync made of %+v %+v", before, now)
		}
		if err := os.WriteFile(name(root, "unsynced", round), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
		image, _ = image.Cut(random.Uint64())
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	}
	if missed == 0 {
		t.Errorf("what was not synced survived %d cuts", rounds)
	}
}

func name(root, kind string, round int) string {
	return filepath.Join(root, fmt.Sprint(kind, round))
}

func writeSynced(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("text"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
