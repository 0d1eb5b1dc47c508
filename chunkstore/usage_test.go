package chunkstore

import (
	"errors"
	"reflect"
	"testing"
	"time"
)

func TestView(t *testing.T) {
	rnd, s := testSeed(t), testStore(t, t.TempDir())
	nars := map[Hash][]byte{}
	for range 5 {
		b := randomNAR(t, rnd)
		nars[putNAR(t, s, b)] = b
	}
	stats, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	later := putNAR(t, s, makeNAR(t, testFile{name: "later", data: randomData(rnd, 1000)}))

	var chunks, stored, wire int64
	err = v.EachChunk(t.Context(), func(c Chunk) error {
		chunks++
		stored += c.Stored
		return nil
	})
	if err != nil || chunks != stats.Chunks || stored != stats.FrameBytes {
		t.Errorf("got %d chunks of %d bytes (%v), want %d of %d", chunks, stored, err, stats.Chunks, stats.FrameBytes)
	}
	paths := 0
	err = v.EachPath(t.Context(), func(p Path) error {
		paths++
		want, err := s.NarInfo(t.Context(), p.StorePath.HashPart())
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(p.NarInfo, want) {
			t.Errorf("got %+v, want %+v", p.NarInfo, want)
		}
		if age := time.Since(p.Writer); age < 0 || age > time.Hour {
			t.Errorf("the writer was started %v ago", age)
		}
		use, err := v.Use(t.Context(), p.NarHash)
		if err != nil || use.Size != int64(len(nars[p.NarHash])) {
			t.Errorf("got %+v (%v), want %d bytes", use, err, len(nars[p.NarHash]))
		}
		n, err := v.Wire(t.Context(), p.NarHash)
		wire += n
		return err
	})
	if err != nil || paths != len(nars) || wire != stats.WireBytes {
		t.Errorf("got %d paths that are %d bytes to download (%v), want %d of %d", paths, wire, err, len(nars), stats.WireBytes)
	}
	if _, err := v.Use(t.Context(), later); !errors.Is(err, ErrNotFound) {
		t.Errorf("what was added later: got %v, want %v", err, ErrNotFound)
	}
	if _, err := v.Path(t.Context(), "0000000000000000000000000000000z"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want %v", err, ErrNotFound)
	}
}
