package plan

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/dedupd/dedupd/migrate"
)

// A Report is a plan. Sizes are bytes, of the whole cache unless it says else.
type Report struct {
	Source   string `json:"source"`
	Paths    int64  `json:"paths"`
	Read     int64  `json:"paths_read"` // whose narinfos were read; the others are taken to be like them
	NARs     int64  `json:"nars"`       // distinct ones
	NARBytes int64  `json:"nar_bytes"`
	// FileBytes is what the NARs' files take today, and what clients download who get
	// each of them once.
	FileBytes int64  `json:"file_bytes"`
	Sample    Sample `json:"sample"`

	Stored Estimate `json:"stored_bytes"`
	Wire   Estimate `json:"download_bytes"` // what FileBytes is to be compared with
	Chunks Estimate `json:"chunks"`
	Packs  Estimate `json:"packs"`
	// ChunksOfNAR is how many a NAR has on average.
	ChunksOfNAR float64  `json:"chunks_of_nar"`
	Requests    Requests `json:"requests"`

	Years    []Group `json:"years"`    // empty if the source does not say when its paths came
	Packages []Group `json:"packages"` // the largest

	Provider string  `json:"provider"`
	Egress   float64 `json:"egress_bytes_a_month"`
	Growth   float64 `json:"growth_a_year"` // as a part of what there is
	Offers   []Offer `json:"offers"`

	Warnings []string                 `json:"warnings"`
	Skipped  map[migrate.Reason]int64 `json:"skipped"`
	Seconds  float64                  `json:"seconds"`
}

// A Sample is what was fetched and taken in.
type Sample struct {
	NARs      int64   `json:"nars"`
	Asked     int64   `json:"nars_asked_for"`
	FileBytes int64   `json:"file_bytes"`
	Seconds   float64 `json:"seconds"`
}

// Requests are those of the migration: GET and LIST to the source, PUT to the new bucket.
type Requests struct {
	Get  int64 `json:"get"`
	List int64 `json:"list"`
	Put  int64 `json:"put"`
}

// A Group is a part of the cache.
type Group struct {
	Name      string `json:"name"`
	NARs      int64  `json:"nars"`
	NARBytes  int64  `json:"nar_bytes"`
	FileBytes int64  `json:"file_bytes"`
	Stored    int64  `json:"stored_bytes"` // estimated, what it adds to what is before it
}

const (
	maxPackages = 20
	listPage    = 1000 // objects that a LIST names
	packSize    = 32 << 20
)

func (p *planner) report(pop *population, c *census) *Report {
	e := newEstimator(pop, c)
	scale := pop.scale
	whole := func(n int64) int64 { return int64(math.Round(float64(n) * scale)) }
	r := &Report{
		Paths: whole(pop.paths), Read: pop.paths, NARs: whole(int64(len(pop.nars))), FileBytes: whole(pop.fileBytes()),
		Sample:   Sample{NARs: int64(len(c.measured)), Asked: int64(c.asked), FileBytes: c.report.ReadBytes, Seconds: c.report.Seconds},
		Provider: p.Money.Provider, Egress: p.Money.Egress, Growth: p.Money.Growth, Skipped: c.report.Skipped,
	}
	frames, factor := e.frames()
	overhead := c.overhead * float64(r.Paths)
	r.Stored = Estimate{frames.Value + overhead, frames.Low + overhead, frames.High + overhead}
	r.Wire = e.downloads()
	perByte, perNAR := c.chunkRate()
	r.Chunks, r.ChunksOfNAR = frames.times(perByte), perNAR
	size := float64(cmp.Or(p.Store.PackSize, packSize))
	r.Packs = Estimate{math.Ceil(r.Stored.Value / size), math.Ceil(r.Stored.Low / size), math.Ceil(r.Stored.High / size)}
	r.Requests = Requests{Get: r.Paths + r.NARs, Put: int64(r.Packs.Value)}
	if p.listed {
		r.Requests.List = (2*r.Paths + listPage - 1) / listPage
	}
	r.groups(e, factor)
	r.Offers = r.offers(&p.Money)
	r.warn(p, c)
	return r
}

