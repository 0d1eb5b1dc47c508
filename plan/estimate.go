package plan

import "math"

// An Estimate is a number of bytes or of other things that is probably right, and
// between what it lies in nine samples of ten.
type Estimate struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// times is e in another unit.
func (e Estimate) times(f float64) Estimate { return Estimate{e.Value * f, e.Low * f, e.High * f} }

// Of a sample of few lineages. What they are is told by the package's comment.
const (
	priorSpread   = 0.4 // of a lineage's bytes, as a part of what was predicted
	priorWire     = 0.7 // of its downloads, in which repeated chunks count again
	priorLineages = 5   // for which these count
	priorSlope    = 0.4 // of a ratio in NARs' tightness, as a part of the ratio
	priorShare    = 0.1 // of a sample's files, for which that counts
)

// priorAdded is which part of its chunks an edition, or a rebuild, adds if no other one was
// measured; it counts as one of them.
var priorAdded = [...]float64{first: 1, newer: 0.7, rebuild: 0.1}

// An estimator predicts what the NARs of a population come to.
type estimator struct {
	pop      *population
	census   *census
	measured map[*nar]*measurement
	bytes    *ratio // of own bytes to a file's
	wire     *ratio // of bytes of a download to a file's
	parts    [rebuild + 1]part
}

func newEstimator(pop *population, c *census) *estimator {
	e := &estimator{pop: pop, census: c, measured: make(map[*nar]*measurement, len(c.measured))}
	for _, m := range c.measured {
		e.measured[m.nar] = m
	}
	e.bytes = e.ratio(priorSpread, func(m *measurement) float64 { return float64(m.own.bytes) })
	e.wire = e.ratio(priorWire, func(m *measurement) float64 { return float64(m.wire) })
	for k := range e.parts {
		e.parts[k] = e.part(kind(k))
	}
	return e
}

// A ratio predicts something of NARs from the sizes of their files.
type ratio struct {
	of       func(*measurement) float64
	prior    float64           // spread
	groups   map[string]*group // by compression
	slope    float64           // in tightness, as a part of the ratio
	byNAR    float64           // something for each byte of NAR, for other compressions
	lineages map[int]float64   // the ratio in a lineage that was measured
}

type group struct {
	value, file, tightness float64 // sums; tightness with files as weights
}

// ratio fits a ratio to what was measured.
func (e *estimator) ratio(prior float64, of func(*measurement) float64) *ratio {
	r := &ratio{of: of, prior: prior, groups: map[string]*group{}, lineages: map[int]float64{}}
	var value, size, file float64
	for _, m := range e.census.measured {
		g := r.groups[m.compression]
		if g == nil {
			g = &group{}
			r.groups[m.compression] = g
		}
		v, f := of(m), float64(m.file)
		g.value, g.file, g.tightness = g.value+v, g.file+f, g.tightness+f*m.tightness()
		value, size, file = value+v, size+float64(m.size), file+f
		r.lineages[m.lineage] = v / f
	}
	r.byNAR = value / size
	sxy, sxx := priorShare*file*priorSlope, priorShare*file
	for _, m := range e.census.measured {
		g := r.groups[m.compression]
		if g.value == 0 {
			continue
		}
		f, x := float64(m.file), m.tightness()-g.tightness/g.file
		sxy += f * x * (of(m)/f*g.file/g.value - 1)
		sxx += f * x * x
	}
	r.slope = sxy / sxx
	return r
}

// blind predicts from n's file alone.
func (r *ratio) blind(n *nar) float64 {
	g := r.groups[n.compression]
	if g == nil {
		return r.byNAR * float64(n.size)
	}
	x := n.tightness() - g.tightness/g.file
	return float64(n.file) * g.value / g.file * max(0.3, 1+r.slope*x)
}

// predict predicts from what is known of the lineage as well.
func (r *ratio) predict(n *nar) (v float64, known bool) {
	if q, ok := r.lineages[n.lineage]; ok {
		return q * float64(n.file), true
	}
	return r.blind(n), false
}

// A part is which part of their own bytes NARs of a kind add.
type part struct {
	mean   float64
	spread float64 // variance, of one NAR
	shared float64 // variance of the mean, as a part of spread
}

func (e *estimator) part(k kind) part {
	own := 0.0
	for _, m := range e.census.measured {
		own += float64(m.own.bytes)
	}
	one := max(1, own/float64(len(e.census.measured))) // what is known before counts as such a NAR
	sum, added, squares := one, priorAdded[k]*one, one*one
	for _, m := range e.census.measured {
		if m.kind == k && m.placed {
			w := float64(m.own.bytes)
			sum, added, squares = sum+w, added+float64(m.added.bytes), squares+w*w
		}
	}
	p := part{mean: added / sum, shared: squares / (sum * sum)}
	p.spread = p.mean * (1 - p.mean) * one // the most that a part can spread
	for _, m := range e.census.measured {
		if m.kind == k && m.placed && m.own.bytes > 0 {
			w := float64(m.own.bytes)
			d := float64(m.added.bytes)/w - p.mean
			p.spread += w * d * d
		}
	}
	p.spread /= sum
	return p
}

