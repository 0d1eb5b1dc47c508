package simulation

import (
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/faultfs"
)

// live opens the store, has clients and events until there were enough of them, and ends
// the life in one way or another.
func (r *run) live() {
	if !r.reopen() {
		return
	}
	r.inspect(40)
	var clients, scrubbing sync.WaitGroup
	scrub, cancel := context.WithCancel(context.Background())
	if r.rng.IntN(3) == 0 {
		r.count("scrub")
		store := r.life.store
		scrubbing.Go(func() {
			if err := store.Scrub(scrub, 64<<20); err != nil && !r.writesMayFail() {
				r.bug("scrub: %v", err)
			}
		})
	}
	enough := make(chan struct{})
	for range 2 + r.rng.IntN(5) {
		c := &client{r, r.split()}
		clients.Go(func() {
			for !r.stopped.Load() {
				select {
				case <-enough:
					return
				default:
					c.act()
				}
			}
		})
	}
	for range 2 + r.rng.IntN(8) {
		r.pause(40)
		if r.stopped.Load() {
			break
		}
		if r.event(); r.life.broken && r.rng.IntN(3) > 0 {
			break
		}
	}
	end := ends[r.rng.IntN(len(ends))]
	r.logf("end of a life: %s", end.name)
	r.count("end: " + end.name)
	if end.freezes {
		r.freeze()
	}
	close(enough)
	r.life.bucket.set(nil, 0)
	cancel()
	scrubbing.Wait()
	limit := 2 * time.Minute // machines are busy
	if end.freezes || r.life.disk.Load() {
		limit = 3 * time.Second
	}
	if !r.waitFor(&clients, limit) && limit > 3*time.Second {
		r.bug("requests do not end, though nothing is in their way")
	}
	r.close(end.freezes)
	clients.Wait()
	r.life.bucket.kill()
	r.noLeaks()
	r.life = nil
	if end.freezes {
		r.crash(end.cuts)
	}
}

// ends are the ways in which a life ends.
var ends = []struct {
	name          string
	freezes, cuts bool
}{
	{"stop", false, false},
	{"kill", true, false},
	{"power cut", true, true},
}

func (r *run) split() *rand.Rand { return rand.New(rand.NewPCG(r.rng.Uint64(), 1)) }

func (r *run) pause(ms int) { time.Sleep(time.Duration(r.rng.IntN(ms)) * time.Millisecond) }

// waitFor says whether the clients end in time.
func (r *run) waitFor(clients *sync.WaitGroup, limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		clients.Wait()
	}()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// freeze stops the machine in the middle of one of the next operations of its disk, or
// before them, if there are none.
func (r *run) freeze() {
	r.life.disk.Store(true)
	at := r.diskOps() + 1 + uint64(r.rng.IntN(200))
	must(r.here.SetPlan(faultfs.Plan{Freeze: at, Seed: r.rng.Uint64()}))
	for range 50 {
		if r.diskOps() >= at {
			break
		}
		time.Sleep(time.Millisecond)
	}
	r.life.ending.Store(true)
	r.life.bucket.kill()
	// Those who are on their way to the disk come too late.
	must(r.here.SetPlan(faultfs.Plan{Freeze: min(at, r.diskOps()+1), Seed: r.rng.Uint64()}))
}

func (r *run) diskOps() uint64 {
	n, err := r.here.Ops()
	must(err)
	return n
}

// close closes the store, which may fail if the machine has stopped.
func (r *run) close(stopped bool) {
	r.life.ending.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := r.life.store.Close(ctx)
	r.logf("closed: %v", err)
	if err != nil && !stopped && !r.life.disk.Load() {
		r.bug("close: %v", err)
	}
}

// crash goes on with what is left on disk.
func (r *run) crash(cut bool) {
	r.ops.Add(r.diskOps())
	before := r.here
	var err error
	if cut {
		var report faultfs.CutReport
		r.here, report, err = before.Cut(0, r.rng.Uint64())
		r.logf("power cut: %+v", report)
	} else {
		r.here, err = before.Copy(0)
	}
	must(err)
	if r.there == before {
		r.there = r.here
	}
}

// noLeaks checks that nothing of a closed store runs any more.
func (r *run) noLeaks() {
	var left string
	for range 200 {
		buf := make([]byte, 4<<20)
		buf = buf[:runtime.Stack(buf, true)]
		i := slices.IndexFunc(strings.Split(string(buf), "\n\n"), isStores)
		if i < 0 {
			return
		}
		left = strings.Split(string(buf), "\n\n")[i]
		time.Sleep(10 * time.Millisecond)
	}
	r.bug("a goroutine is left:\n%s", left)
}

