package report

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/packfile"
)

// An attribution finds out what is stored for what. All paths are walked twice, those of a
// package one after another: first it is counted how many packages and paths use each
// chunk, then each of them gets its part.
type attribution struct {
	*Report
	opts     Options
	view     *chunkstore.View
	storeDir string
	sorted   sorter // of paths: package, a zero byte, hash part
	chunks   chunks
	total    int64 // paths in sorted
}

func (a *attribution) sortPaths(ctx context.Context) error {
	a.sorted.dir, a.sorted.max = a.opts.TempDir, int(max(a.opts.Memory/32, 64<<10))
	a.opts.Progress(Progress{Step: "sorting the store paths"})
	return a.view.EachPath(ctx, func(p chunkstore.Path) error {
		a.total++
		return a.sorted.add(p.StorePath.Package() + "\x00" + p.StorePath.HashPart())
	})
}

func (a *attribution) readChunks(ctx context.Context) error {
	a.opts.Progress(Progress{Step: "reading the table of chunks", Total: a.Store.Chunks})
	a.chunks.max = int(max(a.opts.Memory/slotSize, 1))
	return a.view.EachChunk(ctx, func(c chunkstore.Chunk) error {
		a.chunks.add(c)
		return nil
	})
}

// A walked path is one with the chunks that were sampled of it.
type walked struct {
	chunkstore.Path
	pkg      string
	number   uint32 // of the package, from 1 on
	slots    []int  // distinct ones, in order
	wire     estimate
	literals int64
}

// walk calls fn with all paths that are whole, in order of the packages.
func (a *attribution) walk(ctx context.Context, step string, fn func(*walked) error) error {
	a.Paths, a.AbsentPaths, a.Packages = 0, 0, 0
	w := &walked{}
	done := int64(0)
	return a.sorted.each(func(line string) error {
		if done%1000 == 0 {
			a.opts.Progress(Progress{step, done, a.total})
		}
		done++
		pkg, hashPart, _ := strings.Cut(line, "\x00")
		if whole, err := a.load(ctx, hashPart, w); err != nil {
			return err
		} else if !whole {
			a.AbsentPaths++
			return nil
		}
		if pkg != w.pkg || a.Packages == 0 {
			a.Packages++
			w.pkg, w.number = pkg, uint32(a.Packages)
		}
		a.Paths++
		return fn(w)
	})
}

// load reads what a path consists of into w, and says whether it is all there.
func (a *attribution) load(ctx context.Context, hashPart string, w *walked) (whole bool, err error) {
	if w.Path, err = a.view.Path(ctx, hashPart); err != nil {
		return false, err
	}
	use, err := a.view.Use(ctx, w.NarHash)
	if errors.Is(err, chunkstore.ErrNotFound) || errors.Is(err, packfile.ErrCorrupt) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	w.slots, w.wire, w.literals = w.slots[:0], estimate{}, use.Literals
	for _, id := range use.Chunks {
		key := keyOf(id)
		if !a.chunks.sampled(key) {
			continue
		}
		i := a.chunks.find(key)
		if i < 0 {
			return false, nil
		}
		w.slots = append(w.slots, i)
		w.wire.add(float64(a.chunks.slots[i].wire))
	}
	slices.Sort(w.slots)
	w.slots = slices.Compact(w.slots)
	return true, nil
}

// wireBytes is what a client downloads of w.
func (a *attribution) wireBytes(w *walked) int64 { return w.literals + a.chunks.total(w.wire) }

