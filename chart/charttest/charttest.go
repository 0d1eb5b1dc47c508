// Package charttest looks at pages as people do, at charts above all.
package charttest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

// Look opens a page that needs nothing else in Chromium, in all windows. It is to have charts,
// and none of their text may be too small, or out of its drawing.
func Look(t *testing.T, name string, page []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(file, page, 0o600); err != nil {
		t.Fatal(err)
	}
	b := Start(t)
	b.EachWindow(func(width int64, mode string) {
		b.Do(chromedp.Navigate("file://" + file))
		what := fmt.Sprintf("%s-%d-%s", name, width, mode)
		b.Check(what, "html[lang]", "main h1", "meta[name=viewport]")
		b.checkCharts(what)
	})
}

func (b *Browser) checkCharts(what string) {
	b.t.Helper()
	const shown = `[...document.querySelectorAll('svg.chart')].filter(e => e.getBoundingClientRect().width > 0)`
	if Eval[int](b, shown+".length") == 0 {
		b.t.Errorf("%s: no chart is to be seen", what)
	}
	if n := Eval[int](b, shown+".filter(e => !e.getAttribute('aria-label')).length"); n > 0 {
		b.t.Errorf("%s: %d charts do not say what they show", what, n)
	}
	if size := Eval[float64](b, `Math.min(...`+shown+`.flatMap(e => [...e.querySelectorAll('text')]).map(e => e.getBoundingClientRect().height))`); size < 11 {
		b.t.Errorf("%s: the smallest text of the charts is %.1f pixels high", what, size)
	}
	out := Eval[string](b, shown+`.flatMap(svg => { const r = svg.getBoundingClientRect(); return [...svg.querySelectorAll('text')].filter(e => { const b = e.getBoundingClientRect(); return b.left < r.left - 1 || b.right > r.right + 1 || b.bottom > r.bottom + 3 || b.top < r.top - 3 }).map(e => e.textContent) }).join(', ')`)
	if out != "" {
		b.t.Errorf("%s: text is out of its chart: %s", what, out)
	}
}
