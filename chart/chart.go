// Package chart makes what pages about numbers consist of: charts as inline SVG, numbers
// as people read them, and the style sheet of both. Nothing in it needs scripts, and a
// page under a policy that allows its style sheet alone shows it all.
package chart

import (
	"bytes"
	_ "embed"
	"html/template"
	"math"
)

// Style is the style sheet of pages with charts, by day and at night, for windows from
// 320 pixels on: sections, tables, tiles and the charts.
//
//go:embed style.css
var Style string

// MaxSeries is how many quantities a chart tells apart.
const MaxSeries = 6

// A Series is one quantity of a chart.
type Series struct {
	Name   string
	Points []Point // in order of X
}

// A Point is a value at a place.
type Point struct{ X, Y float64 }

//go:embed charts.html
var chartsHTML string

var templates = template.Must(template.New("charts").Parse(chartsHTML))

// render writes a chart's drawings, one for wide windows and one for narrow ones, since
// text must not shrink with a drawing.
func render(name, title string, drawings any) template.HTML {
	var b bytes.Buffer
	err := templates.ExecuteTemplate(&b, name, struct {
		Title    string
		Drawings any
	}{title, drawings})
	if err != nil {
		panic(err) // the templates are ours, and a buffer takes all
	}
	return template.HTML(b.String())
}

// niceStep returns the least of 1, 2 and 5 times a power of ten that is not below least;
// 1 for nothing.
func niceStep(least float64) float64 {
	if !(least > 0) {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(least)))
	for _, f := range []float64{1, 2, 5} {
		if f*power >= least {
			return f * power
		}
	}
	return 10 * power
}

// round leaves a tenth of a unit, which nobody can see.
func round(f float64) float64 { return math.Round(f*10) / 10 }

// A tick is a mark on an axis.
type tick struct {
	At     float64
	Label  string
	Anchor string
}
