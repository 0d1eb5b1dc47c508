package simulation

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/faultfs"
)

// reopen opens the store after whatever happened. Now and then the machine stops while it
// recovers, or the disk fails.
func (r *run) reopen() bool {
	for range 3 {
		at := r.diskOps() + 1 + uint64(r.rng.IntN(60))
		what := pick(r.rng, "", "", "kill", "power cut", "EIO")
		switch what {
		case "":
			return r.openOrRepair()
		case "EIO":
			must(r.here.SetPlan(faultfs.Plan{Faults: []faultfs.Fault{{At: at, Errno: syscall.EIO}}, Seed: r.rng.Uint64()}))
		default:
			must(r.here.SetPlan(faultfs.Plan{Freeze: at, Seed: r.rng.Uint64()}))
		}
		err := r.open()
		r.logf("open with a %s at operation %d: %v", what, at, err)
		if err != nil && r.diskOps() < at {
			return r.openOrRepair()
		}
		if err == nil {
			r.close(true)
			r.life.bucket.kill()
			r.life = nil
		}
		if r.diskOps() >= at {
			r.count("open: " + what)
		}
		r.noLeaks()
		if what != "EIO" {
			r.crash(what == "power cut")
		}
	}
	return r.openOrRepair()
}

// openOrRepair opens the store with nothing in its way. One that has lost a part of its
// spool may ask to be repaired first.
func (r *run) openOrRepair() bool {
	must(r.here.SetPlan(faultfs.Plan{}))
	err := r.open()
	if err != nil && r.unnamed {
		r.logf("open: %v", err)
		r.count("repair to open")
		r.opts.AllowMissingPacks = true
		err = r.open()
		r.opts.AllowMissingPacks = false
		if err == nil {
			report, checkErr := r.life.store.Check(context.Background(), chunkstore.CheckOptions{Repair: true})
			if checkErr != nil || !report.OK() {
				r.bug("repair to open: %v, report %+v", checkErr, report)
				return false
			}
			r.close(false)
			r.life.bucket.kill()
			err = r.open()
		}
	}
	if err != nil {
		r.bug("open: %v", err)
	}
	return err == nil
}

// inspect checks everything after a recovery, heals what is damaged, and compares up to n
// of the names with the model.
func (r *run) inspect(n int) {
	ctx := context.Background()
	c := &client{r, r.split()}
	report, err := r.life.store.Check(ctx, chunkstore.CheckOptions{ReadData: true})
	switch {
	case err != nil:
		r.bug("check: %v", err)
		return
	case r.model.isDamaged():
		r.heal(c, report)
	case report.ProblemCount > 0:
		r.bug("check: %d problems: %q", report.ProblemCount, report.Problems)
		return
	}
	names := r.model.list()
	r.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names[:min(n, len(names))] {
		c.get(name)
	}
}

// heal repairs the store and uploads again what is absent. Then everything must be there.
func (r *run) heal(c *client, before *chunkstore.CheckReport) {
	r.logf("healing; %d problems, affected are %q", before.ProblemCount, before.AffectedPaths)
	r.count("heal")
	ctx := context.Background()
	if r.rng.IntN(2) == 0 { // else only reading finds out
		for _, n := range r.model.list() {
			c.get(n)
		}
	}
	report, err := r.life.store.Check(ctx, chunkstore.CheckOptions{Repair: true})
	if err != nil || !report.OK() {
		r.bug("repair: %v, report %+v", err, report)
		return
	}
	stats, err := r.life.store.Stats(ctx)
	if err != nil {
		r.bug("stats: %v", err)
		return
	}
	// What is in a pack that cannot be read, and that an index made anew does not know.
	unnamed := r.unnamed || len(stats.Recovered.BadPacks) > 0
	absent := []string{}
	for _, n := range r.model.list() {
		if c.get(n) || r.stopped.Load() {
			continue
		}
		if n.kind == aPath {
			absent = append(absent, n.name)
			if n.acked && !unnamed && !slices.ContainsFunc(report.AffectedPaths, func(p string) bool {
				return strings.HasPrefix(filepath.Base(p), strings.TrimSuffix(n.name, ".narinfo"))
			}) {
				r.bug("%s is absent after a repair that does not name it, only %q", n.name, report.AffectedPaths)
			}
		}
		if n.acked {
			r.uploadAgain(c, n)
		}
	}
	r.logf("repaired; absent were %q", absent)
	r.model.setDamaged(false)
	r.unnamed = false
	for _, n := range r.model.list() {
		if c.get(n); r.stopped.Load() {
			return
		}
	}
	if report, err := r.life.store.Check(ctx, chunkstore.CheckOptions{ReadData: true}); err != nil || report.ProblemCount > 0 {
		r.bug("check after healing: %v, report %+v", err, report)
	}
}

