package gateway_test

import (
	"os/exec"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestBrowserRunsNoScript has Chromium show a page that somebody has uploaded, with all kinds
// of scripts in it, and the page of its directory. The style sheet counts, scripts do not.
func TestBrowserRunsNoScript(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	if _, err := exec.LookPath("chromium"); err != nil {
		missing(t, "chromium")
	}
	const script = `document.title = "ran"`
	f := treeNAR(t, [2]string{"/"},
		[2]string{`"><img src=x onerror='` + script + `'>`, ""},
		[2]string{"index.html", `<!DOCTYPE html><title>before</title><link rel="stylesheet" href="style.css">
<script>` + script + `</script><script src="x.js"></script><body onload='` + script + `'><img src="x.svg"><img src=x onerror='` + script + `'>
<iframe srcdoc="<script>top.` + script + `</script>"></iframe><iframe src="x.js"></iframe><p>text`},
		[2]string{"style.css", "p { color: rgb(1, 2, 3) }"},
		[2]string{"x.js", script},
		[2]string{"x.svg", `<svg xmlns="http://www.w3.org/2000/svg" onload='` + script + `'><script>` + script + `</script><p xmlns="http://www.w3.org/1999/xhtml">text</p></svg>`},
	)
	s := start(t)
	s.upload(f)
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	dir := s.url + "/serve/" + f.path.String() + "/"
	for _, tt := range []struct{ url, title, color string }{
		{dir + "index.html", "before", "rgb(1, 2, 3)"},
		{dir + "x.svg", "", ""},
		{dir, f.path.String() + "/", ""},
	} {
		if err := chromedp.Do(ctx, chromedp.Navigate(tt.url)); err != nil {
			t.Fatalf("%s: %v", tt.url, err)
		}
		if title, err := chromedp.Run(ctx, chromedp.Title()); err != nil || title != tt.title {
			t.Errorf("%s: got title %q (%v), want %q", tt.url, title, err, tt.title)
		}
		if tt.color == "" {
			continue
		}
		color, err := chromedp.Run(ctx, chromedp.Evaluate[string](`getComputedStyle(document.querySelector("p")).color`))
		if err != nil || color != tt.color {
			t.Errorf("%s: got color %q (%v), want %q", tt.url, color, err, tt.color)
		}
	}
}
