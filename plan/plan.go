// Package plan says what it would take to move a binary cache into dedupd, before that is
// done: it reads the narinfos, takes in a sample of the NARs as an import would, into a
// store that is thrown away, and estimates the rest.
//
// # How it estimates
//
// The sizes of all files and NARs are known from the narinfos. To be estimated is what a NAR
// adds to the store. A sample of single NARs would not tell, since NARs share chunks with
// others of their kind: the more of them there are, the less each one adds. So NARs are put
// in order first:
//
//   - A lineage are the paths of one package and output, in order of their versions.
//   - An edition are those in a lineage with the same name and the same NarSize: rebuilds, as
//     a rule, of which masking leaves little but the first one.
//
// The first edition of a lineage adds all of its chunks; another one the part that the one
// before it does not have; a rebuild the part that its edition does not have. Lineages are
// sampled as a whole, one NAR of each edition (long ones in runs of editions, each with the
// edition before it), and a tenth of the budget goes to rebuilds, which are most of a cache
// and little of a store. A lineage is taken with a probability that grows with the fourth root
// of its bytes, systematically from the list in order of size, which is stratification by size:
// between that and equal probabilities lies what is best when the spread is about
// proportional to the size and the budget is in bytes (Särndal, Swensson, Wretman: Model
// Assisted Survey Sampling, 12.2; the exponent was found by trying, see docs/benchmarks.md).
//
// What was measured counts as it is, the rest is predicted (Royall, Biometrika 57, 1970): the
// own chunks of a NAR from its file by a ratio for its compression, with a slope in
// the logarithm of NarSize to FileSize, since what xz packs tightest loses most when it is cut
// into chunks; another edition's and rebuilds' part of that by their mean parts in the
// sample. Where one NAR of a lineage was measured its ratio holds for the others.
//
// Lineages share a few chunks with each other, and the more the more there are. By how much
// the sample tells: of its distinct bytes D, half of the lineages would have H, the
// sum over chunks of size × (1 − 2^−m), where m lineages have the chunk. Distinct bytes
// grow by a power law (Heaps), so each doubling multiplies bytes by D/H, and D/2H is what is
// left of each lineage's; from a sample of one part in k there are log2 k doublings to all.
// The same, over NARs, leads from a sample of the narinfos to all of them.
//
// # How sure it is
//
// The variance has three terms: that of the ratio, which all predictions share; what the
// lineages that were not measured differ from it by; and the same two for the parts that
// editions and rebuilds add. A sample of few lineages says little about how much lineages
// differ. So the spread that was found is mixed with one from experience, 0.4 of a lineage's
// bytes and 0.7 of its downloads, which counts as five lineages, and the quantiles are Student's. The interval is meant
// to hold the truth in 90 of 100 samples; docs/benchmarks.md says in how many it did.
package plan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/migrate"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/prices"
	"github.com/dedupd/dedupd/upstream"
)

// Options are the settings of a plan. Zero values mean the defaults.
type Options struct {
	// Import says what would be imported: Paths, Closure, Match, Since, Keys, Jobs,
	// Skipped and Warn are as there.
	Import migrate.Options
	// Narinfos is how many are read at most, drawn at random; default 1,000,000, which take
	// about 300 bytes of memory each. Closures are read in full.
	Narinfos int
	// Share is the part of all bytes of files that the sample has, about; default 0.2.
	Share float64
	// Bytes is the size in bytes of the largest sample, about; default 20 GB.
	Bytes int64
	// Seed makes the draw: the same one draws the same sample.
	Seed uint64
	// Temp is the directory for the store of the sample; default os.TempDir. It takes a few
	// packs and an index, about 200 bytes for each chunk of the sample.
	Temp string
	// Store has the settings of that store, but for where it is.
	Store chunkstore.Options
	// Money is what costs are made of.
	Money Money
}

// A Money says what things cost, and how much of them there is.
type Money struct {
	Prices   prices.Table
	Provider string  // where the cache is now
	Egress   float64 // bytes that clients download in a month; 0 if that is not known
	Growth   float64 // what comes to the cache in a year, as a part of what there is
}

func (o *Options) setDefaults() error {
	if o.Narinfos == 0 {
		o.Narinfos = 1_000_000
	}
	if o.Share == 0 {
		o.Share = 0.2
	}
	if o.Bytes == 0 {
		o.Bytes = 20e9
	}
	if o.Import.Warn == nil {
		o.Import.Warn = slog.Warn
	}
	if o.Narinfos < 1 || !(o.Share > 0 && o.Share <= 1) || o.Bytes < 1 {
		return fmt.Errorf("a sample of %d narinfos, %g of the bytes and at most %d bytes", o.Narinfos, o.Share, o.Bytes)
	}
	if !(o.Money.Egress >= 0 && o.Money.Growth >= 0) {
		return fmt.Errorf("egress is %g and growth %g, not 0 or more", o.Money.Egress, o.Money.Growth)
	}
	_, err := o.Money.Prices.Provider(o.Money.Provider)
	return err
}

// Progress is how far a plan is. It may be read at any time.
type Progress struct {
	Narinfos migrate.Progress // reading them
	NARs     migrate.Progress // taking in the sample, when it has begun
}

