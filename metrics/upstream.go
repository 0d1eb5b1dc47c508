package metrics

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// upstreamMetrics count what is asked of upstreams.
type upstreamMetrics struct {
	seconds *prometheus.HistogramVec
	bytes   *prometheus.CounterVec
}

func newUpstreamMetrics(reg *prometheus.Registry) *upstreamMetrics {
	auto := promauto.With(reg)
	return &upstreamMetrics{
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "dedupd_upstream_request_seconds", Help: "Time until an upstream began to answer. Outcome is ok, absent, canceled or failed.",
			Buckets: []float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60},
		}, []string{"upstream", "kind", "outcome"}),
		bytes: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "dedupd_upstream_received_bytes_total", Help: "Bytes of NARs and other files that were read from an upstream, as they came.",
		}, []string{"upstream"}),
	}
}

// Source returns s with what is asked of it counted, under its name.
func (m *Metrics) Source(s upstream.Source) upstream.Source {
	return &source{s, m.upstreams, m.upstreams.bytes.WithLabelValues(s.Name())}
}

type source struct {
	upstream.Source
	metrics *upstreamMetrics
	bytes   prometheus.Counter
}

// asked counts a question that was put at start.
func (s *source) asked(kind string, start time.Time, err error) {
	outcome := "ok"
	switch {
	case errors.Is(err, upstream.ErrNotFound):
		outcome = "absent"
	case errors.Is(err, context.Canceled):
		outcome = "canceled"
	case err != nil:
		outcome = "failed"
	}
	s.metrics.seconds.WithLabelValues(s.Name(), kind, outcome).Observe(time.Since(start).Seconds())
}

func (s *source) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	start := time.Now()
	info, err := s.Source.NarInfo(ctx, hashPart)
	s.asked("narinfo", start, err)
	return info, err
}

func (s *source) NAR(ctx context.Context, info *narinfo.NarInfo, off int64) (io.ReadCloser, int64, error) {
	start := time.Now()
	body, size, err := s.Source.NAR(ctx, info, off)
	s.asked("nar", start, err)
	if err != nil {
		return nil, 0, err
	}
	return &countedBody{body, s.bytes}, size, nil
}

func (s *source) File(ctx context.Context, name string) (io.ReadCloser, error) {
	start := time.Now()
	body, err := s.Source.File(ctx, name)
	s.asked("file", start, err)
	if err != nil {
		return nil, err
	}
	return &countedBody{body, s.bytes}, nil
}

// Close closes a source that is to be closed.
func (s *source) Close() error {
	if c, ok := s.Source.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

type countedBody struct {
	io.ReadCloser
	bytes prometheus.Counter
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(float64(n))
	return n, err
}

// WriteTo implements io.WriterTo, as some bodies do, which saves a copy.
func (b *countedBody) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, b.ReadCloser)
	b.bytes.Add(float64(n))
	return n, err
}
