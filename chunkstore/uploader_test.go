package chunkstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// A brokenBucket fails the first Puts of each key, all of those of a bad one, and notes
// when they came. Each Put takes some time.
type brokenBucket struct {
	bucket.Bucket
	fail int
	bad  string
	took time.Duration

	mu            sync.Mutex
	puts          map[string][]time.Time
	running, most int
}

func (b *brokenBucket) Put(ctx context.Context, key string, _ io.ReaderAt, _ int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.puts[key] = append(b.puts[key], time.Now())
	b.running++
	b.most = max(b.most, b.running)
	b.mu.Unlock()
	time.Sleep(b.took)
	b.mu.Lock()
	b.running--
	if len(b.puts[key]) <= b.fail || key == b.bad {
		return errors.New("the bucket is broken")
	}
	return ctx.Err()
}

func (b *brokenBucket) String() string { return "broken" }

// A writtenIndex has everything on disk.
type writtenIndex struct {
	index.Index
	marks map[string]uint64
}

func (ix *writtenIndex) Flush(context.Context) error { return nil }

func (ix *writtenIndex) Marks(context.Context) (map[string]uint64, error) { return ix.marks, nil }

// An uploaderTest runs an uploader in a bubble.
type uploaderTest struct {
	*uploader
	bucket *brokenBucket
	ix     *writtenIndex
	dir    string
}

func testUploader(t *testing.T, b *brokenBucket, parallel int, retry time.Duration, test func(t *testing.T, u *uploaderTest)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ix := &writtenIndex{marks: map[string]uint64{}}
		b.puts = map[string][]time.Time{}
		opts := &Options{Bucket: b, ParallelPuts: parallel, RetryInterval: retry, Log: slog.New(slog.DiscardHandler)}
		u := &uploaderTest{newUploader(opts, ix, &spool{dir: dir}, newPackTable(b, ix)), b, ix, dir}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			u.run(ctx)
		}()
		test(t, u)
		cancel()
		<-done
		u.drain(t.Context())
	})
}

// add hands packs over, and returns their keys.
func (u *uploaderTest) add(t *testing.T, seqs ...uint64) (keys []string) {
	for _, seq := range seqs {
		p := &sealedPack{name: packfile.Name{Seq: seq}, path: filepath.Join(u.dir, strconv.FormatUint(seq, 10)), entries: 1}
		if err := os.WriteFile(p.path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		u.ix.marks[p.name.String()] = 1
		u.uploader.add(p)
		keys = append(keys, packKey(p.name))
	}
	return keys
}

// The uploader tries a pack again after longer and longer times, never longer than an hour
// apart for an interval of a minute, and each pack for itself.
func TestUploaderWaits(t *testing.T) {
	const retry = time.Minute
	for _, fail := range []int{0, 1, 4, 12} {
		testUploader(t, &brokenBucket{fail: fail}, 1, retry, func(t *testing.T, u *uploaderTest) {
			keys := u.add(t, 1, 2)
			if err := u.wait(t.Context()); err != nil {
				t.Error(err)
			}
			for _, key := range keys {
				puts := u.bucket.puts[key]
				if len(puts) != fail+1 {
					t.Fatalf("got %d attempts, want %d", len(puts), fail+1)
				}
				delay := retry
				for i := range fail {
					waited := puts[i+1].Sub(puts[i])
					if waited < delay/2 || waited > delay {
						t.Errorf("attempt %d came after %v, want %v to %v", i+2, waited, delay/2, delay)
					}
					delay = min(2*delay, maxRetry*retry)
				}
			}
		})
	}
}

// A pack that the bucket never takes holds up no other, and packs go up as many at a time
// as they may.
func TestUploaderParallel(t *testing.T) {
	for _, parallel := range []int{1, 3} {
		bad := packKey(packfile.Name{Seq: 2})
		testUploader(t, &brokenBucket{bad: bad, took: time.Second}, parallel, time.Hour, func(t *testing.T, u *uploaderTest) {
			start := time.Now()
			u.add(t, 1, 2, 3, 4, 5, 6)
			for left := 6; left > 1; {
				u.mu.Lock()
				n, change := len(u.waiting), u.change
				u.mu.Unlock()
				if left = n; left > 1 {
					<-change
				}
			}
			if took, want := time.Since(start), time.Duration(6/parallel)*time.Second; took != want {
				t.Errorf("%d at a time: took %v, want %v", parallel, took, want)
			}
			if u.bucket.most != parallel {
				t.Errorf("%d Puts at a time, want %d", u.bucket.most, parallel)
			}
			for seq, want := range map[uint64]bool{0: true, 1: true, 2: false, 6: false, 7: false} {
				if ok, _ := u.has(seq); ok != want {
					t.Errorf("the bucket has all up to %d: got %v", seq, ok)
				}
			}
		})
	}
}

// TestUploaderOrder holds back what relies on a pack that the bucket does not have.
func TestUploaderOrder(t *testing.T) {
	testUploader(t, &brokenBucket{fail: 3}, 4, time.Minute, func(t *testing.T, u *uploaderTest) {
		names := []packfile.Name{{Seq: 1}, {Seq: 2}, {Seq: 3}, {Seq: 4}}
		for i, name := range names {
			p := &sealedPack{name: name, path: filepath.Join(u.dir, strconv.Itoa(i)), entries: 1}
			if i == 1 || i == 2 { // each on the one before; the last one on nothing
				p.relies = map[packfile.Name]bool{names[i-1]: true, {Seq: 100}: true}
			}
			if err := os.WriteFile(p.path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			u.ix.marks[name.String()] = 1
			u.uploader.add(p)
		}
		if err := u.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		at := func(i, attempt int) time.Time {
			puts := u.bucket.puts[packKey(names[i])]
			return puts[(attempt+len(puts))%len(puts)]
		}
		if !at(1, 0).Before(at(2, 0)) || at(1, 0).Before(at(0, -1)) || at(2, 0).Before(at(1, -1)) {
			t.Errorf("got %v", u.bucket.puts)
		}
		if !at(3, 0).Equal(at(0, 0)) {
			t.Errorf("what relies on nothing was held back: got %v", u.bucket.puts)
		}
	})
}
