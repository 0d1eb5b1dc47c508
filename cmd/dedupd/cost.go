package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/metrics"
	"github.com/dedupd/dedupd/prices"
)

// A statsReport is what dedupd stats says.
type statsReport struct {
	gateway.Stats
	Cost *costs `json:"cost,omitempty"` // of a bucket whose requests are counted
}

// costs are dollars by the prices of a provider.
type costs struct {
	Provider string      `json:"provider"`
	SoFar    prices.Cost `json:"so_far"`  // all requests since they are counted
	Month    prices.Cost `json:"a_month"` // of storing what is there today

	// Of 1,000 store paths: writing them, and storing them for a month.
	Here  perPaths `json:"here"`
	Plain perPaths `json:"plain"`  // a cache that has a NAR file and a narinfo for each
	Chunk perPaths `json:"chunks"` // one that has an object for each chunk
}

type perPaths struct {
	Puts  float64 `json:"puts_a_path"` // with LIST, which costs the same
	Write float64 `json:"write"`
	Month float64 `json:"a_month"`
}

// costOf says what the requests and the bytes of a store cost; nil if its requests are not
// counted.
func costOf(st *chunkstore.Stats, name string, p *prices.Provider) *costs {
	if st.Requests == nil {
		return nil
	}
	t, paths := st.Requests.Total, float64(max(st.StorePaths, 1))
	per := func(puts, lists, objects, stored float64) perPaths {
		return perPaths{
			Puts:  (puts + lists) / paths,
			Write: 1000 / paths * p.Cost(prices.Usage{Writes: puts, Lists: lists}).Total(),
			Month: 1000 / paths * p.Cost(prices.Usage{Stored: stored, Objects: objects}).Total(),
		}
	}
	return &costs{
		Provider: name,
		SoFar:    p.Cost(metrics.Usage(t)),
		Month:    p.Cost(prices.Usage{Stored: float64(st.StoredBytes), Objects: float64(st.Objects)}),
		Here:     per(float64(t.Put), float64(t.List), float64(st.Objects), float64(st.StoredBytes)),
		Plain:    per(2*paths, 0, 2*paths, float64(st.UploadedBytes)),
		Chunk:    per(float64(st.Chunks), 0, float64(st.Chunks), float64(st.FrameBytes)),
	}
}

// WriteText writes the report for people.
func (r *statsReport) WriteText(w io.Writer) error {
	if err := r.Stats.WriteText(w); err != nil || r.Cost == nil {
		return err
	}
	c := r.Cost
	fmt.Fprintf(w, "\nat the prices of %s: $%.4f for all requests so far, $%.4f a month for what is stored\n", c.Provider, c.SoFar.Total(), c.Month.Total())
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "for 1,000 store paths\tPUT and LIST\tto write\ta month")
	for _, row := range []struct {
		name string
		perPaths
	}{{"here", c.Here}, {"NAR files and narinfos as objects", c.Plain}, {"each chunk an object", c.Chunk}} {
		fmt.Fprintf(tw, "%s\t%.0f\t$%.4f\t$%.4f\n", row.name, 1000*row.Puts, row.Write, row.Month)
	}
	return tw.Flush()
}

// priceTable returns the prices of the provider that is set.
func (s *Settings) priceTable() (*prices.Provider, error) {
	table, err := prices.Load(s.Prices)
	if err != nil {
		return nil, err
	}
	return table.Provider(s.Provider)
}