func (a *attribution) countUsers(ctx context.Context) error {
	err := a.walk(ctx, "counting who uses what", func(w *walked) error {
		for _, i := range w.slots {
			s := &a.chunks.slots[i]
			s.paths++
			if s.last != w.number {
				s.last = w.number
				s.packages++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var used, unused estimate
	for i := range a.chunks.slots {
		s := &a.chunks.slots[i]
		s.last = 0
		if s.paths > 0 {
			used.add(float64(s.stored))
		} else {
			unused.add(float64(s.stored))
		}
	}
	a.UsedBytes, a.UnusedBytes = a.chunks.total(used), a.chunks.total(unused)
	if a.chunks.zeros > 0 {
		a.Sample = &Sample{int64(a.chunks.factor()), int64(len(a.chunks.slots)), a.chunks.margin(used)}
	}
	return nil
}

// parts are what belongs to a package, or to a path.
type parts struct{ own, shared, all, size estimate }

func (p *parts) add(s *slot, users uint32) {
	share := float64(s.stored) / float64(users)
	if users == 1 {
		p.own.add(share)
	} else {
		p.shared.add(share)
	}
	p.all.add(share)
	p.size.add(float64(s.size) / float64(users))
}

func (a *attribution) attribute(ctx context.Context) error {
	a.MinNARBytes = a.Store.PathBytes / 1000
	largest := top{max: a.opts.Top, less: func(x, y *Package) bool { return x.Stored() > y.Stored() }}
	most := top{max: a.opts.Top, less: func(x, y *Package) bool { return x.Dedup > y.Dedup }}
	least := top{max: a.opts.Top, less: func(x, y *Package) bool { return x.Dedup < y.Dedup }}
	var pkg Package
	var of parts
	finish := func() error {
		if pkg.Paths == 0 {
			return nil
		}
		a.finishPackage(&pkg, &of)
		largest.add(&pkg)
		if pkg.NARBytes >= a.MinNARBytes {
			most.add(&pkg)
			least.add(&pkg)
		}
		return a.opts.Package(&pkg)
	}
	err := a.walk(ctx, "attributing", func(w *walked) error {
		if w.pkg != pkg.Name || pkg.Paths == 0 {
			if err := finish(); err != nil {
				return err
			}
			pkg, of = Package{Name: w.pkg}, parts{}
		}
		pkg.Paths++
		pkg.NARBytes += int64(w.NarSize)
		pkg.WireBytes += a.wireBytes(w)
		var path parts
		for _, i := range w.slots {
			s := &a.chunks.slots[i]
			path.add(s, s.paths)
			if s.last != w.number {
				s.last = w.number
				of.add(s, s.packages)
			}
		}
		return a.path(ctx, w, &path)
	})
	if err == nil {
		err = finish()
	}
	a.Largest, a.MostDeduplicated, a.LeastDeduplicated = largest.list, most.list, least.list
	return err
}

func (a *attribution) finishPackage(p *Package, of *parts) {
	p.Own, p.Shared = a.chunks.total(of.own), a.chunks.total(of.shared)
	if a.chunks.zeros > 0 {
		p.Error = a.chunks.margin(of.all)
	}
	p.Dedup = ratio(p.NARBytes, a.chunks.total(of.size))
	p.Ratio = ratio(p.NARBytes, p.Stored())
}

// path hands a path on to who wants it.
func (a *attribution) path(ctx context.Context, w *walked, of *parts) error {
	if a.opts.Path == nil {
		return nil
	}
	p := &Path{NarInfo: w.NarInfo, StoreDir: a.storeDir, Writer: w.Writer, Wire: a.wireBytes(w), Own: a.chunks.total(of.own), Shared: a.chunks.total(of.shared)}
	if a.chunks.zeros > 0 { // of one path a sample says too little
		var err error
		if p.Wire, err = a.view.Wire(ctx, w.NarHash); err != nil {
			return err
		}
	}
	return a.opts.Path(p)
}

// ratio is 0 where there is nothing to divide by.
func ratio(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return math.Round(1000*float64(a)/float64(b)) / 1000
}

// top is a list of the first packages by some order, among equals the largest first.
type top struct {
	list []Package
	max  int
	less func(a, b *Package) bool
}

func (t *top) add(p *Package) {
	i, _ := slices.BinarySearchFunc(t.list, p, func(e Package, p *Package) int {
		switch {
		case t.less(&e, p):
			return -1
		case t.less(p, &e):
			return 1
		}
		return cmp.Or(cmp.Compare(p.NARBytes, e.NARBytes), cmp.Compare(e.Name, p.Name))
	})
	if i >= t.max {
		return
	}
	if len(t.list) == t.max {
		t.list = t.list[:t.max-1]
	}
	t.list = slices.Insert(t.list, i, *p)
}
