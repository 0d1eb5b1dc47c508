package site_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/dedupd/dedupd/chart/charttest"
	"github.com/dedupd/dedupd/narinfo"
)

// TestBrowser looks at the pages as people do, in windows of two widths, by day and at
// night, with scripts disabled.
func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	b := charttest.Start(t)
	empty, full := start(t, nil), start(t, nil)
	empty.count()
	var refs []narinfo.StorePath
	for i := range 30 {
		refs = append(refs, full.upload(fmt.Sprintf("lib%c-%d.%d", 'a'+i%7, i/7, i%7), 100_000+i*i*1000))
	}
	long := full.upload(strings.Repeat("averylongname", 16), 1_000_000, refs...)
	full.count()

	b.EachWindow(func(width int64, mode string) {
		for name, url := range map[string]string{
			"empty": empty.url + "/", "home": full.url + "/", "search": full.url + "/search?q=lib", "no words": full.url + "/search",
			"nothing": full.url + "/search?q=" + strings.Repeat("nothing", 40), "path": full.url + "/path/" + long.HashPart(),
		} {
			b.Do(chromedp.Navigate(url))
			checkPage(b, fmt.Sprintf("%s %d %s", name, width, mode))
		}
		if mode == "dark" {
			t.Run(fmt.Sprint(width), func(t *testing.T) { use(t, b, full, long) })
		}
	})
}

// checkPage checks what holds for every page.
func checkPage(b *charttest.Browser, what string) {
	b.Check(what, "html[lang]", "header", "main h1", "footer", "form[role=search] input[aria-label]")
}

// use does what somebody does who comes to use the cache, and looks for a path in it.
func use(t *testing.T, b *charttest.Browser, c *cache, path narinfo.StorePath) {
	b.Do(chromedp.Navigate(c.url + "/"))
	lines := charttest.Eval[string](b, "document.querySelector('pre').innerText")
	if want := "extra-substituters = " + c.url + "\nextra-trusted-public-keys = " + publicKey; lines != want {
		t.Errorf("got the lines %q, want %q", lines, want)
	}
	if n := charttest.Eval[int](b, "[...document.querySelectorAll('svg.chart')].filter(e => e.getBoundingClientRect().width > 0).length"); n != 1 {
		t.Errorf("%d charts are to be seen, want 1", n)
	}
	if size := charttest.Eval[float64](b, `Math.min(...[...document.querySelectorAll('svg.chart text')].map(e => e.getBoundingClientRect().height).filter(h => h > 0))`); size < 11 {
		t.Errorf("the smallest text of the chart is %.1f pixels high", size)
	}
	for range 3 { // the link that skips the header, the name, the search
		b.Do(chromedp.KeyEvent(kb.Tab))
		focus := charttest.Eval[string](b, "document.activeElement.tagName + ' ' + getComputedStyle(document.activeElement).outlineStyle + ' ' + getComputedStyle(document.activeElement).outlineWidth")
		if !strings.HasSuffix(focus, " solid 3px") {
			t.Errorf("where the focus is cannot be seen: %s", focus)
		}
	}
	if focused := charttest.Eval[string](b, "document.activeElement.name"); focused != "q" {
		t.Errorf("the third stop of the Tab key is %q, want the search", focused)
	}
	if _, err := chromedp.RunResponse(b.Context, chromedp.KeyEvent("averylong"+kb.Enter)); err != nil {
		t.Fatal(err)
	}
	if got, want := charttest.Eval[string](b, "document.querySelector('main .list a').pathname"), "/path/"+path.HashPart(); got != want {
		t.Errorf("the search found %q, want %q", got, want)
	}
	if _, err := chromedp.RunResponse(b.Context, chromedp.Click(chromedp.CSS("main .list a"))); err != nil {
		t.Fatal(err)
	}
	if got := charttest.Eval[string](b, "document.querySelector('main pre').innerText"); got != path.Path(storeDir) {
		t.Errorf("the page is of %q, want %q", got, path.Path(storeDir))
	}
	if _, err := chromedp.RunResponse(b.Context, chromedp.SendKeys(chromedp.CSS("input"), path.Path(storeDir)+"/bin/x"+kb.Enter)); err != nil {
		t.Fatal(err)
	}
	if got, want := charttest.Eval[string](b, "location.pathname"), "/path/"+path.HashPart(); got != want {
		t.Errorf("a whole path led to %q, want %q", got, want)
	}
	checkPage(b, "after the search")
}
