package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// What the tests of byte flips need of the inside of this package. They are outside of
// it, since they ask a gateway.

// RandomData makes contents of n bytes.
var RandomData = randomData

// MakeNAR makes a NAR of a directory with files of these contents.
func MakeNAR(t testing.TB, contents ...[]byte) []byte {
	var files []testFile
	for i, data := range contents {
		files = append(files, testFile{name: fmt.Sprintf("f%03d", i), data: data})
	}
	return makeNAR(t, files...)
}

// PutManyChunkPack puts a pack into a bucket that has the chunks of a NAR, as repo cuts
// it, in frames of several, and what is known of it but its narinfo.
func PutManyChunkPack(t testing.TB, b bucket.Bucket, repo Repository, narBytes []byte) {
	t.Helper()
	s := testStore(t, t.TempDir(), func(o *Options) { o.Repository = repo })
	o, err := s.ingest(t.Context(), bytes.NewReader(narBytes), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	enc, err := packfile.NewEncoder(packfile.LevelDefault)
	if err != nil {
		t.Fatal(err)
	}
	name := packfile.Name{Writer: [10]byte{0, 1}, Seq: 1}
	frames := packfile.Header(name)
	var infos []packfile.FrameInfo
	for chunks := stagedChunks(t, o.stage); len(chunks) > 0; {
		n := min(4, len(chunks))
		f, err := enc.EncodeMany(chunks[:n])
		if err != nil {
			t.Fatal(err)
		}
		frames, infos, chunks = append(frames, f.Stored...), append(infos, f.Info()), chunks[n:]
	}
	commit := packfile.Commit{Records: []packfile.Record{
		{Type: packfile.RecordRecipe, Body: o.recipe},
		{Type: packfile.RecordContent, Body: o.content.encode()},
	}}
	putPack(t, b, name, frames, []packfile.Entry{{Frames: infos, Commit: commit.Append(nil)}})
}

// ScrubRound scrubs everything once, as fast as it can, whenever that was done last.
func (s *Store) ScrubRound(ctx context.Context) (*ScrubRound, error) {
	frames, err := newFrameReaders(s.packs)
	if err != nil {
		return nil, err
	}
	sc := &scrubber{store: s, frames: frames, pace: pacer{rate: 1 << 50}}
	if err := sc.round(ctx); err != nil {
		return nil, err
	}
	status, err := s.scrubStatus(ctx, s.ix)
	if err != nil {
		return nil, err
	}
	return status.Last, nil
}

var (
	WriteBenchPacks = writeBenchPacks
	CPUTime         = cpuTime
)
