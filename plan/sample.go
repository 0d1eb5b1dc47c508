package plan

import (
	"math"
	"math/rand/v2"
	"slices"
)

// A unit is what is sampled as a whole: a run of editions of one lineage.
type unit struct {
	before   *nar      // of the edition before the run, nil at the start of a lineage
	editions []*nar    // the first NAR of each
	rebuilds []rebuilt // all others of these editions
	bytes    int64     // of the files of before and editions
}

// A sample are NARs to be measured.
type sample struct {
	units    []unit
	rebuilds []rebuilt
}

// A rebuilt is a NAR with another one of its edition.
type rebuilt struct{ nar, edition *nar }

// rebuildShare is the part of a sample's bytes that goes to rebuilds.
const rebuildShare = 0.1

// choose draws a sample of about so many bytes of files. It is never empty.
func (p *population) choose(budget int64, random *rand.Rand) *sample {
	units := p.units(budget / 5)
	var rebuilds, editions int64
	for _, n := range p.nars {
		if n.kind == rebuild {
			rebuilds += n.file
		}
	}
	for _, u := range units {
		editions += u.bytes
	}
	left := min(max(int64(rebuildShare*float64(budget)), budget-editions), rebuilds)
	s := &sample{units: draw(units, budget-left, random)}
	var candidates []rebuilt
	for _, u := range s.units {
		candidates = append(candidates, u.rebuilds...)
	}
	random.Shuffle(len(candidates), func(i, j int) { candidates[i], candidates[j] = candidates[j], candidates[i] })
	for _, c := range candidates {
		if c.nar.file <= left {
			left -= c.nar.file
			s.rebuilds = append(s.rebuilds, c)
		}
	}
	return s
}

// units cuts the lineages into runs of about most bytes, but of two editions at least.
func (p *population) units(most int64) (units []unit) {
	for _, lineage := range p.lineages {
		var u unit
		for _, n := range lineage {
			switch {
			case n.kind == rebuild:
				u.rebuilds = append(u.rebuilds, rebuilt{n, u.editions[len(u.editions)-1]})
				continue
			case len(u.editions) > 1 && u.bytes+n.file > most:
				units = append(units, u)
				last := u.editions[len(u.editions)-1]
				u = unit{before: last, bytes: last.file}
			}
			u.editions = append(u.editions, n)
			u.bytes += n.file
		}
		units = append(units, u)
	}
	return units
}

// growing says whether there is more than one edition in a unit's lineage.
func (u *unit) growing() bool { return u.before != nil || len(u.editions) > 1 }

// draw draws units of about so many bytes in all, one at least: systematically, from those
// of one edition and then the others, each in order of size, with a probability for each
// that grows with the fourth root of its bytes. Sizes are blurred, so that neighbours
// differ from draw to draw.
func draw(units []unit, budget int64, random *rand.Rand) (drawn []unit) {
	type candidate struct {
		unit
		order, root float64
	}
	list := make([]candidate, len(units))
	var most float64
	for i, u := range units {
		c := candidate{u, float64(u.bytes) * math.Exp(0.7*random.Float64()), math.Sqrt(math.Sqrt(float64(u.bytes)))}
		if u.growing() { // the large ones are neighbours
			c.order = -c.order
		}
		list[i] = c
		most = max(most, c.root)
	}
	slices.SortFunc(list, func(a, b candidate) int {
		switch {
		case a.growing() != b.growing():
			if b.growing() {
				return -1
			}
			return 1
		case a.order < b.order:
			return -1
		case a.order > b.order:
			return 1
		}
		return 0
	})
	// By bisection, how likely a unit is to be taken for each of its root.
	low, high := 0.0, 1.0
	for range 60 {
		mid := (low + high) / 2
		expected := 0.0
		for _, c := range list {
			expected += min(1, mid*c.root) * float64(c.bytes)
		}
		if expected > float64(budget) {
			high = mid
		} else {
			low = mid
		}
	}
	next, at := random.Float64(), 0.0
	for _, c := range list {
		if at += min(1, high*c.root); at > next {
			drawn = append(drawn, c.unit)
			next++
		}
	}
	if len(drawn) == 0 {
		drawn = append(drawn, list[random.IntN(len(list))].unit)
	}
	return drawn
}
