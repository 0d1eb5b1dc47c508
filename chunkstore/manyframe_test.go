package chunkstore

import (
	"bytes"
	"crypto/sha256"
	"path/filepath"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// Ingest writes one chunk into each frame. Compaction will write many, and packs made
// by it are served by today's code: here is one, made by hand, with the chunks of a NAR
// in a few frames, and its metadata in another pack.
func TestServeFramesOfManyChunks(t *testing.T) {
	rnd := testSeed(t)
	var files []testFile
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		files = append(files, testFile{name: name, data: randomData(rnd, 400<<10)})
	}
	files = append(files, testFile{name: "f", data: files[1].data}) // its chunks twice
	narBytes := makeNAR(t, files...)

	s := testStore(t, t.TempDir())
	o, err := s.ingest(t.Context(), bytes.NewReader(narBytes), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	chunks := stagedChunks(t, o.stage)
	if len(chunks) < 6 {
		t.Fatalf("only %d chunks", len(chunks))
	}

	dir := t.TempDir()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	enc, err := packfile.NewEncoder(packfile.LevelDefault)
	if err != nil {
		t.Fatal(err)
	}
	data := packfile.Name{Writer: [10]byte{9}, Seq: 1}
	frames := packfile.Header(data)
	var infos []packfile.FrameInfo
	for len(chunks) > 0 {
		n := min(4, len(chunks))
		f, err := enc.EncodeMany(chunks[:n])
		if err != nil {
			t.Fatal(err)
		}
		frames, infos, chunks = append(frames, f.Stored...), append(infos, f.Info()), chunks[n:]
	}
	putPack(t, b, data, frames, []packfile.Entry{{Frames: infos}})

	meta := packfile.Name{Writer: [10]byte{8}, Seq: 1} // applied before the other
	info := testNarInfo(t, o.content.hash, len(narBytes))
	commit := packfile.Commit{Packs: []packfile.Name{data}, Records: []packfile.Record{
		{Type: packfile.RecordRecipe, Body: o.recipe},
		{Type: packfile.RecordContent, Body: o.content.encode()},
		{Type: packfile.RecordNarInfo, Body: info.Append(nil, testStoreDir)},
	}}
	putPack(t, b, meta, packfile.Header(meta), []packfile.Entry{{Commit: commit.Append(nil)}})

	s = testStore(t, dir)
	checkNAR(t, s, rnd, narBytes)
	if got, err := s.NarInfo(t.Context(), info.StorePath.HashPart()); err != nil || got.NarHash != sha256.Sum256(narBytes) {
		t.Errorf("narinfo: got %v, %v", got, err)
	}
	// The chunks are known, whatever frame they are in.
	putNAR(t, s, narBytes)
	if r := checkStore(t, s); r.Frames != int64(len(infos)) {
		t.Errorf("uploading the NAR again made %d frames of %d", r.Frames, len(infos))
	}
}

// stagedChunks decodes the frames of a stage.
func stagedChunks(t testing.TB, s *stage) (chunks []packfile.ManyChunk) {
	t.Helper()
	dec, err := packfile.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.frames {
		stored := make([]byte, f.Size())
		if s.file == nil {
			copy(stored, s.mem[f.off:])
		} else if _, err := s.file.ReadAt(stored, f.off); err != nil {
			t.Fatal(err)
		}
		v, err := packfile.ParseFrame(f.Kind, 1, stored, f.Prefix, f.CRC)
		if err != nil {
			t.Fatal(err)
		}
		masked, err := dec.Decode(nil, &v, int(f.Chunks[0].Len))
		if err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, packfile.ManyChunk{ID: f.Chunks[0].ID, Masked: masked, Spans: v.Spans(0)})
	}
	return chunks
}

func putPack(t testing.TB, b bucket.Bucket, name packfile.Name, frames []byte, entries []packfile.Entry) {
	t.Helper()
	pack, err := packfile.AppendTail(frames, name, entries)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), packKey(name), bytes.NewReader(pack), int64(len(pack))); err != nil {
		t.Fatal(err)
	}
}
