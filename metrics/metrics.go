// Package metrics is what Prometheus is told of a server.
//
// Names are dedupd_<what>_<unit>, with _total where they only grow; sizes are bytes and
// times seconds. Labels take their values from lists in the code, never from a request,
// so that the number of series is bounded. Who has something to tell registers it:
//
//	promauto.With(m.Registry).NewCounterVec(…)
package metrics

import (
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/dedupd/dedupd/bucket"
)

// Metrics are those of one server.
type Metrics struct {
	Registry *prometheus.Registry

	lookups   prometheus.Histogram
	upstreams *upstreamMetrics
}

// New returns Metrics that tell of the process.
func New(version string) *Metrics {
	m := &Metrics{Registry: prometheus.NewRegistry()}
	m.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	promauto.With(m.Registry).NewGauge(prometheus.GaugeOpts{
		Name: "dedupd_build_info", Help: "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}).Set(1)
	m.lookups = promauto.With(m.Registry).NewHistogram(prometheus.HistogramOpts{
		Name: "dedupd_index_lookup_seconds", Help: "How long look-ups in the index took; those of many chunks count as one.",
		Buckets: []float64{2e-6, 10e-6, 50e-6, 250e-6, 1e-3, 5e-3, 25e-3, 0.1, 1},
	})
	m.upstreams = newUpstreamMetrics(m.Registry)
	return m
}

// Handler answers with all metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{})
}

// Lookup counts a look-up in the index; it is for chunkstore.Options.OnLookup.
func (m *Metrics) Lookup(took time.Duration) { m.lookups.Observe(took.Seconds()) }

// Bucket returns b with its operations counted.
func (m *Metrics) Bucket(b bucket.Bucket) bucket.Bucket {
	auto := promauto.With(m.Registry)
	seconds := auto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "dedupd_bucket_operation_seconds", Help: "How long operations of the bucket took, with their retries, failed ones too.",
		Buckets: []float64{0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60},
	}, []string{"operation"})
	bytes := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "dedupd_bucket_bytes_total", Help: "Bytes of objects that were written to the bucket (put) and read from it (read).",
	}, []string{"operation"})
	failures := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "dedupd_bucket_errors_total", Help: "Operations of the bucket that failed. Kinds not_found and exists are answers, not faults.",
	}, []string{"operation", "kind"})
	return bucket.Observe(b, func(op bucket.Operation) {
		seconds.WithLabelValues(op.Name).Observe(op.Took.Seconds())
		if op.Bytes > 0 {
			bytes.WithLabelValues(op.Name).Add(float64(op.Bytes))
		}
		if op.Err != nil {
			failures.WithLabelValues(op.Name, errorKind(op.Err)).Inc()
		}
	})
}
