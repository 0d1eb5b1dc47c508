package site

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"time"

	"github.com/dedupd/dedupd/chart"
)

var (
	//go:embed pages.html
	pagesHTML string
	//go:embed style.css
	styleCSS string
)

var templates = template.Must(template.New("pages").Funcs(template.FuncMap{
	"style":   func() template.CSS { return template.CSS(chart.Style + styleCSS) },
	"count":   chart.Count,
	"size":    chart.Size,
	"usize":   func(n uint64) string { return chart.Size(int64(min(n, 1<<62))) },
	"ucount":  func(n uint64) string { return chart.Count(int64(min(n, 1<<62))) },
	"number":  func(n int) string { return chart.Count(int64(n)) },
	"age":     formatAge,
	"times":   chart.Times,
	"percent": chart.Percent,
	"date":    func(t time.Time) string { return t.Format("2006-01-02 15:04") },
}).Parse(pagesHTML))

// securityPolicy allows a page its style, its icon and its forms, and nothing else: no
// script, whatever might get into it.
var securityPolicy = func() string {
	sum := sha256.Sum256([]byte(chart.Style + styleCSS))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; img-src data:; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
}()

// formatAge writes how long ago something was.
func formatAge(d time.Duration) string {
	switch {
	case d < 2*time.Second:
		return "just now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d seconds ago", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes ago", d/time.Minute)
	}
	return fmt.Sprintf("%d hours ago", d/time.Hour)
}
