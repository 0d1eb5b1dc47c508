package site_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/dedupd/dedupd/narinfo"
)

// A browser is a tab of Chromium, and what went wrong in it.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string
}

// startBrowser starts Chromium with a user of its own.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("chromium is missing: run scripts/with-deps")
	} else if err != nil {
		t.Skip("chromium is missing: run scripts/with-deps")
	}
	dir := t.TempDir()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(dir), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancelAllocator := chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancelAllocator)
	ctx, cancelTab := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		chromedp.Cancel(ctx) // waits for the browser to end, which writes to dir until then
		cancelTab()
	})
	b := &browser{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.notice); err != nil {
		t.Fatal(err)
	}
	return b
}

// notice takes note of errors that a developer would see: of scripts, of the policy, of
// anything that was not loaded.
func (b *browser) notice(event any) {
	problem := ""
	switch e := event.(type) {
	case *log.EventEntryAdded:
		problem = fmt.Sprintf("%s: %s", e.Entry.Level, e.Entry.Text)
	case *runtime.EventExceptionThrown:
		problem = e.ExceptionDetails.Text
	case *runtime.EventConsoleAPICalled:
		problem = fmt.Sprintf("console %s", e.Type)
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, problem)
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// set changes what the browser pretends.
func set[P any](b *browser, command cdp.Command[P, cdp.Empty], params P) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, command, params); err != nil {
		b.t.Fatal(err)
	}
}

// eval returns the value of an expression. It works on pages that may have no scripts.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// checkPage checks what holds for every page, and writes a picture of it below
// DEDUPD_SCREENSHOTS, if that is set.
func (b *browser) checkPage(what string) {
	b.t.Helper()
	if over := eval[int](b, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
		b.t.Errorf("%s: the page is %d pixels too wide", what, over)
	}
	for _, selector := range []string{"html[lang]", "header", "main h1", "footer", "form[role=search] input[aria-label]"} {
		if n := eval[int](b, "document.querySelectorAll('"+selector+"').length"); n != 1 {
			b.t.Errorf("%s: there are %d of %q, want 1", what, n, selector)
		}
	}
	b.mu.Lock()
	if len(b.problems) > 0 {
		b.t.Errorf("%s: the console says %q", what, b.problems)
	}
	b.problems = nil
	b.mu.Unlock()
	if dir := os.Getenv("DEDUPD_SCREENSHOTS"); dir != "" {
		png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, strings.NewReplacer(" ", "-", "/", "-").Replace(what)+".png"), png, 0o644)
		}
		if err != nil {
			b.t.Error(err)
		}
	}
}

// TestBrowser looks at the pages as people do, in windows of two widths, by day and at
// night, with scripts disabled.
func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	b := startBrowser(t)
	empty, full := start(t, nil), start(t, nil)
	empty.count()
	var refs []narinfo.StorePath
	for i := range 30 {
		refs = append(refs, full.upload(fmt.Sprintf("lib%c-%d.%d", 'a'+i%7, i/7, i%7), 100_000+i*i*1000))
	}
	long := full.upload(strings.Repeat("averylongname", 16), 1_000_000, refs...)
	full.count()

	set(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	for _, width := range []int64{1280, 390} {
		for _, mode := range []string{"light", "dark"} {
			b.do(chromedp.EmulateViewport(width, 900))
			set(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: mode}},
			})
			for name, url := range map[string]string{
				"empty": empty.url + "/", "home": full.url + "/", "search": full.url + "/search?q=lib", "no words": full.url + "/search",
				"nothing": full.url + "/search?q=" + strings.Repeat("nothing", 40), "path": full.url + "/path/" + long.HashPart(),
			} {
				b.do(chromedp.Navigate(url))
				b.checkPage(fmt.Sprintf("%s %d %s", name, width, mode))
			}
		}
		t.Run(fmt.Sprint(width), func(t *testing.T) { b.use(t, full, long) })
	}
}

// use does what somebody does who comes to use the cache, and looks for a path in it.
func (b *browser) use(t *testing.T, c *cache, path narinfo.StorePath) {
	b.do(chromedp.Navigate(c.url + "/"))
	lines := eval[string](b, "document.querySelector('pre').innerText")
	if want := "extra-substituters = " + c.url + "\nextra-trusted-public-keys = " + publicKey; lines != want {
		t.Errorf("got the lines %q, want %q", lines, want)
	}
	if n := eval[int](b, "[...document.querySelectorAll('svg.chart')].filter(e => e.getBoundingClientRect().width > 0).length"); n != 1 {
		t.Errorf("%d charts are to be seen, want 1", n)
	}
	if size := eval[float64](b, `Math.min(...[...document.querySelectorAll('svg.chart text')].map(e => e.getBoundingClientRect().height).filter(h => h > 0))`); size < 11 {
		t.Errorf("the smallest text of the chart is %.1f pixels high", size)
	}
	for range 3 { // the link that skips the header, the name, the search
		b.do(chromedp.KeyEvent(kb.Tab))
		focus := eval[string](b, "document.activeElement.tagName + ' ' + getComputedStyle(document.activeElement).outlineStyle + ' ' + getComputedStyle(document.activeElement).outlineWidth")
		if !strings.HasSuffix(focus, " solid 3px") {
			t.Errorf("where the focus is cannot be seen: %s", focus)
		}
	}
	if focused := eval[string](b, "document.activeElement.name"); focused != "q" {
		t.Errorf("the third stop of the Tab key is %q, want the search", focused)
	}
	if _, err := chromedp.RunResponse(b.ctx, chromedp.KeyEvent("averylong"+kb.Enter)); err != nil {
		t.Fatal(err)
	}
	if got, want := eval[string](b, "document.querySelector('main .list a').pathname"), "/path/"+path.HashPart(); got != want {
		t.Errorf("the search found %q, want %q", got, want)
	}
	if _, err := chromedp.RunResponse(b.ctx, chromedp.Click(chromedp.CSS("main .list a"))); err != nil {
		t.Fatal(err)
	}
	if got := eval[string](b, "document.querySelector('main pre').innerText"); got != path.Path(storeDir) {
		t.Errorf("the page is of %q, want %q", got, path.Path(storeDir))
	}
	if _, err := chromedp.RunResponse(b.ctx, chromedp.SendKeys(chromedp.CSS("input"), path.Path(storeDir)+"/bin/x"+kb.Enter)); err != nil {
		t.Fatal(err)
	}
	if got, want := eval[string](b, "location.pathname"), "/path/"+path.HashPart(); got != want {
		t.Errorf("a whole path led to %q, want %q", got, want)
	}
	b.checkPage("after the search")
}
