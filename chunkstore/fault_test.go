package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/faultfs"
)

func TestMain(m *testing.M) {
	faultfs.Child()
	os.Exit(m.Run())
}

// The tests below run eight clients, and look at what is left of every operation of the
// store on its disk: state directory and bucket lie in one volume. DEDUPD_FAULTS=all does so
// for every operation, DEDUPD_FAULTS=n for n of them; else it is a sample.

const (
	faultClients = 8
	faultNARs    = 28  // of each client
	faultSample  = 24  // operations
	faultBatch   = 300 // of these, with a mount of their own: what the kernel remembers of a volume stays in memory
)

// faultPoints returns the numbers of operations to look at, in 1 … n.
func faultPoints(t *testing.T, rnd *rand.Rand, n uint64, sample int) []uint64 {
	t.Helper()
	switch env := os.Getenv("DEDUPD_FAULTS"); env {
	case "":
		if testing.Short() {
			sample = max(1, sample/3)
		}
	case "all":
		sample = int(n)
	default:
		var err error
		if sample, err = strconv.Atoi(env); err != nil {
			t.Fatalf("DEDUPD_FAULTS: %v", err)
		}
	}
	sample = min(sample, int(n))
	points := make([]uint64, sample)
	for i := range points { // one of each n/sample that follow each other
		from, to := n*uint64(i)/uint64(sample), n*uint64(i+1)/uint64(sample)
		points[i] = from + 1 + rnd.Uint64N(to-from)
	}
	return points
}

// A faultRun is an upload of NARs to a store in a volume, and what was acknowledged.
type faultRun struct {
	volume *faultfs.Volume
	nars   [][]byte

	mu    sync.Mutex
	acked map[Hash]*acknowledged
}

// acknowledged says at which operation a client knew that a NAR, and its narinfo, is kept; 0
// is never.
type acknowledged struct{ nar, path uint64 }

// faultNARSet makes NARs that have chunks in common, one with more than a stage holds in memory.
func faultNARSet(t testing.TB, rnd *rand.Rand) (nars [][]byte) {
	shared := randomData(rnd, 64<<10)
	for i := range faultClients * faultNARs {
		n := rnd.IntN(24 << 10)
		if i == faultNARs/2 {
			n = 2 * stageMemory
		}
		files := []testFile{{name: "own", data: randomData(rnd, n)}, {name: "same", data: randomData(rnd, 1000)}}
		if i%3 == 0 {
			files = append(files, testFile{name: "shared", data: shared[:16<<10*(1+i%4)]})
		}
		nars = append(nars, makeNAR(t, files...))
	}
	return nars
}

func newFaultRun(t testing.TB, v *faultfs.Volume, nars [][]byte) *faultRun {
	t.Helper()
	r := &faultRun{volume: v, nars: nars, acked: map[Hash]*acknowledged{}}
	for _, b := range nars {
		r.acked[sha256.Sum256(b)] = &acknowledged{}
	}
	return r
}

// openFaulty opens the store of a volume.
func openFaulty(ctx context.Context, v *faultfs.Volume, log *slog.Logger, change ...func(*Options)) (*Store, error) {
	b, err := bucket.Open(ctx, "file://"+filepath.Join(v.Path(), "bucket"))
	if err != nil {
		return nil, err
	}
	repo := DefaultRepository(testStoreDir, Rabin)
	repo.MinSize, repo.AverageBits, repo.MaxSize = 4<<10, 13, 64<<10
	opts := Options{
		State: filepath.Join(v.Path(), "state"), Bucket: b, Repository: repo, PackSize: 128 << 10, FlushInterval: 20 * time.Millisecond,
		Limits: Limits{SpaceTimeout: time.Millisecond}, Log: log, IndexMemory: 128 << 10, RetryInterval: 5 * time.Millisecond,
	}
	for _, c := range change {
		c(&opts)
	}
	return Open(ctx, opts)
}

