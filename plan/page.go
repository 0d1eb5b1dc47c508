package plan

import (
	_ "embed"
	"html/template"
	"io"

	"github.com/dedupd/dedupd/chart"
)

//go:embed page.html
var pageHTML string

var page = template.Must(template.New("plan").Funcs(template.FuncMap{
	"bytes": chart.Bytes, "size": chart.Size, "count": chart.Count, "dollars": chart.Dollars, "percent": chart.Percent,
}).Parse(pageHTML))

// WriteHTML writes the report as a page that needs nothing else, with charts.
func (r *Report) WriteHTML(w io.Writer) error {
	return page.Execute(w, struct {
		*Report
		Style template.CSS
	}{r, template.CSS(chart.Style)})
}

// Leave is what the cache costs where it is.
func (r *Report) Leave() *Offer {
	for i := range r.Offers {
		if r.Offers[i].Way == Leave {
			return &r.Offers[i]
		}
	}
	return nil
}

// Here is the offer of dedupd at the provider that the cache is at.
func (r *Report) Here() *Offer {
	for i := range r.Offers {
		if o := &r.Offers[i]; o.Way == Packs && o.Provider == r.Provider {
			return o
		}
	}
	return nil
}

// Best is the cheapest offer of dedupd.
func (r *Report) Best() *Offer { return r.best(Packs) }

// Pays says from when on an offer is cheaper than leaving the cache where it is.
func (o *Offer) Pays() string { return o.pays() }

// SizeChart shows what is stored and downloaded, today and with dedupd.
func (r *Report) SizeChart() template.HTML {
	files := float64(r.FileBytes)
	bar := func(label string, e Estimate) chart.Bar {
		return chart.Bar{Label: label, Values: []float64{e.Value}, Low: e.Low, High: e.High}
	}
	c := chart.Bars{
		Title: "What is stored and downloaded, today and with dedupd", Format: chart.Bytes,
		Bars: []chart.Bar{
			{Label: "stored today", Values: []float64{files}}, bar("stored by dedupd", r.Stored),
			{Label: "downloads today", Values: []float64{files}}, bar("downloads from dedupd", r.Wire),
		},
	}
	return c.HTML()
}

// CostChart shows what a month costs with each provider, in the ways that move the cache
// there, or leave it.
func (r *Report) CostChart() template.HTML {
	c := chart.Bars{Title: "Dollars a month", Parts: []string{"storage", "egress", "requests"}, Format: chart.Dollars}
	for _, o := range r.Offers {
		if o.Way != Chunks && o.Month.Total() > 0 {
			c.Bars = append(c.Bars, chart.Bar{
				Label:  o.Provider + ", " + string(o.Way),
				Values: []float64{o.Month.Storage, o.Month.Egress + o.Month.Retrieval, o.Month.Requests},
			})
		}
	}
	return c.HTML()
}

// GroupChart shows what parts of the cache take today, and about what they will.
func groupChart(title string, groups []Group) template.HTML {
	c := chart.Bars{Title: title, Format: chart.Bytes}
	for _, g := range groups {
		c.Bars = append(c.Bars,
			chart.Bar{Label: g.Name + " today", Values: []float64{float64(g.FileBytes)}},
			chart.Bar{Label: g.Name + " in dedupd", Values: []float64{float64(g.Stored)}})
	}
	return c.HTML()
}

// YearChart shows the years.
func (r *Report) YearChart() template.HTML { return groupChart("Bytes by year", r.Years) }

// PackageChart shows the largest packages.
func (r *Report) PackageChart() template.HTML {
	return groupChart("Bytes by package", r.Packages[:min(6, len(r.Packages))])
}
