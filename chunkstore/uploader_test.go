package chunkstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// A brokenBucket fails a number of Puts, and notes when all of them were.
type brokenBucket struct {
	bucket.Bucket
	fail int
	puts []time.Time
}

func (b *brokenBucket) Put(context.Context, string, io.ReaderAt, int64) error {
	b.puts = append(b.puts, time.Now())
	if b.fail--; b.fail >= 0 {
		return errors.New("the bucket is broken")
	}
	return nil
}

func (b *brokenBucket) String() string { return "broken" }

// A writtenIndex has everything on disk.
type writtenIndex struct {
	index.Index
	marks map[string]uint64
}

func (ix *writtenIndex) Flush(context.Context) error { return nil }

func (ix *writtenIndex) Marks(context.Context) (map[string]uint64, error) { return ix.marks, nil }

// The uploader tries again after longer and longer times, never longer than an hour apart
// for an interval of a minute, and begins anew after each success.
func TestUploaderWaits(t *testing.T) {
	const retry = time.Minute
	for _, fail := range []int{0, 1, 4, 12} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			b := &brokenBucket{fail: fail}
			ix := &writtenIndex{marks: map[string]uint64{}}
			u := newUploader(b, ix, &spool{dir: dir}, newPackTable(b, ix), retry, slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				u.run(ctx)
			}()
			upload := func(seqs ...uint64) {
				for _, seq := range seqs {
					p := &sealedPack{name: packfile.Name{Seq: seq}, path: filepath.Join(dir, strconv.FormatUint(seq, 10)), entries: 1}
					if err := os.WriteFile(p.path, nil, 0o600); err != nil {
						t.Fatal(err)
					}
					ix.marks[p.name.String()] = 1
					u.add(p)
				}
				if err := u.wait(ctx); err != nil {
					t.Error(err)
				}
			}
			upload(1, 2)
			if len(b.puts) != fail+2 {
				t.Fatalf("got %d attempts, want %d", len(b.puts), fail+2)
			}
			delay := retry
			for i := range fail {
				waited := b.puts[i+1].Sub(b.puts[i])
				if waited < delay/2 || waited > delay {
					t.Errorf("attempt %d came after %v, want %v to %v", i+2, waited, delay/2, delay)
				}
				delay = min(2*delay, maxRetry*retry)
			}
			if waited := b.puts[fail+1].Sub(b.puts[fail]); waited != 0 {
				t.Errorf("the second pack waited for %v", waited)
			}
			b.fail, b.puts = 1, nil
			upload(3)
			if waited := b.puts[1].Sub(b.puts[0]); waited < retry/2 || waited > retry {
				t.Errorf("after a success: waited for %v", waited)
			}
			cancel()
			<-done
		})
	}
}
