package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
)

// An s3Life is what a store goes through whose bucket fails: it is opened, takes uploads,
// flushes them, serves all from the bucket, and does so again after a restart.
type s3Life struct {
	server    *s3test.Server
	name      string // of the bucket
	prefix    string // in the bucket
	state     string
	nars      [][]byte
	failed    int   // steps that had to be tried again
	forgotten error // the first that called something acknowledged absent
}

const s3Tries = 20 // of a step, by a client who does not give up

func (l *s3Life) open(ctx context.Context, endpoint string) (s *Store, err error) {
	url := strings.Replace(l.server.URL(l.name, endpoint), "/some/prefix", "/"+l.prefix, 1)
	b, err := bucket.OpenS3(ctx, url+"&timeout=500ms")
	if err != nil {
		return nil, err
	}
	repo := DefaultRepository(testStoreDir, Rabin)
	repo.MinSize, repo.AverageBits, repo.MaxSize = 4<<10, 13, 64<<10
	return Open(ctx, Options{
		State: l.state, Bucket: b, Repository: repo, PackSize: 128 << 10, FlushInterval: time.Hour, Log: discard(),
		IndexMemory: 128 << 10, RetryInterval: 5 * time.Millisecond, CacheSize: 16 << 20,
	})
}

func (l *s3Life) try(what string, step func() error) error {
	var err error
	for range s3Tries {
		if err = step(); err == nil {
			return nil
		}
		if errors.Is(err, ErrNotFound) && l.forgotten == nil {
			l.forgotten = fmt.Errorf("%s: %w", what, err)
		}
		l.failed++
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (l *s3Life) run(ctx context.Context, t testing.TB, endpoint string) error {
	for life := range 2 {
		var s *Store
		if err := l.try("open", func() (err error) { s, err = l.open(ctx, endpoint); return err }); err != nil {
			return err
		}
		err := l.use(ctx, t, s, life == 0)
		if err := errors.Join(err, s.Close(ctx)); err != nil {
			return err
		}
	}
	return nil
}

func (l *s3Life) use(ctx context.Context, t testing.TB, s *Store, upload bool) error {
	if upload {
		for _, b := range l.nars {
			if err := l.try("upload", func() error { return uploadPath(ctx, t, s, b) }); err != nil {
				return err
			}
		}
		if err := l.try("flush", func() error { return s.Flush(ctx) }); err != nil {
			return err
		}
	}
	for _, b := range l.nars {
		if err := l.try("read", func() error { return readPath(ctx, t, s, b) }); err != nil {
			return err
		}
	}
	return nil
}

func uploadPath(ctx context.Context, t testing.TB, s *Store, b []byte) error {
	hash := Hash(sha256.Sum256(b))
	if _, err := s.PutNAR(ctx, narName(hash), bytes.NewReader(b), nil); err != nil {
		return err
	}
	return s.PutNarInfo(ctx, testNarInfo(t, hash, len(b)))
}

// readPath reads what uploadPath has written. Other bytes than those are an error of the test.
func readPath(ctx context.Context, t testing.TB, s *Store, b []byte) error {
	hash := Hash(sha256.Sum256(b))
	if _, err := s.NarInfo(ctx, testNarInfo(t, hash, len(b)).StorePath.HashPart()); err != nil {
		return err
	}
	var got bytes.Buffer
	if err := readNAR(ctx, s, hash, &got); err != nil {
		if !bytes.HasPrefix(b, got.Bytes()) {
			t.Errorf("a wrong byte was sent before %v", err)
		}
		return err
	}
	if !bytes.Equal(got.Bytes(), b) {
		t.Error("another NAR was served")
	}
	return nil
}

// check looks at what is left, without the proxy: with the state directory, and then from
// the bucket alone.
func (l *s3Life) check(t testing.TB) error {
	for _, what := range []string{"with its state", "from the bucket alone"} {
		s, err := l.open(t.Context(), l.server.Endpoint)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		for _, b := range l.nars {
			err = errors.Join(err, readPath(t.Context(), t, s, b))
		}
		report, checkErr := s.Check(t.Context(), CheckOptions{ReadData: true})
		if checkErr == nil && !report.OK() {
			checkErr = fmt.Errorf("check: %q", report.Problems)
		}
		if n := s.Counters().DamagedChunks; n > 0 {
			checkErr = errors.Join(checkErr, fmt.Errorf("%d chunks were marked as damaged", n))
		}
		if err := errors.Join(err, checkErr, s.Close(t.Context())); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := os.RemoveAll(l.state); err != nil {
			return err
		}
	}
	return nil
}

// Each request of a store's life goes wrong in turn, in every way: DEDUPD_FAULTS=all does so
// for every request and both servers, else it is a sample.
func TestFaultRequests(t *testing.T) {
	rnd := testSeed(t)
	var nars [][]byte
	shared := randomData(rnd, 40<<10)
	for range 8 {
		nars = append(nars, makeNAR(t, testFile{name: "own", data: randomData(rnd, 50<<10)}, testFile{name: "shared", data: shared}))
	}
	for _, kind := range s3test.Servers {
		if kind != s3test.Servers[0] && os.Getenv("DEDUPD_FAULTS") == "" {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			server, dir := s3test.Start(t, kind), t.TempDir()
			server.NewBucket(t, "bucket")
			var lives atomic.Int64
			live := func(decide func(n int64, r *http.Request) *s3test.Fault) (l *s3Life, requests int64, err error) {
				proxy := s3test.NewProxy(t, server.Endpoint)
				defer proxy.CloseClientConnections()
				proxy.Set(decide)
				prefix := fmt.Sprint("life-", lives.Add(1))
				l = &s3Life{server: server, name: "bucket", prefix: prefix, state: filepath.Join(dir, prefix), nars: nars}
				err = l.run(t.Context(), t, proxy.URL)
				requests = proxy.Requests()
				if err == nil {
					err = l.check(t)
				}
				return l, requests, err
			}
			l, n, err := live(nil)
			if err != nil || l.failed > 0 {
				t.Fatalf("without any fault: %v, %d steps failed", err, l.failed)
			}
			t.Logf("a life has %d requests", n)
			for _, f := range append(s3test.Transient, s3test.WrongBytes, s3test.Revoked) {
				t.Run(f.Name, func(t *testing.T) {
					var noticed atomic.Int64
					points := faultPoints(t, rnd, uint64(n), 3)
					parallel(t, points, func(k uint64) {
						count := int64(1)
						if f == s3test.Revoked {
							count = 10 // requests, and then they are valid again
						}
						l, _, err := live(func(n int64, r *http.Request) *s3test.Fault {
							if n < int64(k) || n >= int64(k)+count {
								return nil
							}
							return f
						})
						if err == nil {
							err = l.forgotten
						}
						if err != nil {
							t.Errorf("%s at request %d: %v", f.Name, k, err)
						}
						if l.failed > 0 {
							noticed.Add(1)
							if f != s3test.WrongBytes && f != s3test.Revoked {
								t.Errorf("%s at request %d: %d steps failed, which retries should have hidden", f.Name, k, l.failed)
							}
						}
					})
					t.Logf("%s: %d of %d requests, a client noticed %d", f.Name, len(points), n, noticed.Load())
				})
			}
		})
	}
}
