package site

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// A chart shows how large the cache was. It is drawn twice, for wide and for narrow
// windows, since text must not shrink with it.
type chart struct {
	Drawings []drawing
	Rows     []sample // some of the samples, for a table
	Summary  string   // what is to be seen
}

// A drawing is a chart in the units of its own coordinates.
type drawing struct {
	ID                       string
	Width, Height            int
	Left, Right, Top, Bottom int // of the area in which there are lines
	Lines                    []line
	Y                        []tick
	X                        []tick
}

// A line is one of the quantities over time.
type line struct {
	Name   string
	Class  string
	Points string  // of a polyline
	X, Y   float64 // of the last point
	LabelY float64
}

// A tick is a mark on an axis.
type tick struct {
	At     float64
	Label  string
	Anchor string
}

// series are the quantities, in the order of their colours.
var series = []struct {
	name, class string
	of          func(sample) int64
}{
	{"NARs", "nars", func(s sample) int64 { return s.NARs }},
	{"uploads", "uploads", func(s sample) int64 { return s.Uploaded }},
	{"stored", "stored", func(s sample) int64 { return s.Stored }},
}

const (
	maxRows   = 12
	labelStep = 15 // between two labels of lines, at least
)

// newChart returns nil for no samples.
func newChart(samples []sample) *chart {
	if len(samples) == 0 {
		return nil
	}
	c := &chart{Drawings: []drawing{
		draw(samples, drawing{ID: "wide", Width: 720, Height: 270, Left: 62, Right: 650, Top: 12, Bottom: 240}, 5),
		draw(samples, drawing{ID: "narrow", Width: 350, Height: 240, Left: 58, Right: 288, Top: 12, Bottom: 212}, 2),
	}}
	first, last := samples[0], samples[len(samples)-1]
	c.Summary = fmt.Sprintf("On %s the cache held %s of NARs, which were uploaded as files of %s, and stored %s.",
		last.Time.Format("2 January 2006"), formatSize(last.NARs), formatSize(last.Uploaded), formatSize(last.Stored))
	if len(samples) > 1 {
		c.Summary = fmt.Sprintf("On %s the cache held %s of NARs and stored %s. ",
			first.Time.Format("2 January 2006"), formatSize(first.NARs), formatSize(first.Stored)) + c.Summary
	}
	step := max(1, (len(samples)+maxRows-1)/maxRows)
	for i := len(samples) - 1; i >= 0; i -= step {
		c.Rows = append(c.Rows, samples[i])
	}
	return c
}

// draw fills in d, with at most xTicks marks of time.
func draw(samples []sample, d drawing, xTicks int) drawing {
	first, last := samples[0].Time, samples[len(samples)-1].Time
	span := last.Sub(first)
	x := func(t time.Time) float64 {
		if span == 0 {
			return float64(d.Right)
		}
		return float64(d.Left) + float64(d.Right-d.Left)*float64(t.Sub(first))/float64(span)
	}
	var most int64
	for _, s := range samples {
		for _, q := range series {
			most = max(most, q.of(s))
		}
	}
	step := niceStep(float64(most) / 4)
	top := step * max(1, math.Ceil(float64(most)/step))
	y := func(v float64) float64 { return float64(d.Bottom) - float64(d.Bottom-d.Top)*v/top }
	for v := 0.0; v <= top; v += step {
		d.Y = append(d.Y, tick{At: y(v), Label: formatSize(int64(v))})
	}
	for _, q := range series {
		l := line{Name: q.name, Class: q.class}
		var points strings.Builder
		for _, s := range samples {
			l.X, l.Y = x(s.Time), y(float64(q.of(s)))
			fmt.Fprintf(&points, "%.1f,%.1f ", l.X, l.Y)
		}
		l.Points, l.LabelY = strings.TrimSpace(points.String()), l.Y+4
		d.Lines = append(d.Lines, l)
	}
	spread(d.Lines, float64(d.Bottom))
	d.X = timeTicks(first, span, x, xTicks)
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

// niceStep returns the least of 1, 2 and 5 times a power of ten that is not below least.
func niceStep(least float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(max(least, 1))))
	for _, f := range []float64{1, 2, 5} {
		if f*power >= least {
			return f * power
		}
	}
	return 10 * power
}

func timeTicks(first time.Time, span time.Duration, x func(time.Time) float64, n int) (ticks []tick) {
	format := "2 Jan 2006"
	switch {
	case span < 48*time.Hour:
		format = "2 Jan 15:04"
	case span < 180*24*time.Hour:
		format = "2 Jan"
	}
	if span == 0 {
		return []tick{{x(first), first.Format(format), "end"}}
	}
	for i := range n {
		t := first.Add(span * time.Duration(i) / time.Duration(n-1))
		label, anchor := t.Format(format), "middle"
		switch i {
		case 0:
			anchor = "start"
		case n - 1:
			anchor = "end"
		}
		if len(ticks) > 0 && label == ticks[len(ticks)-1].Label {
			continue
		}
		ticks = append(ticks, tick{x(t), label, anchor})
	}
	return ticks
}