// spread is the variance of what a lineage comes to, as a part of the square of what r
// predicts of it, and common that of r itself. degrees are those of freedom.
func (e *estimator) spread(r *ratio) (spread, common float64, degrees int) {
	type sums struct{ predicted, value float64 }
	lineages := map[int]sums{}
	for _, m := range e.census.measured {
		s := lineages[m.lineage]
		lineages[m.lineage] = sums{s.predicted + r.blind(m.nar), s.value + r.of(m)}
	}
	var sum, squares, errors float64
	for _, s := range lineages {
		sum += s.predicted
		squares += s.predicted * s.predicted
		errors += (s.value - s.predicted) * (s.value - s.predicted)
	}
	degrees = priorLineages + max(len(lineages)-2, 0)
	if squares == 0 { // all is too small for chunks
		return r.prior * r.prior, r.prior * r.prior, degrees
	}
	spread = (priorLineages*r.prior*r.prior + float64(len(lineages))*errors/squares) / float64(degrees)
	return spread, spread * squares / (sum * sum), degrees
}

// downloads estimates the bytes of downloading every NAR once.
func (e *estimator) downloads() Estimate {
	spread, common, degrees := e.spread(e.wire)
	var total, unseen, variance float64
	for _, lineage := range e.pop.lineages {
		blind := 0.0
		for _, n := range lineage {
			if m := e.measured[n]; m != nil {
				total += float64(m.wire)
				continue
			}
			v, known := e.wire.predict(n)
			total += v
			if !known {
				blind += v
			}
		}
		unseen += blind
		variance += spread * blind * blind
	}
	return interval(total, math.Sqrt(variance+common*unseen*unseen), degrees).times(e.pop.scale)
}

func interval(value, sd float64, degrees int) Estimate {
	half := student90(degrees) * sd
	return Estimate{value, max(0, value-half), value + half}
}

// added is what n adds to its lineage, in bytes.
func (e *estimator) added(n *nar) float64 {
	if m := e.measured[n]; m != nil && m.placed {
		return float64(m.added.bytes)
	}
	own, _ := e.bytes.predict(n)
	return own * e.parts[n.kind].mean
}

// frames estimates the bytes of all frames, and returns by what sums of added are to be
// multiplied for what lineages share.
func (e *estimator) frames() (all Estimate, factor float64) {
	spread, common, degrees := e.spread(e.bytes)
	var total, unseen, variance float64
	var own, squares [rebuild + 1]float64 // of predictions, by kind
	for _, lineage := range e.pop.lineages {
		blind := 0.0
		for _, n := range lineage {
			added := e.added(n)
			total += added
			if m := e.measured[n]; m != nil && m.placed {
				continue
			}
			o, known := e.bytes.predict(n)
			own[n.kind] += o
			squares[n.kind] += o * o
			if !known {
				blind += added
			}
		}
		unseen += blind
		variance += spread * blind * blind
	}
	variance += common * unseen * unseen
	for k, p := range e.parts {
		variance += p.spread * (p.shared*own[k]*own[k] + squares[k])
	}
	factor, doubt := e.shared(total)
	return interval(total, math.Sqrt(variance+doubt*doubt*total*total), degrees).times(factor), factor
}

// shared is what is left of the lineages' bytes when they are together, for each path that
// was read, and how doubtful that is.
func (e *estimator) shared(total float64) (factor, doubt float64) {
	var sampled float64
	for _, lineage := range e.pop.lineages {
		for _, n := range lineage {
			if _, ok := e.bytes.lineages[n.lineage]; ok {
				sampled += e.added(n)
			}
		}
	}
	left, doubling := e.census.lineages.growth()
	grown := math.Pow(doubling, math.Log2(max(1, total/max(1, sampled))))
	doubt = (1 - grown) / 2
	factor = left * grown
	if scale := e.pop.scale; scale > 1 {
		_, doubling := e.census.nars.growth()
		grown := math.Pow(doubling, math.Log2(scale))
		doubt += (1 - grown) / 2
		factor *= scale * grown
	}
	return factor, doubt
}

// student90 is the 95 % quantile of Student's distribution, by Fisher's expansion (Cornish
// and Fisher 1937), right to 1 % from 4 degrees of freedom on.
func student90(degrees int) float64 {
	const z = 1.6448536
	v := float64(degrees)
	return z + (z*z*z+z)/(4*v) + (5*math.Pow(z, 5)+16*z*z*z+3*z)/(96*v*v)
}
