package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/dedupd/dedupd/faultfs"
)

const (
	minOperations = 2000 // of an undisturbed run
	killSample    = 24   // operations, unless DEDUPD_FAULTS says more
	killPaths     = 340
	killClients   = 8
	cutsPerKill   = 2
	recoveryEvery = 8 // one recovery in so many is killed too
	maxLosses     = 5 // after which there is no point in going on
)

// TestKillPoints kills the server at operation k of its disk, from the first of its start
// to the last of its shutdown, while clients upload. A server that is started on what a
// kill leaves there, or a power cut at that moment, or a kill of the server that recovers
// from either, must have everything that was acknowledged, whole, and nothing in halves.
//
// It does so for some k; DEDUPD_FAULTS=all is for every k, a number for so many.
func TestKillPoints(t *testing.T) {
	seed := rand.Uint64()
	p := &killPoints{seed: seed, fs: faultfs.Mount(t)}
	var err error
	if p.load, err = newKillLoad(seed, killPaths); err != nil {
		t.Fatal(err)
	}
	ops, err := p.undisturbed()
	if err != nil {
		t.Fatalf("seed %d: without a fault: %v", seed, err)
	}
	if ops < minOperations {
		t.Errorf("an undisturbed run has %d operations, want %d", ops, minOperations)
	}
	points := killSamples(t, seed, ops)
	t.Logf("seed %d: %d of %d operations", seed, len(points), ops)

	next := make(chan uint64)
	var workers sync.WaitGroup
	var losses atomic.Int64
	for range 3 { // a server waits now and then
		workers.Go(func() {
			for k := range next {
				if err := p.kill(k); err != nil {
					losses.Add(1)
					t.Errorf("seed %d: %v", seed, err)
				}
			}
		})
	}
	for i, k := range points {
		if losses.Load() >= maxLosses {
			break
		}
		next <- k
		if i%100 == 99 {
			t.Logf("%d operations: %v", i+1, &p.count)
		}
	}
	close(next)
	workers.Wait()
	t.Logf("%v", &p.count)
	if kills := int(p.count.kills.Load()); losses.Load() == 0 && kills < len(points)*3/4 {
		t.Errorf("%d of %d operations were reached", kills, len(points))
	}
}

// killSamples returns the operations of n to kill at: so many as DEDUPD_FAULTS says, spread
// over all.
func killSamples(t *testing.T, seed, n uint64) []uint64 {
	sample := uint64(killSample)
	if testing.Short() {
		sample = killSample / 4
	}
	switch text := os.Getenv("DEDUPD_FAULTS"); text {
	case "":
	case "all":
		sample = n
	default:
		var err error
		if sample, err = strconv.ParseUint(text, 10, 64); err != nil || sample == 0 {
			t.Fatalf("DEDUPD_FAULTS is %q, neither all nor a number", text)
		}
	}
	sample = min(sample, n)
	points := make([]uint64, sample)
	for i := range points {
		points[i] = 1 + (seed%n+uint64(i)*n/sample)%n
	}
	return points
}

// killPoints is what all runs share.
type killPoints struct {
	seed  uint64
	fs    *faultfs.FS
	load  *killLoad
	count killCount
}

// killCount is what was done. Each check is of a server that was started anew, on a disk
// after a kill or a power cut.
type killCount struct{ kills, recoveryKills, cuts, checks, infos, nars atomic.Int64 }

func (c *killCount) String() string {
	return fmt.Sprintf("%d kills, %d kills after a restart, %d power cuts, %d checks of %d narinfos and %d NARs that were acknowledged",
		c.kills.Load(), c.recoveryKills.Load(), c.cuts.Load(), c.checks.Load(), c.infos.Load(), c.nars.Load())
}

// undisturbed does a whole run and returns the number of its operations.
func (p *killPoints) undisturbed() (uint64, error) {
	v, err := p.fs.NewVolume()
	if err != nil {
		return 0, err
	}
	defer v.Drop()
	run := p.load.newRun()
	killed, err := run.live(v)
	if err == nil && killed {
		err = errors.New("the server was killed")
	}
	if err != nil {
		return 0, err
	}
	ops, err := v.Ops()
	if err != nil {
		return 0, err
	}
	_, err = p.verify(v, run)
	return ops, err
}

