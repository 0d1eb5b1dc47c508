package metrics

import (
	"github.com/maypok86/otter/v2/stats"
	"github.com/prometheus/client_golang/prometheus"
)

// Cache has the numbers of a cache in memory collected, and the bytes that it takes. name
// is its label.
func (m *Metrics) Cache(name string, read func() (stats.Stats, uint64)) {
	labels := prometheus.Labels{"cache": name}
	count := func(name, help string, of func(stats.Stats) uint64) {
		m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
			s, _ := read()
			return float64(of(s))
		}))
	}
	count("dedupd_cache_hits_total", "Look-ups that a cache in memory answered.", func(s stats.Stats) uint64 { return s.Hits })
	// Not the misses, of which some look-ups count two.
	count("dedupd_cache_misses_total", "Look-ups that it did not: values were made, or there were none.", stats.Stats.Loads)
	count("dedupd_cache_evictions_total", "Values that it dropped for others, or because of their age.", func(s stats.Stats) uint64 { return s.Evictions })
	m.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "dedupd_cache_bytes", Help: "Memory of its values, estimated.", ConstLabels: labels,
	}, func() float64 {
		_, bytes := read()
		return float64(bytes)
	}))
}