// uploadAgain is the plain upload that must heal.
func (r *run) uploadAgain(c *client, n *name) {
	switch n.kind {
	case aFile:
		for _, thing := range n.tried {
			c.stored(n.name, c.put(n.name, thing.([]byte)))
		}
	case aNAR:
		e := n.tried[0].(*encoded)
		c.stored(n.name, c.put(n.name, e.body))
	default:
		e := n.tried[0].(*encoded)
		if c.uploadNAR(e) {
			c.publish(e)
		}
	}
}

// losses are what happens to the files of a store that does not run.
var losses = []struct {
	weight int
	name   string
	do     func(r *run)
}{
	{8, "nothing", func(*run) {}},
	{2, "index lost", func(r *run) { r.remove("state/index.bolt") }},
	{2, "index rebuilt", (*run).rebuild},
	{2, "state lost", (*run).loseState},
	{2, "flipped in bucket", (*run).flipInBucket},
	{2, "flipped in spool", (*run).flipInSpool},
}

// between is the time between two lives.
func (r *run) between() {
	total := 0
	for _, l := range losses {
		total += l.weight
	}
	n := r.rng.IntN(total)
	for _, l := range losses {
		if n -= l.weight; n < 0 {
			r.logf("between: %s", l.name)
			if l.name != "nothing" {
				r.count("between: " + l.name)
			}
			must(r.here.SetPlan(faultfs.Plan{}))
			l.do(r)
			r.sync()
			return
		}
	}
}

// sync makes what was done by hand durable.
func (r *run) sync() {
	for _, v := range []*faultfs.Volume{r.here, r.there} {
		must(filepath.WalkDir(v.Path(), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Sync()
		}))
	}
}

func (r *run) remove(name string) {
	if err := os.RemoveAll(filepath.Join(r.here.Path(), name)); err != nil {
		must(err)
	}
}

func (r *run) files(v *faultfs.Volume, dir string, suffixes ...string) (paths []string) {
	filepath.WalkDir(filepath.Join(v.Path(), dir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains(suffixes, filepath.Ext(path)) {
			paths = append(paths, path)
		}
		return nil
	})
	return paths
}

func (r *run) loseState() {
	if spooled := r.files(r.here, "state/spool", ".pack", ".frames", ".journal"); len(spooled) > 0 {
		r.logf("lost are %q", spooled)
		r.model.stateLost()
	}
	r.remove("state")
}

func (r *run) rebuild() {
	if len(r.files(r.here, "state", ".bolt")) == 0 {
		return
	}
	b, err := r.openBucket()
	must(err)
	opts := r.options()
	opts.Bucket = b
	if _, err := chunkstore.RebuildIndex(context.Background(), opts, chunkstore.RebuildOptions{Memory: pick[int64](r.rng, 4096, 1<<20)}); err != nil {
		r.bug("rebuild: %v", err)
	}
}

// flipInBucket damages a pack in the bucket. One that is still in the spool is left alone:
// the damage would show only when it has left that, for a check looks there first.
func (r *run) flipInBucket() {
	paths := slices.DeleteFunc(r.files(r.there, "bucket/packs", ".pack"), func(path string) bool {
		name, _ := filepath.Rel(filepath.Join(r.there.Path(), "bucket/packs"), path)
		stem := filepath.Join(r.here.Path(), "state/spool", strings.TrimSuffix(name, ".pack"))
		spooled, err := filepath.Glob(stem + ".*")
		must(err)
		return len(spooled) > 0
	})
	r.flip(paths)
}

// flipInSpool damages what no bucket has: paths may be lost so that nobody knows of them.
func (r *run) flipInSpool() {
	r.unnamed = true
	r.flip(r.files(r.here, "state/spool", ".pack", ".frames", ".journal"))
}

// flip flips a bit in one of some files.
func (r *run) flip(paths []string) {
	if len(paths) == 0 {
		return
	}
	path := pick(r.rng, paths...)
	b, err := os.ReadFile(path)
	must(err)
	if len(b) == 0 {
		return
	}
	at := r.rng.IntN(len(b))
	if r.rng.IntN(2) == 0 {
		at = len(b) - 1 - r.rng.IntN(min(len(b), 2000)) // small, but there is much in it
	}
	r.logf("flip a bit in byte %d of %d of %s", at, len(b), path)
	r.model.setDamaged(true)
	must(os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(err)
	defer f.Close()
	_, err = f.WriteAt([]byte{b[at] ^ 1<<r.rng.IntN(8)}, int64(at))
	must(err)
}

// last opens the store a last time, and compares everything.
func (r *run) last() {
	if !r.reopen() {
		return
	}
	if r.inspect(1 << 30); r.stopped.Load() {
		return
	}
	acked := r.model.ackedNames()
	if err := r.life.store.Flush(context.Background()); err != nil {
		r.bug("flush: %v", err)
	}
	r.model.flushed(acked)
	r.close(false)
	r.life.bucket.kill()
	r.noLeaks()
	r.ops.Add(r.diskOps())
	r.life = nil
}
