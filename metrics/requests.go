package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/prices"
)

// Requests has the requests that a store sends to its bucket collected, and what they cost
// by the prices of a provider. Of a bucket that counts none there is nothing.
func (m *Metrics) Requests(s *chunkstore.Store, p *prices.Provider) {
	if s.Requests() == nil {
		return
	}
	count := func(name, help string, labels prometheus.Labels, of func(bucket.Requests) float64) {
		m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return of(s.Requests().Process) }))
	}
	for method, of := range map[string]func(bucket.Requests) uint64{
		"put": func(r bucket.Requests) uint64 { return r.Put }, "get": func(r bucket.Requests) uint64 { return r.Get },
		"head": func(r bucket.Requests) uint64 { return r.Head }, "list": func(r bucket.Requests) uint64 { return r.List },
		"delete": func(r bucket.Requests) uint64 { return r.Delete },
	} {
		count("dedupd_bucket_requests_total", "Requests to the object store, each attempt by itself.", prometheus.Labels{"method": method},
			func(r bucket.Requests) float64 { return float64(of(r)) })
	}
	count("dedupd_bucket_failed_requests_total", "Of these, those that had no answer, or one that blames the server or the moment.", nil,
		func(r bucket.Requests) float64 { return float64(r.Failed) })
	count("dedupd_bucket_sent_bytes_total", "Bytes of bodies of these requests.", nil, func(r bucket.Requests) float64 { return float64(r.Sent) })
	count("dedupd_bucket_received_bytes_total", "Bytes of bodies of their answers.", nil, func(r bucket.Requests) float64 { return float64(r.Received) })
	count("dedupd_bucket_requests_dollars_total", "What these requests cost, by the setting prices.", nil, func(r bucket.Requests) float64 {
		return p.Cost(Usage(r)).Requests
	})
}

// Usage is requests as prices has them.
func Usage(r bucket.Requests) prices.Usage {
	return prices.Usage{Writes: float64(r.Put), Lists: float64(r.List), Reads: float64(r.Get + r.Head), Deletes: float64(r.Delete)}
}
