package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	if (&Lines{}).HTML() != "" {
		t.Error("there is a chart of nothing")
	}
	start := float64(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).Unix())
	for _, n := range []int{1, 2, 100} {
		c := &Lines{Title: "a \"title\" <&>", Series: []Series{{Name: "NARs"}, {Name: "uploads"}, {Name: "stored"}}, Y: Bytes}
		for i := range n {
			x, v := start+3600*float64(i), float64(i+100-n)
			for j, y := range []float64{1e9 * v, 2e8 * v, 2e8*v + 1} {
				c.Series[j].Points = append(c.Series[j].Points, Point{x, y})
			}
		}
		for _, d := range c.drawings() {
			checkLines(t, n, d)
		}
		checkXML(t, string(c.HTML()))
	}
	zero := &Lines{Series: []Series{{Name: "nothing", Points: []Point{{start, 0}}}}, Y: Bytes}
	for _, d := range zero.drawings() {
		checkLines(t, 1, d)
	}
}

// checkLines checks that all marks are in the drawing, and no label is on another.
func checkLines(t *testing.T, n int, d linesDrawing) {
	t.Helper()
	for _, l := range d.Lines {
		if l.X > d.Right || l.Y < d.Top || l.Y > d.Bottom || l.LabelY < 0 || l.LabelY > d.Bottom {
			t.Errorf("%d samples, %s: line %s ends at %v,%v, its label at %v", n, d.ID, l.Name, l.X, l.Y, l.LabelY)
		}
		if got := len(strings.Fields(l.Points)); got != n {
			t.Errorf("%s: line %s has %d points, want %d", d.ID, l.Name, got, n)
		}
		for _, other := range d.Lines {
			if gap := l.LabelY - other.LabelY; l.Name != other.Name && gap > -labelStep+1 && gap < labelStep-1 {
				t.Errorf("%d samples, %s: labels of %s and %s are %.1f apart", n, d.ID, l.Name, other.Name, gap)
			}
		}
	}
	if len(d.X) == 0 || len(d.Y) < 2 || len(d.Y) > 6 {
		t.Errorf("%d samples, %s: %d marks of time and %d of size", n, d.ID, len(d.X), len(d.Y))
	}
}

func TestBars(t *testing.T) {
	if (&Bars{}).HTML() != "" {
		t.Error("there is a chart of nothing")
	}
	for _, scale := range []float64{0, 1e-3, 1, 1e12} {
		c := &Bars{Title: "a \"title\" <&>", Parts: []string{"its own", "shared with others"}, Format: Bytes, Bars: []Bar{
			{Label: "first", Values: []float64{3 * scale, scale}},
			{Label: strings.Repeat("long", 60), Values: []float64{scale, 0}, Low: scale / 2, High: 5 * scale},
		}}
		for _, d := range []barsDrawing{c.draw(barsDrawing{Width: 720}, 190, 620, 30, 4), c.draw(barsDrawing{Width: 350}, 2, 270, 44, 2)} {
			for _, b := range d.Bars {
				end := b.Parts[0].X
				for _, p := range b.Parts {
					if p.X != end && p.X-end > 0.11 || p.Width < 0 || p.X+p.Width > d.Width {
						t.Errorf("%v: a part is at %v and %v wide, the one before ends at %v", scale, p.X, p.Width, end)
					}
					end = p.X + p.Width
				}
				if b.High > d.Width || b.Low > b.High || b.Y < d.Top || b.Y+barHeight > d.Bottom || d.Bottom > d.Height {
					t.Errorf("%v: the bar %+v is not in its drawing", scale, b)
				}
			}
			if len(d.X) < 2 || len(d.X) > 6 {
				t.Errorf("%v: there are %d marks", scale, len(d.X))
			}
		}
		checkXML(t, string(c.HTML()))
	}
}

// checkXML checks that a chart is well-formed, and shows nothing that is not a number.
func checkXML(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
		t.Errorf("the chart has what is no number: %s", text)
	}
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in %s", err, text)
		}
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1 kB", 1234: "1.23 kB", 12_345: "12.3 kB", 999_499: "999 kB", 999_500: "1 MB",
		96_200_000: "96.2 MB", 527_000_000: "527 MB", 1_310_000_000: "1.31 GB", 1 << 62: "4.61 EB",
	} {
		if got := strings.ReplaceAll(Size(n), "\u00a0", " "); got != want {
			t.Errorf("size of %d: got %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000"} {
		if got := Count(n); got != want {
			t.Errorf("count %d: got %q, want %q", n, got, want)
		}
	}
	for f, want := range map[float64]string{0: "$0", 0.00123: "$0.0012", 1.5: "$1.50", 99.99: "$99.99", 1234.5: "$1,235"} {
		if got := Dollars(f); got != want {
			t.Errorf("%v dollars: got %q, want %q", f, got, want)
		}
	}
	if got := Times(1, 0) + Percent(1, 0); got != "––" {
		t.Errorf("divided by nothing: got %q", got)
	}
}
