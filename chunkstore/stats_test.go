package chunkstore

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

// Three rebuilds of one NAR, with other hashes: masking stores their chunks once.
func TestStats(t *testing.T) {
	rnd := testSeed(t)
	s := testStore(t, t.TempDir())
	hash := randomHash(rnd)
	data := append([]byte(testStoreDir+"/"+hash+"-x\n"), make([]byte, 50<<10)...) // a NAR of one chunk
	for i := range data[100:] {
		data[100+i] = byte(rnd.Uint32())
	}
	var total int64
	for range 3 {
		rebuilt := bytes.Replace(data, []byte(hash), []byte(randomHash(rnd)), 1)
		b := makeNAR(t, testFile{name: "a", data: rebuilt})
		putNAR(t, s, b)
		total += int64(len(b))
	}
	if _, err := s.PutFile(t.Context(), "log/x", strings.NewReader("a log")); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.StorePaths != 3 || st.NARs != 3 || st.Files != 1 || st.UploadedFiles != 3 {
		t.Errorf("counts: got %+v", st)
	}
	if st.PathBytes != total || st.NARBytes != total || st.UploadedBytes != total || st.FileBytes != 5 {
		t.Errorf("bytes of what came in: got %+v, want %d", st, total)
	}
	if n := total / 3; st.Chunks != 1 || st.ChunkBytes != n || st.FrameBytes < n-500 || st.FrameBytes > n+200 {
		t.Errorf("chunks: got %+v", st)
	}
	if want := 2 * st.FrameBytes; st.MaskingSavedBytes != want {
		t.Errorf("masking saved %d bytes, want %d", st.MaskingSavedBytes, want)
	}
	if st.StoredBytes < st.FrameBytes || st.SpoolPacks != 1 || st.Packs != 1 || st.Objects != 1 {
		t.Errorf("what is stored: got %+v", st)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err = s.Stats(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st.SpoolPacks != 0 || st.SpoolBytes != 0 || st.Objects != 2 {
		t.Errorf("after a flush: got %+v", st)
	}
	var text strings.Builder
	if err := st.WriteText(&text); err != nil || !strings.Contains(text.String(), "store paths") {
		t.Errorf("text: %v\n%s", err, text.String())
	}
}

// Sums of many distinct things are estimated in bounded memory.
func TestDistinct(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var d distinct
	var want int64
	for range 5 * maxDistinct {
		h, size := rnd.Uint64(), 1+rnd.Int64N(1000)
		d.add(h, size)
		d.add(h, size)
		want += size
	}
	if got := d.sum(); got < want*98/100 || got > want*102/100 || len(d.sizes) > maxDistinct {
		t.Errorf("got %d of %d, with %d remembered", got, want, len(d.sizes))
	}
}