func isStores(stack string) bool {
	if strings.Contains(stack, "dedupd/simulation.") && strings.Contains(stack, "noLeaks") {
		return false
	}
	for _, pkg := range []string{"chunkstore", "gateway", "index", "bucket", "compression"} {
		if strings.Contains(stack, "dedupd/dedupd/"+pkg+".") {
			return true
		}
	}
	return false
}

// events are what happens while clients are at work, and how often.
var events = []struct {
	weight int
	name   string
	do     func(r *run)
}{
	{6, "bucket", (*run).bucketFails},
	{2, "disk error", (*run).diskFails},
	{2, "disk full", (*run).diskFull},
	{3, "flush", (*run).flush},
	{3, "check", (*run).check},
	{2, "stats", (*run).stats},
	{2, "nothing", func(r *run) { r.pause(100) }},
}

func (r *run) event() {
	total := 0
	for _, e := range events {
		total += e.weight
	}
	n := r.rng.IntN(total)
	for _, e := range events {
		if n -= e.weight; n < 0 {
			r.logf("event: %s", e.name)
			r.count("event: " + e.name)
			e.do(r)
			return
		}
	}
}

func (r *run) bucketFails() {
	f := &bucketFaults[r.rng.IntN(len(bucketFaults))]
	if f.lies && r.rng.IntN(3) > 0 {
		return // else nearly every life is one in which little can be said
	}
	percent := pick(r.rng, 5, 30, 100)
	r.logf("bucket: %s, %d%%", f.name, percent)
	r.life.bucket.set(f, percent)
	r.pause(150)
	r.life.bucket.set(nil, 0)
}

func (r *run) diskFails() {
	at, short := r.diskOps()+1+uint64(r.rng.IntN(30)), r.rng.IntN(4) == 0
	r.life.disk.Store(true)
	r.logf("disk: EIO at operation %d", at)
	must(r.here.SetPlan(faultfs.Plan{Faults: []faultfs.Fault{{At: at, Errno: syscall.EIO, Short: short}}, Seed: r.rng.Uint64()}))
	r.pause(100)
	if r.diskOps() >= at {
		r.logf("disk: it was %s", r.here.Describe(at))
		r.count("disk: EIO")
		r.life.broken = true
	}
}

func (r *run) diskFull() {
	at := r.diskOps() + 1 + uint64(r.rng.IntN(30))
	r.life.disk.Store(true)
	r.logf("disk: full from operation %d on", at)
	must(r.here.SetPlan(faultfs.Plan{Faults: []faultfs.Fault{{At: at, Count: 1 << 40, Errno: syscall.ENOSPC, Short: true}}, Seed: r.rng.Uint64()}))
	r.pause(100)
	must(r.here.SetPlan(faultfs.Plan{}))
	if r.diskOps() >= at {
		r.count("disk: full")
	}
}

// faultless says whether no fault happened in this life so far.
func (r *run) faultless() bool {
	return !r.life.disk.Load() && r.life.bucket.failures() == 0 && !r.model.isDamaged()
}

func (r *run) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	if !r.faultless() {
		cancel()
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
	}
	defer cancel()
	acked := r.model.ackedNames()
	switch err := r.life.store.Flush(ctx); {
	case err == nil:
		r.model.flushed(acked)
	case r.faultless():
		r.bug("flush: %v", err)
	default:
		r.logf("flush: %v", err)
	}
}

// check checks the store while it is used.
func (r *run) check() {
	opts := chunkstore.CheckOptions{ReadData: r.rng.IntN(2) == 0, Repair: r.rng.IntN(4) == 0}
	failures := r.life.bucket.failures()
	report, err := r.life.store.Check(context.Background(), opts)
	switch {
	case r.model.isDamaged() || r.life.bucket.failures() != failures:
	case err != nil && r.life.disk.Load():
	case err != nil:
		r.bug("check: %v", err)
	case report.ProblemCount > 0:
		r.bug("check with %+v: %d problems: %q", opts, report.ProblemCount, report.Problems)
	}
}

func (r *run) stats() {
	acked, _ := r.model.counts()
	s, err := r.life.store.Stats(context.Background())
	_, tried := r.model.counts()
	switch {
	case err != nil && r.faultless():
		r.bug("stats: %v", err)
	case err == nil && !r.model.isDamaged() && (s.StorePaths < acked || s.StorePaths > tried):
		r.bug("stats: %d store paths, but %d were acknowledged and %d tried", s.StorePaths, acked, tried)
	}
}
