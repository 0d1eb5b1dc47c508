package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dedupd/dedupd/encodings"
)

// OldNames has the numbers of a cache collected that is for the names of uploads.
func (m *Metrics) OldNames(c *encodings.Cache) {
	m.Registry.MustRegister(oldNamesCollector{c})
}

var oldNamesNumbers = []number[encodings.Stats]{
	counter("dedupd_old_names_hits_total", "Downloads under the name of an upload that began with a compressed file.", func(s encodings.Stats) float64 { return float64(s.Hits) }),
	counter("dedupd_old_names_hit_bytes_total", "Bytes that were sent of these files.", func(s encodings.Stats) float64 { return float64(s.HitBytes) }),
	counter("dedupd_old_names_misses_total", "Downloads under the name of an upload that began with the form without compression.", func(s encodings.Stats) float64 { return float64(s.Misses) }),
	counter("dedupd_old_names_miss_bytes_total", "Bytes that were sent in that form.", func(s encodings.Stats) float64 { return float64(s.MissBytes) }),
	counter("dedupd_old_names_encoded_total", "Files that were made.", func(s encodings.Stats) float64 { return float64(s.Encoded) }),
	counter("dedupd_old_names_failures_total", "Files that could not be made.", func(s encodings.Stats) float64 { return float64(s.Failures) }),
	counter("dedupd_old_names_evictions_total", "Files that went for others, or for room on the disk.", func(s encodings.Stats) float64 { return float64(s.Evictions) }),
	counter("dedupd_old_names_damaged_total", "Files that were damaged on the disk, and not used any more.", func(s encodings.Stats) float64 { return float64(s.Damaged) }),
	gauge("dedupd_old_names_waiting", "Files that are being made, or wait to be.", func(s encodings.Stats) float64 { return float64(s.Waiting) }),
	gauge("dedupd_old_names_files", "Files that are there.", func(s encodings.Stats) float64 { return float64(s.Files) }),
	gauge("dedupd_old_names_bytes", "Room that they take on the disk.", func(s encodings.Stats) float64 { return float64(s.Bytes) }),
}

type oldNamesCollector struct{ cache *encodings.Cache }

func (oldNamesCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, n := range oldNamesNumbers {
		ch <- n.desc
	}
}

func (c oldNamesCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.cache.Stats()
	for _, n := range oldNamesNumbers {
		ch <- prometheus.MustNewConstMetric(n.desc, n.typ, n.of(s))
	}
}
