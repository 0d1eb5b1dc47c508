package plan

import (
	"maps"
	"math"
	"slices"

	"github.com/dedupd/dedupd/prices"
)

// A Way is one of what can be done with a cache.
type Way string

// All Ways.
const (
	Leave  Way = "leave it"             // where it is
	Copy   Way = "plain copy"           // its objects as they are
	Chunks Way = "one object per chunk" // deduplicated, but not packed
	Packs  Way = "dedupd"
)

// An Offer is what a way costs at a provider, in dollars.
type Offer struct {
	Provider string `json:"provider"`
	Way      Way    `json:"way"`
	// Month is the first month there, and Year the twelfth.
	Month prices.Cost `json:"month"`
	Year  prices.Cost `json:"month_in_a_year"`
	// Once is what moving costs: reading the old cache, its egress if it goes to another
	// provider, writing the new one, and the old one's storage for the month in which
	// clients still know its narinfos.
	Once float64 `json:"once"`
	// PaysAfter is the month from which on all that was paid is less than for leaving the
	// cache where it is; 0 is never, or not within twenty years.
	PaysAfter int `json:"pays_after_months"`
}

// A load is what a way asks of a provider.
type load struct {
	objects, bytes float64
	writes         float64 // requests to make it
	reads          float64 // requests a month
	egress         float64 // bytes a month
}

// month is the usage of a month, when the cache has grown by a part of what it was at first,
// with monthly of that as new.
func (l load) month(grown, monthly float64) prices.Usage {
	g := 1 + grown
	return prices.Usage{
		Writes: l.writes * monthly, Reads: l.reads * g, Objects: l.objects * g,
		Stored: l.bytes * g, Egress: l.egress * g, Retrieved: l.egress * g,
	}
}

const (
	months     = 240
	readStep   = 16 << 20 // bytes that the gateway reads of a pack by one request, at most
	readsOfOne = 2        // packs that a NAR is read from, about: 1.3 of four generations, more of long histories (docs/benchmarks.md, scatter)
)

// loads are those of all ways.
func (r *Report) loads(m *Money) map[Way]load {
	paths, files, stored := float64(r.Paths), float64(r.FileBytes), r.Stored.Value
	egress := m.Egress
	if egress == 0 {
		egress = files
	}
	downloads := egress / files * float64(r.NARs)
	wire := r.Wire.Value / files
	plain := load{objects: paths + float64(r.NARs), bytes: files, writes: paths + float64(r.NARs), reads: 2 * downloads, egress: egress}
	chunks := load{
		objects: r.Chunks.Value + paths, bytes: stored, writes: r.Chunks.Value + paths,
		reads: downloads * (1 + r.ChunksOfNAR), egress: egress * wire,
	}
	packs := load{
		objects: r.Packs.Value, bytes: stored, writes: r.Packs.Value,
		reads: downloads*readsOfOne + egress*wire/readStep, egress: egress * wire,
	}
	return map[Way]load{Leave: plain, Copy: plain, Chunks: chunks, Packs: packs}
}

// offers are what all ways cost, in order of the providers' names.
func (r *Report) offers(m *Money) (offers []Offer) {
	loads := r.loads(m)
	old := m.Prices[m.Provider]
	leave := loads[Leave]
	for _, name := range slices.Sorted(maps.Keys(m.Prices)) {
		p := m.Prices[name]
		if len(p.Storage) == 0 && name != m.Provider {
			continue // nobody knows what one's own machines cost
		}
		for _, way := range []Way{Leave, Copy, Chunks, Packs} {
			if (way == Leave) != (name == m.Provider) && (way == Leave || way == Copy) {
				continue // what is there need not be copied there
			}
			l := loads[way]
			o := Offer{Provider: name, Way: way, Month: p.Cost(l.month(0, m.Growth/12)), Year: p.Cost(l.month(m.Growth*11/12, m.Growth/12))}
			if way != Leave {
				read := prices.Usage{Reads: float64(r.Requests.Get), Lists: float64(r.Requests.List), Retrieved: leave.bytes}
				if name != m.Provider {
					read.Egress = leave.bytes
				}
				kept := old.Cost(prices.Usage{Stored: leave.bytes, Objects: leave.objects})
				o.Once = old.Cost(read).Total() + p.Cost(prices.Usage{Writes: l.writes}).Total() + kept.Total()
				o.PaysAfter = paysAfter(m.Growth, o.Once, func(u float64) float64 { return p.Cost(l.month(u, m.Growth/12)).Total() },
					func(u float64) float64 { return old.Cost(leave.month(u, m.Growth/12)).Total() })
			}
			offers = append(offers, o)
		}
	}
	return offers
}

// paysAfter is the first month after which once and the new way's months come to less than
// the old way's, which are given how much the cache has grown; 0 for none.
func paysAfter(growth, once float64, now, before func(grown float64) float64) int {
	saved := -once
	for month := range months {
		grown := growth * float64(month) / 12
		if saved += before(grown) - now(grown); saved > 0 {
			return month + 1
		}
	}
	return 0
}

// A Place is a provider with what it offers.
type Place struct {
	Provider string
	Now      bool   // the cache is there
	Plain    *Offer // what it costs there as it is
	Chunks   *Offer
	Packs    *Offer
}

// Places are the providers.
func (r *Report) Places() (places []Place) {
	for i := range r.Offers {
		o := &r.Offers[i]
		if len(places) == 0 || places[len(places)-1].Provider != o.Provider {
			places = append(places, Place{Provider: o.Provider})
		}
		p := &places[len(places)-1]
		switch o.Way {
		case Leave:
			p.Plain, p.Now = o, true
		case Copy:
			p.Plain = o
		case Chunks:
			p.Chunks = o
		case Packs:
			p.Packs = o
		}
	}
	return places
}

// Here is the provider that the cache is at, and Best the one at which dedupd costs least in
// three years.
func (r *Report) Here() (here Place) {
	for _, p := range r.Places() {
		if p.Now {
			here = p
		}
	}
	return here
}

func (r *Report) Best() (best Place) {
	least := math.Inf(1)
	for _, p := range r.Places() {
		if cost := p.Packs.Once + 36*p.Packs.Month.Total(); cost < least {
			best, least = p, cost
		}
	}
	return best
}
