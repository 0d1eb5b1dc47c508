package report

import (
	_ "embed"
	"html/template"
	"io"
	"strings"

	"github.com/dedupd/dedupd/chart"
	"github.com/dedupd/dedupd/site"
)

//go:embed report.html
var pageHTML string

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"style":   func() template.CSS { return template.CSS(chart.Style) },
	"count":   chart.Count,
	"size":    chart.Size,
	"within":  size,
	"dollars": chart.Dollars,
	"times":   chart.Times,
	"float":   times,
	"percent": chart.Percent,
}).Parse(pageHTML))

// WriteHTML writes the report as a page that needs nothing else: no scripts, no files.
func (r *Report) WriteHTML(w io.Writer) error { return page.Execute(w, htmlReport{r}) }

// An htmlReport is what the page is filled with.
type htmlReport struct{ *Report }

// Parts shows what the stored bytes are.
func (r htmlReport) Parts() template.HTML {
	bar := func(label string, n int64) chart.Bar { return chart.Bar{Label: label, Values: []float64{float64(n)}} }
	c := chart.Bars{Title: "Chart of what the stored bytes are for; the tiles above and the tables below have the numbers", Format: chart.Bytes, Bars: []chart.Bar{
		bar("all NARs", r.Store.PathBytes), bar("files as uploaded", r.Store.UploadedBytes), bar("stored", r.Store.StoredBytes),
		bar("of that, for NARs", r.UsedBytes), bar("for other objects", r.UnusedBytes), bar("for records", r.recordBytes()),
		bar("saved by masking", r.Store.MaskingSavedBytes),
	}}
	return c.HTML()
}

// OverTime shows the history, if there is one.
func (r htmlReport) OverTime() template.HTML {
	if len(r.History) < 2 {
		return ""
	}
	line := func(name string, of func(site.Sample) float64) chart.Series {
		s := chart.Series{Name: name}
		for _, v := range r.History {
			s.Points = append(s.Points, chart.Point{X: float64(v.Time.Unix()), Y: of(v)})
		}
		return s
	}
	c := chart.Lines{Title: "Chart of the bytes of NARs, of uploads and of what is stored, over time; the table says the same", Y: chart.Bytes, Series: []chart.Series{
		line("NARs", func(s site.Sample) float64 { return float64(s.NARs) }),
		line("uploads", func(s site.Sample) float64 { return float64(s.Uploaded) }),
		line("stored", func(s site.Sample) float64 { return float64(s.Stored) }),
	}}
	return c.HTML()
}

// Samples are some of the history, the newest first.
func (r htmlReport) Samples() []site.Sample { return r.samples() }

const maxSamples = 12

func (r *Report) samples() (some []site.Sample) {
	step := max(1, (len(r.History)+maxSamples-1)/maxSamples)
	for i := len(r.History) - 1; i >= 0; i -= step {
		some = append(some, r.History[i])
	}
	return some
}

// RequestText says what was asked of the bucket.
func (r htmlReport) RequestText() string { return r.requests() }

// Lists are the lists of packages.
func (r htmlReport) Lists() []packageList { return r.lists() }

const maxBars = 12

// Chart shows what the list is sorted by.
func (l packageList) Chart() template.HTML {
	c := chart.Bars{Title: "Chart of packages: " + l.Title + "; the table has the numbers"}
	if l.byDedup {
		c.Format = times
	} else {
		c.Format, c.Parts = chart.Bytes, []string{"its own", "share of what others use, too"}
	}
	for i := range l.Packages[:min(len(l.Packages), maxBars)] {
		p := &l.Packages[i]
		bar := chart.Bar{Label: p.Name, Values: []float64{p.Dedup}}
		if !l.byDedup {
			bar.Values = []float64{float64(p.Own), float64(p.Shared)}
			if p.Error > 0 {
				bar.Low, bar.High = float64(max(0, p.Stored()-p.Error)), float64(p.Stored()+p.Error)
			}
		}
		c.Bars = append(c.Bars, bar)
	}
	return c.HTML()
}

// ClosureChart shows what closures take.
func (r htmlReport) ClosureChart() template.HTML {
	c := chart.Bars{Title: "Chart of what is stored for each closure; the table has the numbers", Parts: []string{"its own", "shared with other paths"}, Format: chart.Bytes}
	for _, l := range r.Closures[:min(len(r.Closures), maxBars)] {
		hash, name, _ := strings.Cut(l.Path, "-")
		c.Bars = append(c.Bars, chart.Bar{Label: name + " " + hash[:min(len(hash), 6)], Values: []float64{float64(l.Own), float64(l.Shared)}})
	}
	return c.HTML()
}

// Ways are the ways of storing that costs are compared of.
func (c *Cost) Ways() []way { return c.ways() }

// Puts1000 is requests of 1,000 paths.
func (p PerPaths) Puts1000() int64 { return int64(1000*p.Puts + 0.5) }
