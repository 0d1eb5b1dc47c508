package chunkstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// A state directory serves no other repository than its own: neither one that looks the
// same, nor an empty bucket that it would make one, whatever became of its index.
func TestStateBelongsToRepository(t *testing.T) {
	rnd := testSeed(t)
	mine, other := t.TempDir(), t.TempDir()
	for _, dir := range []string{mine, other} {
		s := testStore(t, dir)
		putNAR(t, s, makeNAR(t, testFile{name: "a", data: randomData(rnd, 5000)}))
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	open := func(bucketDir string) error {
		b, err := bucket.Open(t.Context(), "file://"+bucketDir)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), Options{State: filepath.Join(mine, "state"), Bucket: b})
		if err == nil {
			err = s.Close(t.Context())
		}
		return err
	}
	for _, withIndex := range []bool{true, false} {
		if !withIndex {
			if err := os.Remove(filepath.Join(mine, "state", "index.bolt")); err != nil {
				t.Fatal(err)
			}
		}
		for _, wrong := range []string{filepath.Join(other, "bucket"), t.TempDir()} {
			if err := open(wrong); err == nil || !strings.Contains(err.Error(), "is this the right bucket?") {
				t.Errorf("index %v, bucket %s: got %v", withIndex, wrong, err)
			}
		}
		if err := open(filepath.Join(mine, "bucket")); err != nil {
			t.Errorf("index %v, the right bucket: %v", withIndex, err)
		}
	}
}

// A changed byte in either copy of the settings is noticed, and the message says where.
func TestDamagedSettings(t *testing.T) {
	dir := t.TempDir()
	if err := testStore(t, dir).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "bucket", repositoryKey), filepath.Join(dir, "state", ownerFile)} {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			if _, err := decodeRepository(b); !errors.Is(err, packfile.ErrCorrupt) {
				t.Errorf("byte %d of %s: got %v", i, path, err)
			}
			if i%50 != 0 {
				continue
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := openStore(t, dir); err == nil || !strings.Contains(err.Error(), filepath.Base(path)+" is damaged") {
				t.Fatalf("byte %d of %s: got %v", i, path, err)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testStore(t, dir)
}
