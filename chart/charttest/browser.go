package charttest

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

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// A Browser is a tab of Chromium, in which no page may have scripts. Its methods end the test
// when the browser fails.
type Browser struct {
	Context context.Context // for chromedp
	t       *testing.T

	mu       sync.Mutex
	problems []string
}

// Start starts Chromium with a user of its own, which ends with the test. The test is skipped if
// it is not installed; with CI=true it fails.
func Start(t *testing.T) *Browser {
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
	b := &Browser{Context: ctx, t: t}
	if err := chromedp.Listen(ctx, b.notice); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	return b
}

// notice takes note of errors that a developer would see: of scripts, of the policy, of
// anything that was not loaded.
func (b *Browser) notice(event any) {
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

// Do does what people do.
func (b *Browser) Do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.Context, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// EachWindow calls look with windows of the width of a desktop and of a phone, by day and at
// night: mode is light or dark.
func (b *Browser) EachWindow(look func(width int64, mode string)) {
	b.t.Helper()
	for _, width := range []int64{1280, 390} {
		for _, mode := range []string{"light", "dark"} {
			_, err := chromedp.Call(b.Context, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: mode}},
			})
			if err != nil {
				b.t.Fatal(err)
			}
			b.Do(chromedp.EmulateViewport(width, 900))
			look(width, mode)
		}
	}
}

// Eval returns the value of an expression.
func Eval[T any](b *Browser, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.Context, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// Check checks that the page is not too wide, has one element for each selector, and that there
// was no problem with it. A picture of it is written below DEDUPD_SCREENSHOTS, if that is set.
func (b *Browser) Check(what string, selectors ...string) {
	b.t.Helper()
	if over := Eval[int](b, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
		b.t.Errorf("%s: the page is %d pixels too wide", what, over)
	}
	for _, selector := range selectors {
		if n := Eval[int](b, "document.querySelectorAll('"+selector+"').length"); n != 1 {
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
		png, err := chromedp.Run(b.Context, chromedp.FullScreenshot(100))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, strings.NewReplacer(" ", "-", "/", "-").Replace(what)+".png"), png, 0o644)
		}
		if err != nil {
			b.t.Error(err)
		}
	}
}
