package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dedupd/dedupd/chart"
)

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(tw, strings.ReplaceAll(strings.Join(cells, "\t"), "\u00a0", " ")) }
	st := r.Store
	row("store paths", fmt.Sprintf("%s of %s packages, %s of NARs", chart.Count(st.StorePaths), chart.Count(r.Packages), chart.Size(st.PathBytes)))
	row("stored", fmt.Sprintf("%s, %s of the NARs; %s of the %s that were uploaded",
		chart.Size(st.StoredBytes), chart.Percent(st.StoredBytes, st.PathBytes), chart.Percent(st.StoredBytes, st.UploadedBytes), chart.Size(st.UploadedBytes)))
	row("deduplication", fmt.Sprintf("%s before compression; masking saves about %s, %s of what is stored",
		chart.Times(st.PathBytes, st.ChunkBytes), chart.Size(st.MaskingSavedBytes), chart.Percent(st.MaskingSavedBytes, st.StoredBytes)))
	row("of what is stored", fmt.Sprintf("%s for NARs of store paths, %s for other objects, %s for records, listings and the like",
		chart.Size(r.UsedBytes), chart.Size(r.UnusedBytes), chart.Size(r.recordBytes())))
	if r.AbsentPaths > 0 {
		row("damaged", chart.Count(r.AbsentPaths)+" store paths, which are in none of the numbers below")
	}
	if s := r.Sample; s != nil {
		row("estimated", fmt.Sprintf("from %s chunks, one of %s: what NARs take is right to ±%s at 95 %% confidence",
			chart.Count(s.Chunks), chart.Count(s.OneOf), chart.Percent(s.Error, r.UsedBytes)))
	}
	if text := r.requests(); text != "" {
		row("requests so far", text)
	}
	if n := len(r.History); n > 1 {
		row()
		row("Over time", "store paths", "NARs", "stored", "NARs to stored")
		for _, s := range r.samples() {
			row(s.Time.Format("2006-01-02 15:04"), chart.Count(s.Paths), chart.Size(s.NARs), chart.Size(s.Stored), chart.Times(s.NARs, s.Stored))
		}
	}
	for _, l := range r.lists() {
		row()
		row(l.Title, "paths", "NARs", "own", "share of shared", "stored", "NARs to stored", "dedup")
		for _, p := range l.Packages {
			row(p.Name, chart.Count(p.Paths), chart.Size(p.NARBytes), chart.Size(p.Own), chart.Size(p.Shared), size(p.Stored(), p.Error), chart.Times(p.NARBytes, p.Stored()), times(p.Dedup))
		}
	}
	if len(r.Closures) > 0 {
		row()
		row("Closure of", "paths", "missing", "NARs", "download", "stored, alone", "free without it", "shared with others")
		for _, c := range r.Closures {
			row(c.Path, chart.Count(c.Paths), chart.Count(c.Missing), chart.Size(c.NARBytes), chart.Size(c.WireBytes), size(c.Alone, c.Error), chart.Size(c.Own), chart.Size(c.Shared))
		}
	}
	if err := tw.Flush(); err != nil || r.Cost == nil {
		return err
	}
	return r.Cost.WriteText(w)
}

// requests says what was asked of the bucket, and what it would have been otherwise; "" if
// nobody has counted.
func (r *Report) requests() string {
	if r.Store.Requests == nil {
		return ""
	}
	t := r.Store.Requests.Total
	return fmt.Sprintf("%s PUT, %s LIST, %s GET and HEAD; a plain cache would have taken %s PUT, one with an object for each chunk %s",
		chart.Count(int64(t.Put)), chart.Count(int64(t.List)), chart.Count(int64(t.Get+t.Head)), chart.Count(2*r.Store.StorePaths), chart.Count(r.Store.Chunks))
}

// recordBytes are stored beside chunks.
func (r *Report) recordBytes() int64 {
	return max(0, r.Store.StoredBytes-r.UsedBytes-r.UnusedBytes)
}

// size writes a number of bytes and how far off it may be.
func size(n, err int64) string {
	if err == 0 {
		return chart.Size(n)
	}
	return chart.Size(n) + " ±" + chart.Percent(err, n)
}

func times(f float64) string { return chart.Times(int64(1000*f+0.5), 1000) }

// A packageList is one of the lists of a report.
type packageList struct {
	Title    string
	Packages []Package
	byDedup  bool
}

func (r *Report) lists() (lists []packageList) {
	for _, l := range []packageList{
		{"Largest packages", r.Largest, false},
		{"Most deduplicated", r.MostDeduplicated, true},
		{"Least deduplicated", r.LeastDeduplicated, true},
	} {
		if len(l.Packages) > 0 {
			lists = append(lists, l)
		}
	}
	return lists
}
