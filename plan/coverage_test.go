package plan

import (
	"context"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/migrate"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/prices"
	"github.com/dedupd/dedupd/upstream"
)

// A union is several caches as one: what they have of the first of them that has it.
type union []upstream.Lister

func (u union) Name() string { return "union" }

func (u union) NarInfo(ctx context.Context, hashPart string) (info *narinfo.NarInfo, err error) {
	for _, c := range u {
		if info, err = c.NarInfo(ctx, hashPart); err == nil {
			return info, nil
		}
	}
	return nil, err
}

func (u union) NAR(ctx context.Context, info *narinfo.NarInfo, off int64) (body io.ReadCloser, size int64, err error) {
	for _, c := range u {
		if body, size, err = c.NAR(ctx, info, off); err == nil {
			return body, size, nil
		}
	}
	return nil, 0, err
}

func (u union) File(ctx context.Context, name string) (body io.ReadCloser, err error) {
	for _, c := range u {
		if body, err = c.File(ctx, name); err == nil {
			return body, nil
		}
	}
	return nil, err
}

func (u union) List(ctx context.Context, dir string, fn func(string, time.Time) error) error {
	seen := map[string]bool{}
	for _, c := range u {
		err := c.List(ctx, dir, func(name string, modified time.Time) error {
			if seen[name] {
				return nil
			}
			seen[name] = true
			return fn(name, modified)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func dirs(names ...string) (u union) {
	for _, name := range names {
		u = append(u, upstream.NewDir(name, chunkstore.DefaultStoreDir))
	}
	return u
}

// An imported cache is one that has been imported in full, to compare plans with.
type imported struct {
	store  *throwaway
	pop    *population
	stored float64 // bytes of all that was written
	wire   float64
	read   int64
}

func importAll(t *testing.T, source upstream.Source) *imported {
	t.Helper()
	ctx := t.Context()
	store, err := openThrowaway(ctx, t.TempDir(), chunkstore.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	rec := &recorder{Source: source, dates: map[string]time.Time{}, pop: newPopulation()}
	var paths []string
	err = source.(upstream.Lister).List(ctx, "", func(name string, _ time.Time) error {
		if filepath.Ext(name) == ".narinfo" {
			paths = append(paths, name[:narinfo.HashPartLen])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list := func(_ context.Context, fn func(string) error) error {
		for _, p := range paths {
			if err := fn(p); err != nil {
				return err
			}
		}
		return nil
	}
	report, err := migrate.Import(ctx, store, rec, migrate.Options{Paths: list, Jobs: 4}, &migrate.Progress{})
	if err == nil {
		err = store.Flush(ctx)
	}
	if err != nil || report.Failed() > 0 {
		t.Fatalf("got %v, report %+v", err, report)
	}
	rec.pop.seal()
	im := &imported{store: store, pop: rec.pop, stored: float64(store.scale.bytes.Load()), read: report.ReadBytes}
	for _, n := range rec.pop.nars {
		o, err := store.Object(ctx, n.hash)
		if err != nil {
			t.Fatal(err)
		}
		im.wire += float64(o.FrameSize())
	}
	return im
}

// guess estimates from a sample without taking it in again.
func (im *imported) guess(t *testing.T, share float64, seed uint64) (stored, wire Estimate, sampled float64) {
	t.Helper()
	s := im.pop.choose(int64(share*float64(im.pop.fileBytes())), rand.New(rand.NewPCG(seed, 6)))
	wanted := s.nars()
	slices.SortStableFunc(wanted, func(a, b *nar) int { return a.lineage - b.lineage })
	c := &census{lineages: sharing{}, nars: sharing{}}
	if err := c.measure(t.Context(), im.store.Store, wanted); err != nil {
		t.Fatal(err)
	}
	c.place(s)
	for _, m := range c.measured {
		sampled += float64(m.file)
	}
	e := newEstimator(im.pop, c)
	frames, _ := e.frames()
	return frames, e.downloads(), sampled / float64(im.pop.fileBytes())
}

// frames is what all frames of the cache take.
func (im *imported) frames(t *testing.T) (n float64) {
	c := &census{lineages: sharing{}, nars: sharing{}}
	if err := c.measure(t.Context(), im.store.Store, im.pop.nars); err != nil {
		t.Fatal(err)
	}
	for _, chunk := range c.nars {
		n += float64(chunk.bytes)
	}
	return n
}

// check draws samples, and fails unless the truth lies in nearly nine of ten intervals.
func (im *imported) check(t *testing.T, share float64, seeds int) {
	t.Helper()
	truth := im.frames(t)
	var within, wireWithin int
	var errors, widths, sizes []float64
	for seed := range uint64(seeds) {
		stored, wire, sampled := im.guess(t, share, seed)
		if stored.Low <= truth && truth <= stored.High {
			within++
		}
		if wire.Low <= im.wire && im.wire <= wire.High {
			wireWithin++
		}
		errors = append(errors, math.Abs(stored.Value/truth-1))
		widths = append(widths, (stored.High-stored.Low)/2/truth)
		sizes = append(sizes, sampled)
	}
	for _, list := range [][]float64{errors, widths, sizes} {
		slices.Sort(list)
	}
	t.Logf("%d NARs, %d lineages, %.1f MB of files, %.1f MB of frames; samples of %.0f %% (at most %.0f %%)",
		len(im.pop.nars), len(im.pop.lineages), float64(im.pop.fileBytes())/1e6, truth/1e6, 100*sizes[seeds/2], 100*sizes[seeds-1])
	t.Logf("%d seeds: error %.1f %% at the median, %.1f %% in nine of ten, %.1f %% at most; ± %.0f %%; stored within %d, downloads within %d",
		seeds, 100*errors[seeds/2], 100*errors[seeds*9/10], 100*errors[seeds-1], 100*widths[seeds/2], within, wireWithin)
	if least := seeds * 8 / 10; within < least || wireWithin < least {
		t.Errorf("the truth was within %d and %d of %d intervals, want %d at least", within, wireWithin, seeds, least)
	}
}

// TestCoverage draws many samples of whole caches, which takes minutes. docs/benchmarks.md has
// what it says.
func TestCoverage(t *testing.T) {
	if os.Getenv("DEDUPD_PLAN_COVERAGE") == "" {
		t.Skip("set DEDUPD_PLAN_COVERAGE to draw samples of whole caches")
	}
	caches := map[string][]string{}
	if real, _ := filepath.Glob("../../shared/corpus/real/*"); len(real) > 0 {
		for _, dir := range real {
			caches[filepath.Base(dir)] = []string{dir}
		}
	}
	if corpus := os.Getenv("DEDUPD_CORPUS"); corpus != "" {
		all, _ := filepath.Glob(filepath.Join(corpus, "gen[0-9]", "xz"))
		caches["gen0"], caches["all generations"] = all[:1], all
	}
	if len(caches) == 0 {
		t.Skip("there is neither DEDUPD_CORPUS nor ../../shared/corpus/real")
	}
	for name, list := range caches {
		t.Run(name, func(t *testing.T) { importAll(t, dirs(list...)).check(t, 0.2, 100) })
	}
}

func money(t *testing.T) Money {
	t.Helper()
	table, err := prices.Load("")
	if err != nil {
		t.Fatal(err)
	}
	return Money{Prices: table, Provider: prices.Default}
}
