package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// countedReads is a bucket that counts what is asked of each object.
type countedReads struct {
	bucket.Bucket
	mu    sync.Mutex
	reads map[string]int
}

func countReads(b bucket.Bucket) *countedReads {
	return &countedReads{Bucket: b, reads: map[string]int{}}
}

func (b *countedReads) count(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads[key]++
}

func (b *countedReads) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	b.count(key)
	return b.Bucket.ReadAt(ctx, key, p, off)
}

func (b *countedReads) Stat(ctx context.Context, key string) (bucket.Info, error) {
	b.count(key)
	return b.Bucket.Stat(ctx, key)
}

// longPack returns the bytes of a pack with many small frames, and with so many bytes of
// records, which do not become much smaller.
func longPack(t testing.TB, name packfile.Name, frames, records int) []byte {
	t.Helper()
	e := packfile.Entry{}
	b := packfile.Header(name)
	for i := range frames {
		f := packfile.FrameInfo{Kind: packfile.KindPatch, Prefix: 1, Payload: 20, Chunks: []packfile.Chunk{{Len: 30}}}
		binary.LittleEndian.PutUint64(f.Chunks[0].ID[:], uint64(i)<<32|name.Seq)
		b = append(b, make([]byte, f.Size())...)
		e.Frames = append(e.Frames, f)
	}
	commit := packfile.Commit{}
	for i := 0; records > 0; i++ {
		f := File{Name: fmt.Sprintf("log/%d-%d", name.Seq, i), inline: noise(min(records, maxInline), byte(i))}
		commit.Records = append(commit.Records, packfile.Record{Type: packfile.RecordName, Body: f.encode()})
		records -= len(f.inline)
	}
	e.Commit = commit.Append(nil)
	b, err := packfile.AppendTail(b, name, []packfile.Entry{e})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRebuildReads counts what a rebuilding reads of each pack: its tail, and nothing
// else of a pack like those that stores write.
func TestRebuildReads(t *testing.T) {
	dir := t.TempDir()
	_, _ = variedStore(t, dir)
	opts := rebuildOptions(t, dir)
	want := map[string]int{}
	for _, p := range readPacks(t, dir) {
		want[packKey(p.Name)] = 1
	}
	for i, tt := range []struct{ frames, records, reads int }{
		{1, 0, 1},
		{0, 10 << 10, 1},
		{1000, 10 << 10, 1},
		{10_000, 0, 2},
		{0, 1 << 20, 2},
		{50_000, 3 << 20, 2},
	} {
		name := packfile.Name{Writer: [10]byte{9}, Seq: uint64(i + 1)}
		b := longPack(t, name, tt.frames, tt.records)
		if err := opts.Bucket.Put(t.Context(), packKey(name), bytes.NewReader(b), int64(len(b))); err != nil {
			t.Fatal(err)
		}
		want[packKey(name)] = tt.reads
	}
	b := countReads(opts.Bucket)
	opts.Bucket = b
	report, err := RebuildIndex(t.Context(), opts, RebuildOptions{})
	if err != nil || report.Packs != len(want) || report.Omitted != 0 {
		t.Fatalf("got %+v, %v, want %d packs", report, err, len(want))
	}
	for key, n := range b.reads {
		if strings.HasPrefix(key, packPrefix) && n != want[key] {
			t.Errorf("%s: %d reads, want %d", key, n, want[key])
		}
	}
}

// TestTailWithoutRoom reads a tail in two steps, and nothing twice.
func TestTailWithoutRoom(t *testing.T) {
	name := packfile.Name{Writer: [10]byte{9}, Seq: 1}
	b := longPack(t, name, 10_000, 0)
	from := &countedReaderAt{ReaderAt: bytes.NewReader(b)}
	tl := &tail{name: name, size: int64(len(b)), from: from, need: packfile.TailGuess(int64(len(b)))}
	for i, room := range []bool{false, true} {
		if err := tl.read(func(int64) bool { return room }); err != nil || tl.err != nil || (tl.pack != nil) != room || from.reads != i+1 {
			t.Fatalf("with room %v: got pack %v after %d reads, %v, %v", room, tl.pack != nil, from.reads, err, tl.err)
		}
	}
	if len(tl.pack.Frames) != 10_000 || from.bytes != tl.need {
		t.Errorf("got %d frames, and read %d bytes for a tail of %d", len(tl.pack.Frames), from.bytes, tl.need)
	}
}

type countedReaderAt struct {
	io.ReaderAt
	reads int
	bytes int64
}

func (r *countedReaderAt) ReadAt(p []byte, off int64) (int, error) {
	r.reads++
	r.bytes += int64(len(p))
	return r.ReaderAt.ReadAt(p, off)
}

// TestTailsInOrder reads more tails than there is memory for, of which some are longer
// than was expected, damaged, or absent.
func TestTailsInOrder(t *testing.T) {
	at, err := bucket.Open(t.Context(), "file://"+filepath.Join(t.TempDir(), "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	var tails []*tail
	for i := range 40 {
		name := packfile.Name{Writer: [10]byte{9}, Seq: uint64(i + 1)}
		b := longPack(t, name, 10, i%2*(4<<20))
		if i%5 == 1 {
			b[len(b)-100] ^= 1
		}
		if i%5 != 2 {
			if err := at.Put(t.Context(), packKey(name), bytes.NewReader(b), int64(len(b))); err != nil {
				t.Fatal(err)
			}
		}
		tails = append(tails, &tail{name: name, size: int64(len(b)), from: bucketReader{t.Context(), at, packKey(name)}})
	}
	i := 0
	err = readTails(t.Context(), tails, func(got *tail) error {
		whole := i%5 != 1 && i%5 != 2
		if got.name.Seq != uint64(i+1) || (got.pack != nil) != whole || whole != (got.err == nil) || (i%5 == 2) != errors.Is(got.err, bucket.ErrNotFound) {
			t.Errorf("tail %d: got pack %v, %v", i, got.name, got.err)
		}
		i++
		return nil
	})
	if err != nil || i != len(tails) {
		t.Errorf("got %d tails, %v", i, err)
	}
	failed := errors.New("failed")
	if err := readTails(t.Context(), tails, func(*tail) error { return failed }); err != failed {
		t.Errorf("got %v", err)
	}
	tails[20].from = bucketReader{t.Context(), &failing{at, true}, "x"}
	if err := readTails(t.Context(), tails, func(*tail) error { return nil }); !errors.Is(err, errUnreachable) {
		t.Errorf("got %v", err)
	}
}
