//go:build linux

package main

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedupd/faultfs"
)

const (
	// powerCuts is how many cuts the test makes, or for how long it goes on; without it
	// the test is skipped.
	powerCuts = "DEDUPD_POWERCUT"

	// powerSeed repeats what is uploaded and when the power is cut. When the kernel
	// writes what is its own affair, so a failure may take a few runs to come back.
	powerSeed = "DEDUPD_POWERCUT_SEED"
)

// TestPowerCut runs the server on an ext4 whose disk loses, when the power is cut, any
// part of what was not flushed, and cuts it again and again while clients upload.
// Whatever was acknowledged must be there afterwards, what was not must be there whole
// or not at all, and a check must find nothing.
func TestPowerCut(t *testing.T) {
	p := newPowercut(t)
	more := p.until(os.Getenv(powerCuts))
	for more() {
		if err := p.history(more); err != nil {
			p.keep()
			t.Fatalf("seed %d, history %d, cut %d, mounted with %q: %v", p.seed, p.count.histories, p.count.cuts, p.options, err)
		}
		t.Logf("%+v", p.count)
	}
	if p.count.cuts > 10 && (p.count.acked == 0 || p.count.disk.Dropped == 0) {
		t.Error("the test did nothing")
	}
}

// TestPowerCutFindsMissingSync holds that TestPowerCut would find a missing sync: a
// server whose syncs do nothing must lose something soon.
func TestPowerCutFindsMissingSync(t *testing.T) {
	p := newPowercut(t)
	lost := cmp.Or(os.Getenv(loseSyncs), "all")
	t.Setenv(loseSyncs, lost)
	more := p.until("20")
	for more() {
		if err := p.history(more); err != nil {
			t.Logf("without %s, found at cut %d: %v", lost, p.count.cuts, err)
			return
		}
	}
	t.Errorf("without %s, nothing was lost in %+v", lost, p.count)
}

// A powercut is a machine whose power is cut, the clients of the server that runs on it,
// and what they remember.
type powercut struct {
	t      *testing.T
	seed   uint64
	random *rand.Rand

	dir, root string         // where the disk is served, and its ext4 mounted
	image     *faultfs.Image // in use
	found     *faultfs.Image // as the last cut left it
	disk      *faultfs.Disk
	options   []string // for mounting it
	server    *child
	ending    atomic.Bool // the power is off, or will be any moment

	clients powerClients
	count   powerCount
}

// powerCount is what the test has done.
type powerCount struct {
	histories, cuts int
	acked           int // uploads of NARs and narinfos
	verified        int // that were found again, after each cut
	unacked         int // that were found whole or absent, after each cut
	disk            faultfs.CutReport
}