// Make makes the plan of importing from source. What is wrong with single paths is told to
// Options.Import.Skipped, and counted.
func Make(ctx context.Context, source upstream.Source, opts Options, progress *Progress) (_ *Report, err error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	store, err := openThrowaway(ctx, opts.Temp, opts.Store)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close(context.WithoutCancel(ctx))) }()
	p := &planner{Options: opts, source: source, store: store, random: rand.New(rand.NewPCG(opts.Seed, 6))}
	begun := time.Now()
	pop, read, err := p.readNarinfos(ctx, &progress.Narinfos)
	if err != nil {
		return nil, err
	}
	if len(pop.nars) == 0 && pop.unread != nil {
		return nil, fmt.Errorf("%s has no narinfo that could be read: %w", source.Name(), pop.unread)
	} else if len(pop.nars) == 0 {
		return nil, fmt.Errorf("%s has no paths", source.Name())
	}
	s := pop.choose(int64(min(opts.Share*float64(pop.fileBytes()), float64(opts.Bytes))), p.random)
	got, err := p.fetch(ctx, s, &progress.NARs)
	if err != nil {
		return nil, err
	}
	for reason, n := range read.Skipped {
		got.report.Skipped[reason] += n
	}
	r := p.report(pop, got)
	r.Source, r.Seconds = source.Name(), time.Since(begun).Seconds()
	return r, nil
}

type planner struct {
	Options
	source upstream.Source
	store  *throwaway
	random *rand.Rand
	listed bool // the source was asked which paths it has
}

// A recorder is a source that keeps what a plan needs of the narinfos that are read.
type recorder struct {
	upstream.Source
	mu    sync.Mutex
	dates map[string]time.Time // of narinfos, by hash part, until they are read
	pop   *population
}

// NarInfo implements upstream.Source.
func (r *recorder) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	info, err := r.Source.NarInfo(ctx, hashPart)
	size := int64(0)
	if err == nil && info.FileSize == 0 {
		size, err = r.fileSize(ctx, info)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	date := r.dates[hashPart]
	delete(r.dates, hashPart)
	if err == nil {
		r.pop.add(info, max(size, int64(info.FileSize)), date)
	} else {
		r.pop.unread = err
	}
	return info, err
}

// fileSize asks for the size of a file whose narinfo does not say it.
func (r *recorder) fileSize(ctx context.Context, info *narinfo.NarInfo) (int64, error) {
	body, size, err := r.NAR(ctx, info, 0)
	if errors.Is(err, upstream.ErrNotFound) {
		return 0, nil // which the sample is to find
	} else if err != nil {
		return 0, err
	}
	return size, body.Close()
}

// readNarinfos reads those of all paths, or of as many as it may.
func (p *planner) readNarinfos(ctx context.Context, progress *migrate.Progress) (*population, *migrate.Report, error) {
	rec := &recorder{Source: p.source, dates: map[string]time.Time{}, pop: newPopulation()}
	opts := p.Import
	opts.DryRun, opts.Since = true, time.Time{}
	if !opts.Closure {
		paths, listed, err := p.draw(ctx)
		if err != nil {
			return nil, nil, err
		}
		rec.pop.scale = float64(listed) / float64(max(len(paths), 1))
		opts.Paths = func(_ context.Context, fn func(string) error) error {
			for _, path := range paths {
				rec.mu.Lock()
				rec.dates[path.hashPart] = path.date
				rec.mu.Unlock()
				if err := fn(path.hashPart); err != nil {
					return err
				}
			}
			return nil
		}
	}
	report, err := migrate.Import(ctx, p.store, rec, opts, progress)
	if err != nil {
		return nil, nil, fmt.Errorf("read the narinfos: %w", err)
	}
	rec.pop.seal()
	return rec.pop, report, nil
}

type listed struct {
	hashPart string
	date     time.Time // zero if the source does not say
}

// draw lists the paths, and returns some of them, or all if they are not too many, and how
// many there are.
func (p *planner) draw(ctx context.Context) (paths []listed, n int64, err error) {
	take := func(hashPart string, date time.Time) error {
		n++
		if len(paths) < p.Narinfos {
			paths = append(paths, listed{hashPart, date})
		} else if i := p.random.Int64N(n); i < int64(len(paths)) { // Vitter's algorithm R
			paths[i] = listed{hashPart, date}
		}
		return nil
	}
	if p.Import.Paths != nil {
		err = p.Import.Paths(ctx, func(hashPart string) error { return take(hashPart, time.Time{}) })
		return paths, n, err
	}
	lister, ok := p.source.(upstream.Lister)
	if !ok {
		return nil, 0, fmt.Errorf("%s cannot be listed: name the paths", p.source.Name())
	}
	p.listed = true
	err = lister.List(ctx, "", func(name string, modified time.Time) error {
		if hashPart, ok := strings.CutSuffix(name, ".narinfo"); ok && narinfo.IsHashPart(hashPart) && !modified.Before(p.Import.Since) {
			return take(hashPart, modified)
		}
		return nil
	})
	return paths, n, err
}
