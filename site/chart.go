package site

import (
	"fmt"
	"html/template"

	"github.com/dedupd/dedupd/chart"
)

// A timeline shows how large the cache was.
type timeline struct {
	Chart   template.HTML
	Rows    []Sample // some of the samples, for a table
	Summary string   // what is to be seen
}

const maxRows = 12

// newTimeline returns nil for no samples.
func newTimeline(samples []Sample) *timeline {
	if len(samples) == 0 {
		return nil
	}
	line := func(name string, of func(Sample) int64) chart.Series {
		s := chart.Series{Name: name}
		for _, v := range samples {
			s.Points = append(s.Points, chart.Point{X: float64(v.Time.Unix()), Y: float64(of(v))})
		}
		return s
	}
	c := &chart.Lines{
		Title: "Chart of the bytes of NARs, uploads and what is stored, over time; the caption and the table say the same",
		Series: []chart.Series{
			line("NARs", func(s Sample) int64 { return s.NARs }),
			line("uploads", func(s Sample) int64 { return s.Uploaded }),
			line("stored", func(s Sample) int64 { return s.Stored }),
		},
		Y: chart.Bytes,
	}
	first, last := samples[0], samples[len(samples)-1]
	t := &timeline{Chart: c.HTML()}
	t.Summary = fmt.Sprintf("On %s the cache held %s of NARs, which were uploaded as files of %s, and stored %s.",
		last.Time.Format("2 January 2006"), chart.Size(last.NARs), chart.Size(last.Uploaded), chart.Size(last.Stored))
	if len(samples) > 1 {
		t.Summary = fmt.Sprintf("On %s the cache held %s of NARs and stored %s. ",
			first.Time.Format("2 January 2006"), chart.Size(first.NARs), chart.Size(first.Stored)) + t.Summary
	}
	step := max(1, (len(samples)+maxRows-1)/maxRows)
	for i := len(samples) - 1; i >= 0; i -= step {
		t.Rows = append(t.Rows, samples[i])
	}
	return t
}
