package gateway

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
