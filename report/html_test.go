package report

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chart/charttest"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/prices"
	"github.com/dedupd/dedupd/site"
)

// fullReport has all that a report may have.
func fullReport(t *testing.T) *Report {
	t.Helper()
	r := &Report{
		Time: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC),
		Store: &chunkstore.Stats{
			StorePaths: 434, PathBytes: 760e6, NARs: 430, Chunks: 4000, ChunkBytes: 190e6, FrameBytes: 88e6, StoredBytes: 92e6, Objects: 12,
			UploadedFiles: 434, UploadedBytes: 210e6, MaskingSavedBytes: 21e6,
			Requests: &chunkstore.RequestStats{Total: bucket.Requests{Put: 12, List: 4, Get: 900}},
		},
		Paths: 430, AbsentPaths: 4, Packages: 109, UsedBytes: 87e6, UnusedBytes: 1e6, MinNARBytes: 760e3,
		Sample: &Sample{OneOf: 4, Chunks: 1000, Error: 2e6},
		Closures: []Closure{
			{Path: "0360fpzncg20av4mrxi1scgg0gs7njvc-nixos-system-" + strings.Repeat("long", 30), Paths: 300, Missing: 2, NARBytes: 600e6, WireBytes: 250e6, Alone: 80e6, Own: 20e6, Shared: 60e6, Error: 3e6},
			{Path: "19r27j5f2i0z0cvq8xr7n2g88gah9675-hello-2.12", Paths: 4, NARBytes: 30e6, WireBytes: 12e6, Alone: 11e6, Own: 100e3, Shared: 10.9e6},
		},
	}
	for i := range 20 {
		n := int64(20-i) * 1e6
		p := Package{Name: "python3.11-package" + string(rune('a'+i)), Paths: 4, NARBytes: 5 * n, WireBytes: 2 * n, Own: n, Shared: n / 3, Error: n / 10, Dedup: float64(20 - i), Ratio: 3.7}
		if i == 3 {
			p.Name = strings.Repeat("averylongname", 16)
		}
		r.Largest, r.MostDeduplicated, r.LeastDeduplicated = append(r.Largest, p), append(r.MostDeduplicated, p), append(r.LeastDeduplicated, p)
	}
	for i := range int64(40) {
		r.History = append(r.History, site.Sample{Time: r.Time.Add(time.Duration(i-40) * 24 * time.Hour), Paths: 10 * i, NARs: i * 19e6, Uploaded: i * 5e6, Stored: i * 22e5})
	}
	table, err := prices.Load("")
	if err != nil {
		t.Fatal(err)
	}
	provider, err := table.Provider(prices.Default)
	if err != nil {
		t.Fatal(err)
	}
	r.Cost = CostOf(r.Store, prices.Default, provider)
	return r
}

func TestWriteText(t *testing.T) {
	var text bytes.Buffer
	if err := fullReport(t).WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"434 of 109 packages, 760 MB of NARs", "92 MB, 12.1 % of the NARs; 43.8 %", "4 × before compression; masking saves about 21 MB",
		"from 1,000 chunks, one of 4: what NARs take is right to ±2.3 %", "4 store paths, which are in none", "26.7 MB ±7.5 %",
		"12 PUT, 4 LIST, 900 GET and HEAD; a plain cache would have taken 868 PUT", "100 kB", "2026-11-19 12:00", "NAR files and narinfos as objects",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, text.String())
		}
	}
}

func TestEmptyReport(t *testing.T) {
	s := openStore(t)
	r, err := Make(t.Context(), s, Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var text, page bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Error(err)
	}
	if err := r.WriteHTML(&page); err != nil || strings.Contains(page.String(), "NaN") {
		t.Errorf("%v: %s", err, page.String())
	}
}

func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	r := fullReport(t)
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	if i := strings.Index(page.String(), "http"); i >= 0 {
		t.Errorf("the page needs more than itself: %.80s", page.String()[i:])
	}
	charttest.Look(t, "report", page.Bytes())
}
