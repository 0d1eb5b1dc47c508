package chart

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"
)

// Lines is a chart of quantities along one axis.
type Lines struct {
	// Title says what is to be seen, for those who do not see it.
	Title  string
	Series []Series // MaxSeries at most
	// Y writes a value with its unit, X a place on the axis. Without X places are
	// seconds since 1970.
	Y, X func(float64) string
}

// A linesDrawing is a chart in the units of its own coordinates.
type linesDrawing struct {
	ID                       string
	Width, Height            int
	Left, Right, Top, Bottom float64 // of the area in which there are lines
	Lines                    []line
	Y, X                     []tick
}

type line struct {
	Name   string
	Class  int
	Points string  // of a polyline
	X, Y   float64 // of the last point
	LabelY float64
}

// labelStep is between the labels of two lines, at least.
const labelStep = 15

// HTML returns the chart, nothing if there are no points.
func (c *Lines) HTML() template.HTML {
	drawings := c.drawings()
	if drawings == nil {
		return ""
	}
	return render("lines", c.Title, drawings)
}

func (c *Lines) drawings() []linesDrawing {
	first, last, most := math.Inf(1), math.Inf(-1), 0.0
	for _, s := range c.Series {
		for _, p := range s.Points {
			first, last, most = min(first, p.X), max(last, p.X), max(most, p.Y)
		}
	}
	if first > last {
		return nil
	}
	return []linesDrawing{
		c.draw(first, last, most, linesDrawing{ID: "wide", Width: 720, Height: 270, Left: 70, Right: 620, Top: 12, Bottom: 240}, 5),
		c.draw(first, last, most, linesDrawing{ID: "narrow", Width: 350, Height: 240, Left: 58, Right: 268, Top: 12, Bottom: 212}, 2),
	}
}

// draw fills in d, with at most xTicks marks of time.
func (c *Lines) draw(first, last, most float64, d linesDrawing, xTicks int) linesDrawing {
	x := func(v float64) float64 {
		if first == last {
			return d.Right
		}
		return round(d.Left + (d.Right-d.Left)*(v-first)/(last-first))
	}
	step := niceStep(most / 4)
	top := step * max(1, math.Ceil(most/step))
	y := func(v float64) float64 { return round(d.Bottom - (d.Bottom-d.Top)*v/top) }
	for i := range int(math.Round(top/step)) + 1 {
		v := float64(i) * step
		d.Y = append(d.Y, tick{At: y(v), Label: c.Y(v)})
	}
	for i, s := range c.Series {
		if len(s.Points) == 0 {
			continue
		}
		l := line{Name: s.Name, Class: i % MaxSeries}
		var points strings.Builder
		for _, p := range s.Points {
			l.X, l.Y = x(p.X), y(p.Y)
			fmt.Fprintf(&points, "%v,%v ", l.X, l.Y)
		}
		l.Points, l.LabelY = strings.TrimSpace(points.String()), l.Y+4
		d.Lines = append(d.Lines, l)
	}
	spread(d.Lines, d.Bottom)
	d.X = c.xTicks(first, last, x, xTicks)
	return d
}

// spread moves labels apart that would lie on each other, and none below bottom.
func spread(lines []line, bottom float64) {
	order := make([]*line, 0, len(lines))
	for i := range lines { // by their place, the lowest first
		at := len(order)
		for at > 0 && order[at-1].LabelY <= lines[i].LabelY {
			at--
		}
		order = append(order[:at], append([]*line{&lines[i]}, order[at:]...)...)
	}
	lowest := bottom
	for _, l := range order {
		l.LabelY = min(l.LabelY, lowest)
		lowest = l.LabelY - labelStep
	}
}

func (c *Lines) xTicks(first, last float64, x func(float64) float64, n int) (ticks []tick) {
	write := c.X
	if write == nil {
		write = timeFormat(last - first)
	}
	if first == last {
		return []tick{{x(first), write(first), "end"}}
	}
	for i := range n {
		v := first + (last-first)*float64(i)/float64(n-1)
		label, anchor := write(v), "middle"
		switch i {
		case 0:
			anchor = "start"
		case n - 1:
			anchor = "end"
		}
		if len(ticks) > 0 && label == ticks[len(ticks)-1].Label {
			continue
		}
		ticks = append(ticks, tick{x(v), label, anchor})
	}
	return ticks
}

// timeFormat returns what writes times of an axis that is so many seconds long.
func timeFormat(span float64) func(float64) string {
	format := "2 Jan 2006"
	switch days := span / (24 * 60 * 60); {
	case days == 0:
	case days < 2:
		format = "2 Jan 15:04"
	case days < 180:
		format = "2 Jan"
	}
	return func(v float64) string { return time.Unix(int64(v), 0).UTC().Format(format) }
}