func newPowercut(t *testing.T) *powercut {
	if os.Getenv(powerCuts) == "" {
		t.Skip("set " + powerCuts + " to a number of cuts, or to a duration")
	}
	if err := faultfs.DiskNeeds(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	p := &powercut{t: t, seed: rand.Uint64(), dir: t.TempDir(), root: t.TempDir()}
	if s := os.Getenv(powerSeed); s != "" {
		var err error
		if p.seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", p.seed)
	p.random = rand.New(rand.NewPCG(p.seed, 0))
	t.Cleanup(func() {
		if err := p.halt(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// until says how long the test goes on: for a number of cuts, or for a duration.
func (p *powercut) until(limit string) (more func() bool) {
	if n, err := strconv.Atoi(limit); err == nil {
		return func() bool { return p.count.cuts < n }
	}
	d, err := time.ParseDuration(limit)
	if err != nil {
		p.t.Fatalf("%s: %v", powerCuts, err)
	}
	end := time.Now().Add(d)
	return func() bool { return time.Now().Before(end) }
}

const (
	powerDisk    = 512 << 20
	powerHistory = 100 << 20 // bytes of NARs, after which the disk is replaced: all are read after each cut
)

// powerOptions are what a disk is mounted with: mostly what everybody has, else what
// makes the kernel write more of what nobody has synced. With data=writeback it also
// gives the blocks of a removed file to others before the removal is on disk: after a
// cut the file is back, with their bytes in it.
var powerOptions = [][]string{nil, nil, nil, {"-o", "commit=1,nodelalloc"}, {"-o", "data=writeback"}}

// history is the life of one disk, from formatting it through many cuts.
func (p *powercut) history(more func() bool) (err error) {
	p.count.histories++
	p.image = faultfs.NewImage(powerDisk)
	p.clients = powerClients{}
	defer func() { p.count.acked += p.clients.acked }()
	if p.disk, err = faultfs.Serve(p.image, p.dir); err != nil {
		return err
	}
	if err := p.disk.Format(); err != nil {
		return err
	}
	p.options = powerOptions[p.random.IntN(len(powerOptions))]
	if err := p.disk.Mount(p.root, p.options...); err != nil {
		return err
	}
	for full := false; !full && more(); full = p.clients.size > powerHistory {
		if err := p.life(); err != nil {
			return err
		}
		if err := p.reboot(); err != nil {
			return err
		}
	}
	// The last cut is looked at, too, and what the server has written since.
	if err := p.boot(); err != nil {
		return err
	}
	return p.halt()
}

// life is from when the machine was started until its power is cut. Now and then that is
// so soon that the server is still starting.
func (p *powercut) life() (err error) {
	if p.random.IntN(5) == 0 {
		if err := p.start(); err != nil {
			return err
		}
		time.Sleep(time.Duration(p.random.IntN(100)) * time.Millisecond)
		p.cut()
		return nil
	}
	if err := p.boot(); err != nil {
		return err
	}
	var running sync.WaitGroup
	failed := make(chan error, 9)
	for range 8 {
		random := rand.New(rand.NewPCG(p.random.Uint64(), 0))
		running.Go(func() {
			err := p.clients.run(p.server.url, random)
			if !p.ending.Load() {
				failed <- err
			}
		})
	}
	random := rand.New(rand.NewPCG(p.random.Uint64(), 0))
	running.Go(func() {
		for !p.image.Off() {
			if err := p.disk.WriteBack(random); err != nil && !p.ending.Load() {
				failed <- err
				return
			}
			time.Sleep(time.Duration(random.IntN(50)) * time.Millisecond)
		}
	})
	wait := time.Duration(20+p.random.IntN(1500)) * time.Millisecond
	if p.random.IntN(6) == 0 {
		wait *= 5 // for what takes many packs
	}
	time.Sleep(wait)
	p.cut()
	running.Wait()
	select {
	case err = <-failed:
	default:
	}
	return err
}

// start starts the server, with so many packs that some leave the spool: as long as one
// is there nobody misses the one in the bucket.
func (p *powercut) start() (err error) {
	p.server, err = startChild(p.root, "--flush-interval", "20ms")
	return err
}

// boot starts the server and verifies that nothing is lost.
func (p *powercut) boot() error {
	if err := p.start(); err != nil {
		return err
	}
	if err := p.server.ready(); err != nil {
		return err
	}
	if err := p.clients.verify(p.server.url, &p.count); err != nil {
		return err
	}
	if out, err := childCommand(p.root, "check", "--read-data").CombinedOutput(); err != nil {
		return fmt.Errorf("check: %w\n%s", err, out)
	}
	return nil
}

// cut cuts the power, mostly while the disk is writing. The server may be left to see
// how all its writes fail, in which case it must still not acknowledge anything that is
// not on the disk.
func (p *powercut) cut() {
	p.ending.Store(true)
	if n := p.random.IntN(64); n > 0 {
		select {
		case <-p.image.PowerOffAfter(n):
		case <-time.After(200 * time.Millisecond): // it writes nothing
		}
	}
	found, stats := p.image.Cut(p.random.Uint64())
	if p.random.IntN(4) == 0 {
		time.Sleep(30 * time.Millisecond)
	}
	p.server.kill()
	p.found = found
	p.count.cuts++
	p.count.disk.Kept += stats.Kept
	p.count.disk.Dropped += stats.Dropped
	p.count.disk.Torn += stats.Torn
}

// reboot puts the disk as the cut has left it in the place of the one before, and
// mounts it, by which the journal of the ext4 is replayed.
func (p *powercut) reboot() (err error) {
	if err := p.halt(); err != nil {
		return err
	}
	p.image = p.found.Clone()
	if p.disk, err = faultfs.Serve(p.image, p.dir); err != nil {
		return err
	}
	// If the ext4 is not sound, the fault is not the server's.
	if err := errors.Join(p.disk.Mount(p.root, p.options...), p.disk.Unmount(), p.disk.Check()); err != nil {
		return fmt.Errorf("the file system did not survive: %w", err)
	}
	p.ending.Store(false)
	return p.disk.Mount(p.root, p.options...)
}

// halt ends the server, without warning, and takes the disk away.
func (p *powercut) halt() error {
	if p.server != nil {
		p.server.kill()
	}
	if p.disk == nil {
		return nil
	}
	defer func() { p.disk = nil }()
	return p.disk.Close()
}

// keep saves what is needed to find out what happened, and says where.
func (p *powercut) keep() {
	dir, err := os.MkdirTemp("", "dedupd-powercut-")
	if err != nil {
		p.t.Error(err)
		return
	}
	if p.server != nil {
		p.server.kill()
		err = os.WriteFile(filepath.Join(dir, "server.log"), []byte(p.server.stderr.String()), 0o600)
	}
	if p.found != nil {
		err = errors.Join(err, p.found.Save(filepath.Join(dir, "found.img")))
	}
	err = errors.Join(err, p.image.Save(filepath.Join(dir, "now.img")))
	p.t.Logf("kept in %s: the disk as the last cut left it, as it is now, and the server's log (%v)", dir, err)
}
