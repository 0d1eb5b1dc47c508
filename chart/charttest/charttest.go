// Package charttest looks at pages with charts as people do.
package charttest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Look opens a page that needs nothing else in Chromium, in windows of the width of a
// desktop and of a phone, by day and at night, without scripts. It is to have charts, and
// none of their text may be too small, or out of its drawing. A picture of each is written
// below DEDUPD_SCREENSHOTS, if that is set.
func Look(t *testing.T, name string, page []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(file, page, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, problems := start(t)
	do := func(steps ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, steps...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	for _, width := range []int64{1280, 390} {
		for _, mode := range []string{"light", "dark"} {
			_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: mode}},
			})
			if err != nil {
				t.Fatal(err)
			}
			do(chromedp.EmulateViewport(width, 900), chromedp.Navigate("file://"+file))
			what := fmt.Sprintf("%s-%d-%s", name, width, mode)
			check(t, ctx, what)
			for _, problem := range problems() {
				t.Errorf("%s: the console says %s", what, problem)
			}
			picture(t, ctx, what)
		}
	}
}

func check(t *testing.T, ctx context.Context, what string) {
	t.Helper()
	if over := eval[int](t, ctx, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
		t.Errorf("%s: the page is %d pixels too wide", what, over)
	}
	for _, selector := range []string{"html[lang]", "main h1", "meta[name=viewport]"} {
		if n := eval[int](t, ctx, "document.querySelectorAll('"+selector+"').length"); n != 1 {
			t.Errorf("%s: there are %d of %q, want 1", what, n, selector)
		}
	}
	const shown = `[...document.querySelectorAll('svg.chart')].filter(e => e.getBoundingClientRect().width > 0)`
	if eval[int](t, ctx, shown+".length") == 0 {
		t.Errorf("%s: no chart is to be seen", what)
	}
	if n := eval[int](t, ctx, shown+".filter(e => !e.getAttribute('aria-label')).length"); n > 0 {
		t.Errorf("%s: %d charts do not say what they show", what, n)
	}
	if size := eval[float64](t, ctx, `Math.min(...`+shown+`.flatMap(e => [...e.querySelectorAll('text')]).map(e => e.getBoundingClientRect().height))`); size < 11 {
		t.Errorf("%s: the smallest text of the charts is %.1f pixels high", what, size)
	}
	out := eval[string](t, ctx, shown+`.flatMap(svg => { const r = svg.getBoundingClientRect(); return [...svg.querySelectorAll('text')].filter(e => { const b = e.getBoundingClientRect(); return b.left < r.left - 1 || b.right > r.right + 1 || b.bottom > r.bottom + 3 || b.top < r.top - 3 }).map(e => e.textContent) }).join(', ')`)
	if out != "" {
		t.Errorf("%s: text is out of its chart: %s", what, out)
	}
}

// eval returns the value of an expression. It works on pages that may have no scripts.
func eval[T any](t *testing.T, ctx context.Context, expression string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

func picture(t *testing.T, ctx context.Context, what string) {
	t.Helper()
	dir := os.Getenv("DEDUPD_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, what+".png"), png, 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// start starts Chromium with a user of its own; problems returns what its console has said
// since the last time.
func start(t *testing.T) (ctx context.Context, problems func() []string) {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("chromium is missing: run scripts/with-deps")
	} else if err != nil {
		t.Skip("chromium is missing: run scripts/with-deps")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancelAllocator := chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancelAllocator)
	ctx, cancelTab := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		chromedp.Cancel(ctx) // waits for the browser to end, which writes to its directory until then
		cancelTab()
	})
	var mu sync.Mutex
	var said []string
	err = chromedp.Listen(ctx, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *log.EventEntryAdded:
			said = append(said, fmt.Sprintf("%s: %s", e.Entry.Level, e.Entry.Text))
		case *runtime.EventExceptionThrown:
			said = append(said, e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			said = append(said, fmt.Sprintf("console %s", e.Type))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return ctx, func() []string {
		mu.Lock()
		defer mu.Unlock()
		all := said
		said = nil
		return all
	}
}
