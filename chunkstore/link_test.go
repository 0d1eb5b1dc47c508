package chunkstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestLinkNAR gives a NAR another name, which an index that is built anew knows, too.
func TestLinkNAR(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	rnd := rand.New(rand.NewPCG(1, 2))
	nars := [][]byte{randomNAR(t, rnd), randomNAR(t, rnd)}
	first, second := putNAR(t, s, nars[0]), putNAR(t, s, nars[1])
	file := File{Name: "nar/old.nar.gz", Content: first, Compression: "gzip", FileSize: 7, FileHash: Hash{8}}
	for range 2 {
		if err := s.LinkNAR(t.Context(), file); err != nil {
			t.Fatal(err)
		}
	}
	other := file
	other.Content = second
	if err := s.LinkNAR(t.Context(), other); !errors.Is(err, ErrConflict) {
		t.Errorf("a name that is taken: got %v", err)
	}
	small, err := s.PutFile(t.Context(), "log/x", bytes.NewReader(make([]byte, maxInline+1)))
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []Hash{{1}, small.Content} {
		if err := s.LinkNAR(t.Context(), File{Name: "nar/x", Content: content}); !errors.Is(err, ErrNotFound) {
			t.Errorf("what is no NAR: got %v", err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "state", indexFile)); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir)
	got, err := s.File(t.Context(), file.Name)
	if err != nil || got.Content != first || !got.NAR || got.Size != int64(len(nars[0])) || got.Compression != "gzip" || got.CRC32 == 0 || got.FileSize != 7 || got.FileHash != file.FileHash {
		t.Errorf("got %+v, %v", got, err)
	}
}
