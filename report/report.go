// Package report says what of a store's size is due to what: to each package, to single
// store paths, and to closures; and what deduplication saved over time, in bytes, requests
// and dollars.
//
// A chunk that only one package uses is that package's own; of one that several use each
// has an equal share. So the packages add up to what all chunks take, and so do the paths.
//
// Memory is bounded. The chunks of a store that has more of them than find room are
// sampled: those whose ID ends in a number of zero bits stand for the others. IDs are
// hashes, so sums over the sample, times what one stands for, have no bias, and how far
// off they may be follows from the sample itself.
package report

import (
	"context"
	"fmt"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/site"
)

// Options say what is reported.
type Options struct {
	// Closures are hash parts of store paths.
	Closures []string
	// Top is how many packages are in each list of the report. Default 20, at most MaxTop.
	Top int
	// Memory, in bytes, is for the table of chunks, and as much again while that grows.
	// A byte in 32 is for sorting. Default 64 MiB, for two million chunks.
	Memory int64
	// TempDir is where paths are sorted, as many bytes as their names have; default the
	// system's. Nothing is left there.
	TempDir string

	// These may be nil. The others are called from one goroutine, in order of the names of
	// the packages; their errors end the report and are returned.
	Package  func(*Package) error
	Path     func(*Path) error
	Progress func(Progress)
}

// MaxTop bounds Options.Top.
const MaxTop = 10_000

// Progress is how far a report is.
type Progress struct {
	Step  string `json:"step"` // what is done
	Done  int64  `json:"done"`
	Total int64  `json:"total"` // 0 where it is not known
}

// A Report says how a store's bytes came about. Sizes are bytes.
type Report struct {
	Time    time.Time         `json:"time"`
	Store   *chunkstore.Stats `json:"store"`
	Cost    *Cost             `json:"cost,omitempty"`    // by whoever knows prices
	History []site.Sample     `json:"history,omitempty"` // by whoever has it

	// All paths, but for those that lack something: it was damaged.
	Paths       int64 `json:"paths"`
	AbsentPaths int64 `json:"absent_paths"`
	Packages    int64 `json:"packages"`
	// UsedBytes are stored for NARs of paths, UnusedBytes for logs, listings, and NARs
	// that no path has.
	UsedBytes   int64 `json:"used_bytes"`
	UnusedBytes int64 `json:"unused_bytes"`

	// Sample says how chunks were sampled; nil if all were counted.
	Sample *Sample `json:"sample,omitempty"`

	Largest           []Package `json:"largest"`            // by stored bytes
	MostDeduplicated  []Package `json:"most_deduplicated"`  // of at least MinNARBytes
	LeastDeduplicated []Package `json:"least_deduplicated"` // likewise
	MinNARBytes       int64     `json:"min_nar_bytes"`      // a thousandth of all NARs
	Closures          []Closure `json:"closures,omitempty"`
}

// A Sample says what a report was estimated from.
type Sample struct {
	OneOf  int64 `json:"one_of"` // so many chunks one was looked at
	Chunks int64 `json:"chunks"`
	// Error is how far UsedBytes may be off, at 95 % confidence.
	Error int64 `json:"error"`
}

// A Package is all versions and outputs of one.
type Package struct {
	Name     string `json:"name"`
	Paths    int64  `json:"paths"`
	NARBytes int64  `json:"nar_bytes"`
	// WireBytes are what a client downloads who gets each path once.
	WireBytes int64 `json:"wire_bytes"`
	// Own is stored for this package alone, Shared its share of what others use, too.
	Own    int64 `json:"own"`
	Shared int64 `json:"shared"`
	// Error is how far the sum of these may be off, at 95 % confidence; 0 without a sample.
	Error int64 `json:"error,omitempty"`
	// Dedup is how many times as large as its share of the chunks the NARs are, before
	// compression; Ratio is NARs to stored bytes.
	Dedup float64 `json:"dedup"`
	Ratio float64 `json:"ratio"`
}

// Stored is what is stored for a package.
func (p *Package) Stored() int64 { return p.Own + p.Shared }

// A Path is one store path.
type Path struct {
	*narinfo.NarInfo // as it was uploaded
	StoreDir         string
	Writer           time.Time // about when the process was started that has recorded it
	Wire             int64     // what a client downloads, as zstd
	Own, Shared      int64     // as in Package
}

// A Closure is a store path with all that it refers to.
type Closure struct {
	Path  string `json:"path"` // base name
	Paths int64  `json:"paths"`
	// Missing are paths that are referred to and not here, with what those refer to.
	Missing   int64 `json:"missing"`
	NARBytes  int64 `json:"nar_bytes"`
	WireBytes int64 `json:"wire_bytes"`
	// Alone is what would be stored if there were nothing else. Own would be free if the
	// closure went, and Shared would not, since other paths use it.
	Alone  int64 `json:"alone"`
	Own    int64 `json:"own"`
	Shared int64 `json:"shared"`
	Error  int64 `json:"error,omitempty"` // of Alone
}

// Make reports on a store as it is at one moment. It reads the whole index twice, and no
// packs; commits go on.
func Make(ctx context.Context, store *chunkstore.Store, opts Options) (*Report, error) {
	opts.setDefaults()
	r := &Report{Time: time.Now().UTC().Truncate(time.Second)}
	var err error
	opts.Progress(Progress{Step: "counting what is stored"})
	if r.Store, err = store.Stats(ctx); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	view, err := store.View(ctx)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	defer view.Close()
	a := &attribution{Report: r, opts: opts, view: view, storeDir: store.Repository().StoreDir}
	defer a.sorted.close()
	for _, step := range []func(context.Context) error{a.sortPaths, a.readChunks, a.countUsers, a.findClosures, a.attribute} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("report: %w", err)
		}
	}
	return r, nil
}

func (o *Options) setDefaults() {
	if o.Top <= 0 {
		o.Top = 20
	}
	o.Top = min(o.Top, MaxTop)
	if o.Memory <= 0 {
		o.Memory = 64 << 20
	}
	if o.Package == nil {
		o.Package = func(*Package) error { return nil }
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
}
