package site

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"
)

var (
	//go:embed pages.html
	pagesHTML string
	//go:embed style.css
	styleCSS string
)

var templates = template.Must(template.New("pages").Funcs(template.FuncMap{
	"style":   func() template.CSS { return template.CSS(styleCSS) },
	"count":   formatCount,
	"size":    formatSize,
	"usize":   func(n uint64) string { return formatSize(int64(min(n, 1<<62))) },
	"ucount":  func(n uint64) string { return formatCount(int64(min(n, 1<<62))) },
	"number":  func(n int) string { return formatCount(int64(n)) },
	"age":     formatAge,
	"times":   func(a, b int64) string { return formatRatio(a, b) },
	"percent": func(a, b int64) string { return formatPercent(a, b) },
	"date":    func(t time.Time) string { return t.Format("2006-01-02 15:04") },
}).Parse(pagesHTML))

// securityPolicy allows a page its style, its icon and its forms, and nothing else: no
// script, whatever might get into it.
var securityPolicy = func() string {
	sum := sha256.Sum256([]byte(styleCSS))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; img-src data:; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
}()

// formatCount writes a number with commas between groups of three digits.
func formatCount(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// formatSize writes a number of bytes with three digits and a decimal unit.
func formatSize(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d\u00a0B", n)
	}
	f := float64(n)
	for _, unit := range []string{"kB", "MB", "GB", "TB", "PB", "EB"} {
		f /= 1000
		if f < 999.5 || unit == "EB" {
			return threeDigits(f) + "\u00a0" + unit
		}
	}
	panic("unreachable")
}

// threeDigits writes 1.23, 12.3, 123, and nothing after the point that is only zeros.
func threeDigits(f float64) string {
	decimals := 0
	switch {
	case f < 9.995:
		decimals = 2
	case f < 99.95:
		decimals = 1
	}
	s := strconv.FormatFloat(f, 'f', decimals, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// formatRatio writes how many times as large as b a is.
func formatRatio(a, b int64) string {
	if b == 0 {
		return "–"
	}
	return threeDigits(float64(a)/float64(b)) + "\u00a0×"
}

// formatPercent writes which part of b a is.
func formatPercent(a, b int64) string {
	if b == 0 {
		return "–"
	}
	return threeDigits(100*float64(a)/float64(b)) + "\u00a0%"
}

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
