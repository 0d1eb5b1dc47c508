package gateway

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dedupd/dedupd/access"
)

// TestObserveAllocatesNothing holds that a request is counted without allocating: there
// are tens of thousands a second.
func TestObserveAllocatesNothing(t *testing.T) {
	m := newRequestMetrics(prometheus.NewRegistry())
	w := &response{kind: kindNarInfo, status: http.StatusOK, bytes: 700}
	if n := testing.AllocsPerRun(100, func() { m.observe(w, http.MethodGet, time.Millisecond) }); n > 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func TestKindsHaveNames(t *testing.T) {
	for k, name := range kindNames {
		if name == "" || slices.Index(kindNames[:], name) != k {
			t.Errorf("kind %d is called %q", k, name)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	m := newRequestMetrics(prometheus.NewRegistry())
	w := &response{kind: kindNarInfo, status: http.StatusOK, bytes: 700}
	for b.Loop() {
		m.observe(w, http.MethodGet, time.Millisecond)
	}
}

func BenchmarkAccessLog(b *testing.B) {
	g := &Gateway{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	w := &response{kind: kindNarInfo, status: http.StatusOK, bytes: 700, start: time.Now(), who: new(access.Identity)}
	r := httptest.NewRequest(http.MethodGet, "/"+strings.Repeat("1", 32)+".narinfo", nil)
	r.Header.Set("User-Agent", "curl/8.14.1 Nix/2.34.7")
	b.ReportAllocs()
	for b.Loop() {
		g.logRequest(w, r, time.Millisecond, false)
	}
}
