package plan

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dedupd/dedupd/chart"
)

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	b := new(strings.Builder)
	fmt.Fprintf(b, "%s: %s paths, %s NARs, %s in files of %s\n", r.Source, chart.Count(r.Paths), chart.Count(r.NARs), chart.Size(r.NARBytes), chart.Size(r.FileBytes))
	fmt.Fprintf(b, "sample: %s NARs, %s (%s of the files), in %.0f s\n\n", chart.Count(r.Sample.NARs), chart.Size(r.Sample.FileBytes), chart.Percent(r.Sample.FileBytes, r.FileBytes), r.Seconds)

	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	files := float64(r.FileBytes)
	fmt.Fprintln(tw, "\ttoday\tdedupd\t9 samples of 10 say\tto today's")
	row := func(name string, e Estimate) {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s to %s\t%.2f\n", name, chart.Bytes(files), chart.Bytes(e.Value), chart.Bytes(e.Low), chart.Bytes(e.High), e.Value/files)
	}
	row("stored", r.Stored)
	row("all NARs downloaded", r.Wire)
	fmt.Fprintf(tw, "objects\t%s\t%.0f\t%.0f to %.0f\t\n", chart.Count(r.Paths+r.NARs), r.Packs.Value, r.Packs.Low, r.Packs.High)
	fmt.Fprintf(tw, "chunks\t\t%.0f\t%.0f to %.0f\t\n", r.Chunks.Value, r.Chunks.Low, r.Chunks.High)
	tw.Flush()
	fmt.Fprintf(b, "\nrequests of the migration: %s GET, %s LIST, %s PUT\n", chart.Count(r.Requests.Get), chart.Count(r.Requests.List), chart.Count(r.Requests.Put))

	r.writeGroups(b, "year", r.Years)
	r.writeGroups(b, "package", r.Packages[:min(len(r.Packages), 10)])
	r.writeOffers(b)
	for _, text := range r.Warnings {
		fmt.Fprintf(b, "\nnote: %s", text)
	}
	if len(r.Warnings) > 0 {
		fmt.Fprintln(b)
	}
	for _, reason := range r.reasons() {
		fmt.Fprintf(b, "skipped, %s: %d\n", reason, r.Skipped[reason])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) writeGroups(w io.Writer, what string, groups []Group) {
	if len(groups) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\n%s\tNARs\tfiles today\tdedupd, about\n", what)
	for _, g := range groups {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", g.Name, chart.Count(g.NARs), chart.Size(g.FileBytes), chart.Size(g.Stored))
	}
	tw.Flush()
}

func (r *Report) writeOffers(w io.Writer) {
	fmt.Fprintf(w, "\nthe cache is at %s; ", r.Provider)
	if r.Egress > 0 {
		fmt.Fprintf(w, "clients download %s a month", chart.Bytes(r.Egress))
	} else {
		fmt.Fprintf(w, "clients download %s a month, it is assumed", chart.Size(r.FileBytes))
	}
	fmt.Fprintf(w, "; it grows by %.0f %% a year\n", 100*r.Growth)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "dollars a month\tas it is\tobject a chunk\tdedupd\tof it egress\tmoving\tpays")
	for _, p := range r.Places() {
		name := p.Provider
		if p.Now {
			name += " (today)"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, chart.Dollars(p.Plain.Month.Total()), chart.Dollars(p.Chunks.Month.Total()),
			chart.Dollars(p.Packs.Month.Total()), chart.Dollars(p.Packs.Month.Egress), chart.Dollars(p.Packs.Once), p.Packs.Pays())
	}
	tw.Flush()
}

// Pays says from when on an offer is cheaper than leaving the cache where it is.
func (o *Offer) Pays() string {
	switch o.PaysAfter {
	case 0:
		return "never"
	case 1:
		return "after 1 month"
	}
	return fmt.Sprintf("after %d months", o.PaysAfter)
}
