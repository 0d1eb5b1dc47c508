package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/dedupd/dedupd/nar"
)

func TestBigNARIsCanonical(t *testing.T) {
	sources := writeSources(t)
	for _, size := range []int64{0, 1, 7, 8, stampEvery - 1, stampEvery, 5*stampEvery + 13} {
		n := newBigNAR(sources, 3, size)
		data, err := io.ReadAll(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if got := int64(len(data)); got != bigNARSize(size) {
			t.Errorf("contents of %d bytes: got a NAR of %d, want %d", size, got, bigNARSize(size))
		}
		if _, err := nar.List(bytes.NewReader(data)); err != nil {
			t.Errorf("contents of %d bytes: %v", size, err)
		}
	}
}

func TestBigNARsShareNoBlock(t *testing.T) {
	sources := writeSources(t)
	seen := make(map[[32]byte]int)
	for seed := range uploads {
		n := newBigNAR(sources, seed, 0)
		block := make([]byte, stampEvery)
		for range 8 {
			if _, err := io.ReadFull(n.contents, block); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(block)
			if other, ok := seen[sum]; ok {
				t.Fatalf("NARs %d and %d share a block", other, seed)
			}
			seen[sum] = seed
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// writeSources makes files that are shorter and longer than a block.
func writeSources(t *testing.T) []storePath {
	t.Helper()
	var sources []storePath
	for i, size := range []int{10, stampEvery + 1, 0, 2 * stampEvery} {
		file := filepath.Join(t.TempDir(), "nar")
		if err := os.WriteFile(file, bytes.Repeat([]byte{byte(i)}, size), 0o644); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, storePath{file: file})
	}
	return sources
}
