package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/chunkstore"
)

// getHealth says that the process answers requests, and nothing else: what would not get
// better by starting it anew is not a matter of /healthz.
func (g *Gateway) getHealth(w *response, r *http.Request) error {
	return g.answerJSON(w, r, http.StatusOK, map[string]bool{"healthy": true})
}

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`
}

// getReady says whether the store can be read, or, with ?write=1, written to as well, by
// 200 or 503. The reasons name files and addresses; they are for those who may read.
func (g *Gateway) getReady(w *response, r *http.Request) error {
	ready, status := g.readiness(r), http.StatusOK
	if !ready.Ready {
		status = http.StatusServiceUnavailable
	}
	if _, err := g.cfg.Access.Allow(r, access.Read); err != nil {
		ready.Reasons = nil
	}
	return g.answerJSON(w, r, status, ready)
}

func (g *Gateway) readiness(r *http.Request) *Readiness {
	health := g.prober.health(r.Context())
	reasons := health.Read
	if r.URL.Query().Get("write") == "1" {
		reasons = append(reasons[:len(reasons):len(reasons)], health.Write...)
	}
	ready := &Readiness{Ready: len(reasons) == 0}
	for _, reason := range reasons {
		ready.Reasons = append(ready.Reasons, reason.Error())
	}
	return ready
}

// answerJSON answers with v, which no cache keeps.
func (g *Gateway) answerJSON(w *response, r *http.Request, status int, v any) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	return json.NewEncoder(w).Encode(v)
}

const (
	probeAge     = 5 * time.Second // for which what was found counts
	probeTimeout = 5 * time.Second // of asking the bucket
)

// A prober looks at the store's health for everybody who asks: the bucket is not asked
// more often because many do.
type prober struct {
	store *chunkstore.Store
	turn  chan struct{} // capacity 1: a token in it is held by who uses what follows
	last  chunkstore.Health
	at    time.Time // when last was found
}

func newProber(store *chunkstore.Store) *prober {
	return &prober{store: store, turn: make(chan struct{}, 1)}
}

// errProbing says that an answer of the bucket is late.
var errProbing = errors.New("the bucket has not answered in time")

// health returns what was found lately, or looks.
func (p *prober) health(ctx context.Context) chunkstore.Health {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-time.After(2 * probeTimeout): // who looks is stuck, although it should not be
		return chunkstore.Health{Read: []error{errProbing}}
	}
	if time.Since(p.at) < probeAge {
		return p.last
	}
	// Others get the outcome, so that it must not depend on this client.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	p.last, p.at = p.store.Health(ctx), time.Now()
	return p.last
}
