package chart

import (
	"html/template"
	"math"
)

// Bars is a chart of things beside each other, each with a bar of parts.
type Bars struct {
	// Title says what is to be seen, for those who do not see it.
	Title string
	Parts []string // what the values of a bar are, MaxSeries at most
	Bars  []Bar
	// Format writes a value with its unit.
	Format func(float64) string
}

// A Bar is one thing. Its parts stand one after another.
type Bar struct {
	Label  string
	Values []float64 // one for each part, not negative
	// Low and High are between which the sum is likely to be; both are 0 if it is known.
	Low, High float64
}

// A barsDrawing is a chart in the units of its own coordinates.
type barsDrawing struct {
	ID            string
	Width, Height float64
	Legend        []bar
	Bars          []bar
	X             []tick
	Top, Bottom   float64 // of the lines of the grid
}

type bar struct {
	Label, Value string
	LabelX       float64
	Anchor       string
	LabelY       float64
	ValueX       float64
	Y, Middle    float64
	Class        int
	Parts        []part
	Low, High    float64
}

type part struct {
	X, Width float64
	Class    int
}

const (
	barHeight = 14
	charWidth = 8 // of a wide letter of a label
)

// partClass are the colours of parts: most charts have one or two, which stand out.
var partClass = [MaxSeries]int{2, 1, 0, 3, 4, 5}

// HTML returns the chart, nothing if there are no bars.
func (c *Bars) HTML() template.HTML {
	if len(c.Bars) == 0 {
		return ""
	}
	return render("bars", c.Title, []barsDrawing{
		c.draw(barsDrawing{ID: "wide", Width: 720}, 190, 620, 30, 4),
		c.draw(barsDrawing{ID: "narrow", Width: 350}, 2, 270, 44, 2),
	})
}

// draw fills in d: bars lie between left and right, one every step, with at most so many
// marks. Where there is no room beside them, labels stand above.
func (c *Bars) draw(d barsDrawing, left, right, step float64, marks int) barsDrawing {
	most := 0.0
	for _, b := range c.Bars {
		most = max(most, b.High, sum(b.Values))
	}
	unit := niceStep(most / float64(marks))
	top := unit * max(1, math.Ceil(most/unit))
	x := func(v float64) float64 { return round(left + (right-left)*v/top) }

	y := 4.0
	if len(c.Parts) > 1 {
		y = d.legend(c.Parts, left)
	}
	d.Top = y
	above := left < 100
	room := left - 8
	if above {
		room = d.Width
	}
	for _, b := range c.Bars {
		drawn := bar{Label: shorten(b.Label, int(room/charWidth)), Value: c.Format(sum(b.Values)), Y: y + (step-barHeight)/2}
		drawn.LabelX, drawn.LabelY, drawn.Anchor = left-8, drawn.Y+barHeight-3, "end"
		if above {
			drawn.LabelX, drawn.LabelY, drawn.Anchor, drawn.Y = left, y+15, "start", y+21
		}
		drawn.Middle = drawn.Y + barHeight/2
		at := 0.0
		for i, v := range b.Values {
			drawn.Parts = append(drawn.Parts, part{x(at), round(x(at+v) - x(at)), partClass[i%MaxSeries]})
			at += v
		}
		drawn.ValueX = x(max(at, b.High)) + 6
		if b.High > 0 {
			drawn.Low, drawn.High = x(b.Low), x(b.High)
		}
		d.Bars = append(d.Bars, drawn)
		y += step
	}
	d.Bottom = y + 2
	d.Height = y + 20
	for i := range int(math.Round(top/unit)) + 1 {
		v, anchor := float64(i)*unit, "middle"
		if i == 0 && above {
			anchor = "start"
		}
		d.X = append(d.X, tick{x(v), c.Format(v), anchor})
	}
	return d
}

// legend writes what the parts are, in as many rows as that takes, and returns where the
// bars begin.
func (d *barsDrawing) legend(parts []string, left float64) float64 {
	x, y := left, 14.0
	for i, name := range parts {
		width := 20 + charWidth*float64(len([]rune(name))) + 16
		if x > left && x+width > d.Width {
			x, y = left, y+20
		}
		d.Legend = append(d.Legend, bar{Label: name, LabelX: x, LabelY: y, Class: partClass[i%MaxSeries]})
		x += width
	}
	return y + 14
}

func sum(values []float64) (n float64) {
	for _, v := range values {
		n += v
	}
	return n
}

// shorten cuts text to at most n characters.
func shorten(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return text
}
