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

// CostChart shows what a month costs where the cache is, and with dedupd at each provider.
func (r *Report) CostChart() template.HTML {
	c := chart.Bars{Title: "Dollars a month", Parts: []string{"storage", "egress", "requests"}, Format: chart.Dollars}
	add := func(label string, o *Offer) {
		m := o.Month
		c.Bars = append(c.Bars, chart.Bar{Label: label, Values: []float64{m.Storage, m.Egress + m.Retrieval, m.Requests}})
	}
	add("today", r.Here().Plain)
	for _, p := range r.Places() {
		add(p.Provider, p.Packs)
	}
	return c.HTML()
}

// YearChart shows what the paths of each year take today, and about what they will.
func (r *Report) YearChart() template.HTML { return groupChart("Bytes by year", r.Years) }

// PackageChart shows the largest packages.
func (r *Report) PackageChart() template.HTML {
	return groupChart("Bytes by package", r.Packages[:min(6, len(r.Packages))])
}

func groupChart(title string, groups []Group) template.HTML {
	c := chart.Bars{Title: title, Format: chart.Bytes}
	for _, g := range groups {
		c.Bars = append(c.Bars,
			chart.Bar{Label: g.Name, Values: []float64{float64(g.FileBytes)}},
			chart.Bar{Label: "in dedupd", Values: []float64{float64(g.Stored)}})
	}
	return c.HTML()
}
