package report

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/metrics"
	"github.com/dedupd/dedupd/prices"
)

// A Cost is what the requests and the bytes of a store cost, in dollars by the prices of a
// provider, and what they would in other ways of storing the same.
type Cost struct {
	Provider string      `json:"provider"`
	SoFar    prices.Cost `json:"so_far"`  // all requests since they are counted
	Month    prices.Cost `json:"a_month"` // of storing what is there today

	// Of 1,000 store paths: writing them, and storing them for a month.
	Here  PerPaths `json:"here"`
	Plain PerPaths `json:"plain"`  // a cache that has a NAR file and a narinfo for each
	Chunk PerPaths `json:"chunks"` // one that has an object for each chunk
}

// PerPaths is about 1,000 store paths.
type PerPaths struct {
	Puts  float64 `json:"puts_a_path"` // with LIST, which costs the same
	Write float64 `json:"write"`
	Month float64 `json:"a_month"`
}

// CostOf says what a store costs; nil if its requests are not counted.
func CostOf(st *chunkstore.Stats, name string, p *prices.Provider) *Cost {
	if st.Requests == nil {
		return nil
	}
	t, paths := st.Requests.Total, float64(max(st.StorePaths, 1))
	per := func(puts, lists, objects, stored float64) PerPaths {
		return PerPaths{
			Puts:  (puts + lists) / paths,
			Write: 1000 / paths * p.Cost(prices.Usage{Writes: puts, Lists: lists}).Total(),
			Month: 1000 / paths * p.Cost(prices.Usage{Stored: stored, Objects: objects}).Total(),
		}
	}
	return &Cost{
		Provider: name,
		SoFar:    p.Cost(metrics.Usage(t)),
		Month:    p.Cost(prices.Usage{Stored: float64(st.StoredBytes), Objects: float64(st.Objects)}),
		Here:     per(float64(t.Put), float64(t.List), float64(st.Objects), float64(st.StoredBytes)),
		Plain:    per(2*paths, 0, 2*paths, float64(st.UploadedBytes)),
		Chunk:    per(float64(st.Chunks), 0, float64(st.Chunks), float64(st.FrameBytes)),
	}
}

// WriteText writes the costs for people.
func (c *Cost) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "\nat the prices of %s: $%.4f for all requests so far, $%.4f a month for what is stored\n", c.Provider, c.SoFar.Total(), c.Month.Total())
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "for 1,000 store paths\tPUT and LIST\tto write\ta month")
	for _, way := range c.ways() {
		fmt.Fprintf(tw, "%s\t%.0f\t$%.4f\t$%.4f\n", way.Name, 1000*way.Puts, way.Write, way.Month)
	}
	return tw.Flush()
}

// A way is one of the ways of storing.
type way struct {
	Name string
	PerPaths
}

func (c *Cost) ways() []way {
	return []way{{"here", c.Here}, {"NAR files and narinfos as objects", c.Plain}, {"each chunk an object", c.Chunk}}
}