// chunkRate is how many chunks there are for each byte of frames, and in a NAR.
func (c *census) chunkRate() (perByte, perNAR float64) {
	var bytes, distinct, all float64
	for _, chunk := range c.nars {
		bytes += float64(chunk.bytes)
		distinct++
	}
	for _, m := range c.measured {
		all += float64(m.own.chunks)
	}
	return distinct / max(bytes, 1), all / float64(len(c.measured))
}

// groups adds up what belongs together.
func (r *Report) groups(e *estimator, factor float64) {
	years, packages := map[string]*Group{}, map[string]*Group{}
	scale := e.pop.scale
	add := func(groups map[string]*Group, name string, n *nar) {
		g := groups[name]
		if g == nil {
			g = &Group{Name: name}
			groups[name] = g
		}
		g.NARs++
		g.NARBytes += n.size
		g.FileBytes += n.file
		g.Stored += int64(e.added(n)*factor/scale + e.census.overhead*float64(n.paths))
	}
	for _, n := range e.pop.nars {
		r.NARBytes += n.size
		add(packages, n.path.Package(), n)
		if n.year != 0 {
			add(years, strconv.Itoa(n.year), n)
		}
	}
	r.NARBytes = int64(float64(r.NARBytes) * scale)
	for _, groups := range []map[string]*Group{years, packages} {
		for _, g := range groups {
			for _, n := range []*int64{&g.NARs, &g.NARBytes, &g.FileBytes, &g.Stored} {
				*n = int64(math.Round(float64(*n) * scale))
			}
		}
	}
	r.Years = sorted(years, func(a, b Group) int { return cmp.Compare(a.Name, b.Name) })
	r.Packages = sorted(packages, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.FileBytes, a.FileBytes), cmp.Compare(a.Name, b.Name))
	})
	r.Packages = r.Packages[:min(len(r.Packages), maxPackages)]
}

func sorted(groups map[string]*Group, order func(a, b Group) int) []Group {
	list := make([]Group, 0, len(groups))
	for _, g := range groups {
		list = append(list, *g)
	}
	slices.SortFunc(list, order)
	return list
}

// warn says what an operator should not overlook.
func (r *Report) warn(p *planner, c *census) {
	say := func(format string, args ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...)) }
	files := float64(r.FileBytes)
	switch {
	case r.Stored.Low > files:
		say("dedupd would store more than the cache has today: %.2f times as much (%.2f to %.2f), until it is compacted", r.Stored.Value/files, r.Stored.Low/files, r.Stored.High/files)
	case r.Stored.High > files:
		say("dedupd may store more than the cache has today: %.2f to %.2f times as much", r.Stored.Low/files, r.Stored.High/files)
	}
	if r.Wire.Value > 1.02*files {
		say("downloads grow: %.2f bytes for each one of today (%.2f to %.2f), and what egress costs with them", r.Wire.Value/files, r.Wire.Low/files, r.Wire.High/files)
	}
	if r.Egress == 0 {
		say("it is not known what clients download; costs are for one download of everything in a month")
	}
	if r.Read < r.Paths {
		say("%d of %d narinfos were read, at random; what they share with the others is estimated", r.Read, r.Paths)
	}
	if missing := c.asked - len(c.measured); missing > 0 {
		say("%d of the %d NARs of the sample could not be taken in, and would be left out by an import: see what was skipped", missing, c.asked)
	}
	if c.resized < 0.99 || c.resized > 1.01 {
		say("the files of the sample have %.2f bytes for each that their narinfos say, so that sizes of today are wrong", c.resized)
	}
	if len(r.Years) == 0 {
		say("the source does not say when its paths came")
	}
	if n := r.Skipped[migrate.BadNarInfo] + r.Skipped[migrate.NoNarInfo]; n > 0 {
		say("%d narinfos could not be read, and are in no number", n)
	}
}

// reasons are those of what was skipped, in order.
func (r *Report) reasons() []migrate.Reason { return slices.Sorted(maps.Keys(r.Skipped)) }
