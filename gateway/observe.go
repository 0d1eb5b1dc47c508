package gateway

import (
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The values that labels of requests can have. What is in no list counts as the last.
var (
	methods = [...]string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, "other"}
	codes   = [...]int{200, 206, 304, 400, 401, 403, 404, 405, 408, 409, 413, 415, 416, 429, 500, 502, 503, 504, 507, 0}
)

// requestMetrics count requests. A request finds its counters in tables: it neither
// hashes labels nor allocates.
type requestMetrics struct {
	count    *prometheus.CounterVec
	counters [numKinds][len(methods)][len(codes)]atomic.Pointer[prometheus.Counter] // of count, since they were used first
	kinds    [numKinds]struct {
		seconds, firstByte prometheus.Observer
		sent, received     prometheus.Counter
	}
	aborted prometheus.Counter
}

func newRequestMetrics(reg *prometheus.Registry) *requestMetrics {
	auto := promauto.With(reg)
	kind := []string{"kind"}
	buckets := []float64{0.0005, 0.0025, 0.01, 0.05, 0.25, 1, 5, 30, 300}
	m := &requestMetrics{
		count: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "dedupd_http_requests_total", Help: "Requests that were answered, by what their URL is about. Code 0 is one without an answer.",
		}, []string{"kind", "method", "code"}),
		aborted: auto.NewCounter(prometheus.CounterOpts{
			Name: "dedupd_http_aborted_total", Help: "Requests that were cut off in the middle, by the client or because of an error.",
		}),
	}
	seconds := auto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "dedupd_http_request_seconds", Help: "Time from a request's header to the end of its answer.", Buckets: buckets,
	}, kind)
	firstByte := auto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "dedupd_http_first_byte_seconds", Help: "Time from a request's header to the first byte of its answer.", Buckets: buckets,
	}, kind)
	sent := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "dedupd_http_sent_bytes_total", Help: "Bytes of bodies that were sent.",
	}, kind)
	received := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "dedupd_http_received_bytes_total", Help: "Bytes of bodies that were received, as they came.",
	}, kind)
	for k := range m.kinds {
		name := kindNames[k]
		of := &m.kinds[k]
		of.seconds, of.firstByte = seconds.WithLabelValues(name), firstByte.WithLabelValues(name)
		of.sent, of.received = sent.WithLabelValues(name), received.WithLabelValues(name)
	}
	return m
}

// observe counts a request that has ended.
func (m *requestMetrics) observe(w *response, method string, took time.Duration) {
	m.counter(w.kind, methodIndex(method), codeIndex(w.status)).Inc()
	of := &m.kinds[w.kind]
	of.seconds.Observe(took.Seconds())
	if w.status != 0 {
		of.firstByte.Observe(w.answered.Seconds())
	}
	if w.bytes > 0 {
		of.sent.Add(float64(w.bytes))
	}
	if w.received > 0 {
		of.received.Add(float64(w.received))
	}
}

func (m *requestMetrics) counter(k kind, method, code int) prometheus.Counter {
	at := &m.counters[k][method][code]
	if c := at.Load(); c != nil {
		return *c
	}
	c := m.count.WithLabelValues(kindNames[k], methods[method], strconv.Itoa(codes[code]))
	at.Store(&c)
	return c
}

func methodIndex(method string) int {
	for i, m := range methods {
		if m == method {
			return i
		}
	}
	return len(methods) - 1
}

func codeIndex(status int) int {
	for i, c := range codes {
		if c == status {
			return i
		}
	}
	return len(codes) - 1
}

// logRequest writes the access log's line of a request. What it says of the client is
// who it is, never what it proved that with.
//
// There is one for each narinfo, hence no look at who calls, as a slog.Logger would have it.
func (g *Gateway) logRequest(w *response, r *http.Request, took time.Duration, aborted bool) {
	h := g.log.Handler()
	if !h.Enabled(r.Context(), slog.LevelInfo) {
		return
	}
	line := slog.NewRecord(w.start.Add(took), slog.LevelInfo, "request", 0)
	attrs := append(make([]slog.Attr, 0, 12),
		slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.String("kind", kindNames[w.kind]),
		slog.Int("status", w.status), slog.Int64("bytes", w.bytes), slog.Duration("duration", took),
		slog.String("remote", r.RemoteAddr), slog.String("agent", r.UserAgent()))
	if w.received > 0 {
		attrs = append(attrs, slog.Int64("received", w.received))
	}
	if w.who.Name != "" {
		attrs = append(attrs, slog.String("by", w.who.Name))
	}
	if aborted {
		attrs = append(attrs, slog.Bool("aborted", true))
	}
	line.AddAttrs(attrs...)
	h.Handle(r.Context(), line)
}