// kill does a run that ends at operation k, and looks at what may be left of it.
func (p *killPoints) kill(k uint64) error {
	v, err := p.fs.NewVolume()
	if err != nil {
		return err
	}
	defer v.Drop()
	if err := v.SetPlan(faultfs.Plan{Kill: k, Seed: p.seed}); err != nil {
		return err
	}
	run := p.load.newRun()
	killed, err := run.live(v)
	if err != nil {
		return fmt.Errorf("until operation %d: %w", k, err)
	}
	if killed {
		p.count.kills.Add(1)
	}
	at := fmt.Sprintf("killed at operation %d, %s", k, v.Describe(k))
	left, err := v.Copy(0)
	if err != nil {
		return err
	}
	if err := p.recovers(left, run, k, at); err != nil {
		return err
	}
	for i := range uint64(cutsPerKill) {
		seed := p.seed + k*cutsPerKill + i
		left, report, err := v.Cut(0, seed)
		if err != nil {
			return err
		}
		p.count.cuts.Add(1)
		if err := p.recovers(left, run, k+i, fmt.Sprintf("%s, power cut with seed %d: %+v", at, seed, report)); err != nil {
			return err
		}
	}
	return nil
}

// recovers looks at what a server makes of v, which is dropped, and for some n also at what
// the next one makes of it when the first is killed.
func (p *killPoints) recovers(v *faultfs.Volume, run *killRun, n uint64, at string) error {
	defer v.Drop()
	again, err := v.Copy(0)
	if err != nil {
		return err
	}
	defer again.Drop()
	ops, err := p.verify(v, run)
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if n%recoveryEvery != 0 || ops == 0 {
		return nil
	}
	k := 1 + rand.New(rand.NewPCG(p.seed, n)).Uint64N(ops)
	if err := p.recoversKilled(again, run, k); err != nil {
		return fmt.Errorf("%s, then in recovery at operation %d, %s: %w", at, k, again.Describe(k), err)
	}
	return nil
}

// recoversKilled kills the server that is started on v at operation k, or when it is ready,
// and looks at what the next one makes of that, and of a power cut then.
func (p *killPoints) recoversKilled(v *faultfs.Volume, run *killRun, k uint64) error {
	if err := v.SetPlan(faultfs.Plan{Kill: k, Seed: p.seed}); err != nil {
		return err
	}
	c, err := startKilled(v)
	if err != nil {
		return err
	}
	if c != nil {
		c.kill()
	}
	p.count.recoveryKills.Add(1)
	if err := v.SetPlan(faultfs.Plan{}); err != nil {
		return err
	}
	cut, report, err := v.Cut(0, p.seed+k)
	if err != nil {
		return err
	}
	defer cut.Drop()
	p.count.cuts.Add(1)
	if _, err := p.verify(v, run); err != nil {
		return err
	}
	if _, err := p.verify(cut, run); err != nil {
		return fmt.Errorf("power cut with seed %d: %+v: %w", p.seed+k, report, err)
	}
	return nil
}

// verify starts the server on v, looks at everything, uploads something, kills it, and has
// the store checked. It returns the number of operations until the server was ready.
func (p *killPoints) verify(v *faultfs.Volume, run *killRun) (uint64, error) {
	c, err := startKilled(v)
	if err != nil {
		return 0, err
	}
	if c == nil {
		return 0, errors.New("the server was killed")
	}
	defer c.kill()
	ops, err := v.Ops()
	if err != nil {
		return 0, err
	}
	infos, nars, err := run.verify(c.url)
	if err != nil {
		return 0, fmt.Errorf("%w\nlog of the server:\n%s", err, c.stderr)
	}
	c.kill()
	if out, err := childCommand(v.Path(), "check", "--read-data").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("check: %w\n%s", err, out)
	}
	p.count.checks.Add(1)
	p.count.infos.Add(int64(infos))
	p.count.nars.Add(int64(nars))
	return ops, nil
}

// startKilled starts a server on v and waits until it is ready. It returns nil if it was
// killed before. Packs are sealed at once, so that there are many.
func startKilled(v *faultfs.Volume) (*child, error) {
	c, err := startChild(v.Path(), "--flush-interval", "3ms")
	if err != nil {
		return nil, err
	}
	if err = c.ready(); err == nil {
		return c, nil
	}
	if wasKilled(c) {
		err = nil
	}
	return nil, err
}

// shutDown has the server end, and says whether it was killed, before or meanwhile.
func shutDown(c *child) (killed bool, err error) {
	c.cmd.Process.Signal(syscall.SIGTERM) // an error is that it has ended
	err = c.cmd.Wait()
	if wasKilled(c) {
		return true, nil
	}
	if err != nil {
		err = fmt.Errorf("the server ended: %w\n%s", err, c.stderr)
	}
	return false, err
}

func wasKilled(c *child) bool {
	return c.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}