// upload opens the store and uploads everything, each thing up to three times, whatever the
// answers are. It returns the first error.
func (r *faultRun) upload(t testing.TB, log *slog.Logger) error {
	ctx := t.Context()
	s, err := openFaulty(ctx, r.volume, log)
	if err != nil {
		return err
	}
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for client := range faultClients {
		wg.Go(func() {
			for i := client; i < len(r.nars); i += faultClients {
				if err := r.uploadOne(ctx, t, s, r.nars[i]); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if p := failed.Load(); p != nil {
		err = *p
		r.checkAcked(t, s, 0) // what broke does not concern what there is
	}
	return errors.Join(err, s.Close(ctx))
}

func (r *faultRun) uploadOne(ctx context.Context, t testing.TB, s *Store, b []byte) (first error) {
	hash := Hash(sha256.Sum256(b))
	for range 3 {
		_, err := s.PutNAR(ctx, narName(hash), bytes.NewReader(b), nil)
		if err == nil {
			r.ack(t, &r.acked[hash].nar)
			if err = s.PutNarInfo(ctx, testNarInfo(t, hash, len(b))); err == nil {
				r.ack(t, &r.acked[hash].path)
				return first
			}
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (r *faultRun) ack(t testing.TB, at *uint64) {
	n, err := r.volume.Ops()
	if err != nil {
		t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	*at = n
}

// faultCounts are what the tests report.
type faultCounts struct{ faults, stopped, paths, lost atomic.Int64 }

func (c *faultCounts) log(t *testing.T, what string) {
	t.Logf("%s: %d faults, %d of them in operations of a store that then closed or did not open, %d acknowledged paths verified, %d lost",
		what, c.faults.Load(), c.stopped.Load(), c.paths.Load(), c.lost.Load())
}

// checkAcked reads everything that was acknowledged before operation at, or at all if that
// is 0, and looks whether the rest is there as a whole, or not.
func (r *faultRun) checkAcked(t testing.TB, s *Store, at uint64) (paths int64, bad []string) {
	t.Helper()
	acked := func(n uint64) bool { return n != 0 && (at == 0 || n < at) }
	for _, want := range r.nars {
		hash := Hash(sha256.Sum256(want))
		r.mu.Lock()
		a := *r.acked[hash]
		r.mu.Unlock()
		info := testNarInfo(t, hash, len(want))
		got, err := s.NarInfo(t.Context(), info.StorePath.HashPart())
		switch {
		case err == nil && (got.NarHash != hash || got.NarSize != uint64(len(want))):
			bad = append(bad, fmt.Sprintf("%s: narinfo %+v", info.StorePath, got))
		case err == nil && acked(a.path):
			paths++
		case errors.Is(err, ErrNotFound) && !acked(a.path):
		case err != nil:
			bad = append(bad, fmt.Sprintf("%s, acknowledged at %+v: narinfo: %v", info.StorePath, a, err))
		}
		var plain bytes.Buffer
		readErr := readNAR(t.Context(), s, hash, &plain)
		switch {
		case readErr == nil && !bytes.Equal(plain.Bytes(), want):
			bad = append(bad, fmt.Sprintf("%s: NAR of %d bytes is another one", info.StorePath, plain.Len()))
		case readErr == nil, errors.Is(readErr, ErrNotFound) && err != nil && !acked(a.nar):
		default:
			bad = append(bad, fmt.Sprintf("%s, acknowledged at %+v: NAR: %v", info.StorePath, a, readErr))
		}
	}
	for _, text := range bad {
		t.Error(text)
	}
	return paths, bad
}

func readNAR(ctx context.Context, s *Store, hash Hash, w io.Writer) error {
	o, err := s.Object(ctx, hash)
	if err != nil {
		return err
	}
	return o.WritePlain(ctx, w, 0, o.Size())
}

// checkLeft opens what is left in v and checks all of it, then that it still works.
func (r *faultRun) checkLeft(t *testing.T, v *faultfs.Volume, at uint64, c *faultCounts, what string) {
	t.Helper()
	c.faults.Add(1)
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	bad := func() (bad []string) {
		s, err := openFaulty(t.Context(), v, log)
		if err != nil {
			return []string{fmt.Sprintf("open: %v", err)}
		}
		defer func() {
			if err := s.Close(context.WithoutCancel(t.Context())); err != nil {
				bad = append(bad, fmt.Sprintf("close: %v", err))
			}
		}()
		paths, bad := r.checkAcked(t, s, at)
		c.paths.Add(paths)
		report, err := s.Check(t.Context(), CheckOptions{ReadData: true})
		if err != nil {
			bad = append(bad, fmt.Sprintf("check: %v", err))
		} else if !report.OK() {
			bad = append(bad, fmt.Sprintf("check: %q", report.Problems))
		}
		again := &faultRun{volume: v, nars: r.nars, acked: map[Hash]*acknowledged{}}
		for _, b := range r.nars[:2] {
			again.acked[sha256.Sum256(b)] = &acknowledged{}
			if err := again.uploadOne(t.Context(), t, s, b); err != nil {
				bad = append(bad, fmt.Sprintf("upload afterwards: %v", err))
			}
		}
		return bad
	}()
	if len(bad) > 0 {
		c.lost.Add(int64(len(bad)))
		if at != 0 {
			what = fmt.Sprintf("%s %d (%s)", what, at, r.volume.Describe(at))
		}
		t.Errorf("%s: %d findings, the first is %s\nlog:\n%s", what, len(bad), bad[0], text.Bytes())
	}
	if err := v.Drop(); err != nil {
		t.Error(err)
	}
}

// parallel calls fn for every point, two at a time, and says how far it is.
func parallel(t *testing.T, points []uint64, fn func(uint64)) {
	var wg sync.WaitGroup
	next := make(chan uint64)
	for range 2 {
		wg.Go(func() {
			for p := range next {
				fn(p)
			}
		})
	}
	for i, p := range points {
		next <- p
		if (i+1)%100 == 0 {
			t.Logf("%d of %d operations", i+1, len(points))
		}
	}
	close(next)
	wg.Wait()
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A process that is killed, and a machine whose power is cut, before any operation.
func TestFaultCrash(t *testing.T) {
	rnd := testSeed(t)
	fs := faultfs.Mount(t)
	nars := faultNARSet(t, rnd)
	measure := newFaultRun(t, newVolume(t, fs), nars)
	if err := measure.upload(t, discard()); err != nil {
		t.Fatal(err)
	}
	n, _ := measure.volume.Ops()
	if n < 2000 {
		t.Errorf("a run has %d operations, want 2000 or more", n)
	}
	points := faultPoints(t, rnd, n, faultSample)
	r := newFaultRun(t, newVolume(t, fs), nars)
	if err := r.volume.SetPlan(faultfs.Plan{Snapshots: points, Seed: rnd.Uint64()}); err != nil {
		t.Fatal(err)
	}
	if err := r.upload(t, discard()); err != nil {
		t.Fatal(err)
	}
	seed := rnd.Uint64()
	var kills, cuts faultCounts
	parallel(t, points, func(at uint64) {
		left, err := r.volume.Copy(at)
		if err != nil {
			return // this run was shorter than the first
		}
		r.checkLeft(t, left, at, &kills, "killed before operation")
		for i := range uint64(2) {
			left, _, err := r.volume.Cut(at, seed+at+i)
			if err != nil {
				t.Error(err)
				return
			}
			r.checkLeft(t, left, at, &cuts, "power cut before operation")
		}
	})
	t.Logf("%d operations", n)
	kills.log(t, "kill")
	cuts.log(t, "power cut")
}

func newVolume(t testing.TB, fs *faultfs.FS) *faultfs.Volume {
	t.Helper()
	v, err := fs.NewVolume()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Operations that fail: one, or a disk that stays full for a while. What was acknowledged,
// before and after, survives a restart and a power cut.
func TestFaultErrors(t *testing.T) {
	rnd := testSeed(t)
	fs := faultfs.Mount(t)
	nars := faultNARSet(t, rnd)
	measure := newFaultRun(t, newVolume(t, fs), nars)
	if err := measure.upload(t, discard()); err != nil {
		t.Fatal(err)
	}
	n, _ := measure.volume.Ops()
	for _, c := range []struct {
		name   string
		faults func(at uint64) []faultfs.Fault
	}{
		{"EIO", func(at uint64) []faultfs.Fault { return []faultfs.Fault{{At: at, Errno: syscall.EIO}} }},
		{"ENOSPC", func(at uint64) []faultfs.Fault {
			return []faultfs.Fault{{At: at, Errno: syscall.ENOSPC, Count: 1 + at%40}}
		}},
		{"short", func(at uint64) []faultfs.Fault {
			return []faultfs.Fault{{At: at, Short: true}, {At: at + 1, Errno: syscall.ENOSPC}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var counts faultCounts
			points := faultPoints(t, rnd, n, faultSample)
			for batch := range slices.Chunk(points, faultBatch) {
				t.Run(fmt.Sprint("from ", batch[0]), func(t *testing.T) {
					fs := faultfs.Mount(t)
					parallel(t, batch, func(at uint64) { failAt(t, fs, nars, at, c.name, c.faults(at), &counts) })
				})
			}
			counts.log(t, c.name)
		})
	}
}

// failAt has operations fail from number at on, and looks at what is left of everything.
func failAt(t *testing.T, fs *faultfs.FS, nars [][]byte, at uint64, name string, faults []faultfs.Fault, counts *faultCounts) {
	r := newFaultRun(t, newVolume(t, fs), nars)
	if err := r.volume.SetPlan(faultfs.Plan{Faults: faults, Seed: at}); err != nil {
		t.Error(err)
		return
	}
	if err := r.upload(t, discard()); err != nil {
		counts.stopped.Add(1)
	}
	if err := r.volume.SetPlan(faultfs.Plan{}); err != nil {
		t.Error(err)
	}
	what := fmt.Sprintf("%s at operation %d (%s, then %s)", name, at, r.volume.Describe(at), r.volume.Describe(at+1))
	left, _, err := r.volume.Cut(0, at)
	if err != nil {
		t.Error(err)
		return
	}
	r.checkLeft(t, left, 0, counts, what+" and then a power cut")
	counts.faults.Add(-1) // the same one
	r.checkLeft(t, r.volume, 0, counts, what)
}
