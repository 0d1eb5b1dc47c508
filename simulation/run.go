package simulation

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/faultfs"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
)

// A run is the history of one repository.
type run struct {
	fs      *faultfs.FS
	rng     *rand.Rand // of the goroutine that runs the run
	repo    chunkstore.Repository
	opts    chunkstore.Options // but for State and Bucket
	key     narinfo.PrivateKey
	library *library
	model   *model
	here    *faultfs.Volume // where the state directory is
	there   *faultfs.Volume // where the bucket is; it may be the same
	life    *life           // nil between two
	unnamed bool            // names of what is damaged may be lost, too

	begun                                      time.Time
	operations, requests, verified, lives, ops atomic.Uint64

	mu      sync.Mutex
	counts  map[string]uint64 // faults and events by kind
	lines   []string          // of the log, the last ones
	bugs    []string
	stopped atomic.Bool // after a bug nobody goes on
}

// A life is the time between opening a store and its end.
type life struct {
	store   *chunkstore.Store
	gateway *gateway.Gateway
	bucket  *faultyBucket
	disk    atomic.Bool // the disk has failed, or was full
	broken  bool        // the store may have stopped taking writes
	ending  atomic.Bool // the store is closed, or the machine stops
}

// Result is what a run has done.
type Result struct {
	Lives      uint64            `json:"lives"`
	Operations uint64            `json:"operations"` // of clients
	Requests   uint64            `json:"requests"`
	Verified   uint64            `json:"verified"` // paths of which every byte was compared
	Acked      int64             `json:"acked"`    // paths
	DiskOps    uint64            `json:"disk_ops"`
	Counts     map[string]uint64 `json:"counts"` // of faults and events by kind
	Bugs       []string          `json:"bugs"`   // none, it is hoped
	Log        []string          `json:"log"`    // the end of it, if there are bugs
}

const (
	maxLines = 4000
	livesMin = 3
	livesMax = 7
)

// Run runs the simulation of one seed. It needs FUSE.
func Run(t testing.TB, seed uint64) *Result {
	rng := rand.New(rand.NewPCG(seed, 0))
	r := &run{
		fs: faultfs.Mount(t), rng: rng, model: newModel(), begun: time.Now(), counts: map[string]uint64{},
	}
	var err error
	r.here, err = r.fs.NewVolume()
	must(err)
	if r.there = r.here; rng.IntN(2) == 0 {
		r.there, err = r.fs.NewVolume()
		must(err)
	}
	r.settings()
	r.library = newLibrary(rng, r.repo.StoreDir)
	for range livesMin + rng.IntN(livesMax-livesMin+1) {
		if r.live(); r.stopped.Load() {
			break
		}
		r.between()
	}
	if !r.stopped.Load() {
		r.last()
	}
	r.end()
	res := &Result{
		Lives: r.lives.Load(), Operations: r.operations.Load(), Requests: r.requests.Load(), Verified: r.verified.Load(),
		DiskOps: r.ops.Load(), Counts: r.counts, Bugs: r.bugs,
	}
	res.Acked, _ = r.model.counts()
	if len(r.bugs) > 0 {
		res.Log = r.lines
	}
	return res
}

// end closes what a bug has left open. Buckets close when they are found unused.
func (r *run) end() {
	if r.life != nil {
		r.close(true)
		r.life = nil
	}
	for range 3 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
}

// settings draws those of the repository and the store.
func (r *run) settings() {
	rng := r.rng
	r.repo = chunkstore.DefaultRepository(pick(rng, "/nix/store", "/gnu/store"), pick(rng, chunkstore.Rabin, chunkstore.FastCDC))
	r.repo.MinSize, r.repo.AverageBits = 4096, 13+rng.IntN(3)
	r.repo.MaxSize = 1 << (r.repo.AverageBits + 1 + rng.IntN(3))
	r.repo.Literal = pick(rng, 0, 1, 256, 1024, 4096)
	r.opts = chunkstore.Options{
		Repository:    r.repo,
		PackSize:      pick[int64](rng, 64<<10, 256<<10, 1<<20),
		FlushInterval: time.Duration(5+rng.IntN(45)) * time.Millisecond,
		PieceMemory:   pick[int64](rng, 2<<20, 16<<20),
		PlanCache:     pick[int64](rng, 1, 64<<10, 8<<20),
		IndexMemory:   pick(rng, 1<<10, 64<<10, 8<<20),
		CacheSize:     pick[int64](rng, 0, 16<<20),
		RetryInterval: time.Duration(2+rng.IntN(20)) * time.Millisecond,
		Limits: chunkstore.Limits{
			MaxUploads: 1 + rng.IntN(8),
			SpoolSize:  pick[int64](rng, 128<<10, 2<<20, 1<<30),
		},
		Log: slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	var err error
	r.key, err = narinfo.GenerateKey("simulation-1")
	must(err)
	r.logf("repository %+v, options %+v, bucket on the same disk: %v", r.repo, r.opts, r.here == r.there)
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// open makes a life of what is on disk.
func (r *run) open() error {
	opts := r.options()
	l := &life{}
	var err error
	if l.bucket, err = r.openBucket(); err != nil {
		return err
	}
	opts.Bucket = l.bucket
	if l.store, err = chunkstore.Open(context.Background(), opts); err != nil {
		return err
	}
	l.gateway = gateway.New(l.store, gateway.Config{Keys: []narinfo.PrivateKey{r.key}, Log: r.opts.Log})
	r.life = l
	r.lives.Add(1)
	return nil
}

func (r *run) openBucket() (*faultyBucket, error) {
	dir, err := bucket.OpenDir(filepath.Join(r.there.Path(), "bucket"))
	return &faultyBucket{Bucket: dir, count: r.count, lie: func() { r.model.setDamaged(true) }, rng: r.split()}, err
}

func (r *run) options() chunkstore.Options {
	opts := r.opts
	opts.State = filepath.Join(r.here.Path(), "state")
	return opts
}

// A window is the time of a request, from its start.
type window struct {
	acked    bool   // that is asked for
	failures uint64 // of the bucket, before
}

func (r *run) begin(name string) window {
	n := r.model.get(name)
	return window{n != nil && n.acked, r.life.bucket.failures()}
}

// readsMayFail says whether something happened since that makes reading fail.
func (r *run) readsMayFail(w window) bool {
	return r.model.isDamaged() || r.life.ending.Load() || r.life.bucket.failures() != w.failures
}

// writesMayFail says whether something happened in this life that makes writing fail.
func (r *run) writesMayFail() bool { return r.life.disk.Load() || r.life.ending.Load() }

func (r *run) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[what]++
}

func (r *run) logf(format string, args ...any) {
	line := fmt.Sprintf("%8.3f ", time.Since(r.begun).Seconds()) + fmt.Sprintf(format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lines = append(r.lines, line); len(r.lines) > 2*maxLines {
		r.lines = append(r.lines[:0], r.lines[maxLines:]...)
	}
}

// Write takes the log of the store.
func (r *run) Write(p []byte) (int, error) {
	_, line, _ := strings.Cut(string(bytes.TrimSpace(p)), " ") // without the time
	r.logf("  %s", line)
	return len(p), nil
}

// bug notes that something is not as it must be.
func (r *run) bug(format string, args ...any) {
	r.logf("BUG: "+format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bugs = append(r.bugs, fmt.Sprintf(format, args...))
	r.stopped.Store(true)
}
