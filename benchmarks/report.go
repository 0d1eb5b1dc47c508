package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A row is one measured number.
type row struct {
	What  string  `json:"what"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"` // of dedupd; a median where there were rounds

	Yardstick      string  `json:"yardstick,omitempty"`
	YardstickValue float64 `json:"yardstick_value,omitempty"` // in Unit
	// Ratio is the median of the rounds' own ratios of dedupd to the yardstick, since
	// what a shared machine does to one it does to the other.
	Ratio  float64   `json:"ratio,omitempty"`
	Ratios []float64 `json:"ratios,omitempty"`

	Target *target `json:"target,omitempty"`
	Met    *bool   `json:"met,omitempty"`
}

// A target bounds a row's ratio if it has a yardstick, else its value.
type target struct {
	Limit   float64 `json:"limit"`
	AtLeast bool    `json:"at_least"` // else at most
}

func atMost(limit float64) *target  { return &target{Limit: limit} }
func atLeast(limit float64) *target { return &target{Limit: limit, AtLeast: true} }

// compare makes the row of rounds of measurements of dedupd and of its yardstick.
func compare(what, unit string, values []float64, yardstick string, yardsticks []float64, t *target) row {
	r := row{
		What: what, Unit: unit, Value: median(values),
		Yardstick: yardstick, YardstickValue: median(yardsticks), Target: t,
	}
	for i := range values {
		r.Ratios = append(r.Ratios, values[i]/yardsticks[i])
	}
	r.Ratio = median(r.Ratios)
	return r
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func (r *row) judge() {
	if r.Target == nil {
		return
	}
	v := r.Value
	if r.Yardstick != "" {
		v = r.Ratio
	}
	met := v <= r.Target.Limit
	if r.Target.AtLeast {
		met = v >= r.Target.Limit
	}
	r.Met = &met
}

// A report is what one benchmark prints.
type report struct {
	Name    string    `json:"name"`
	What    string    `json:"what"`
	Date    time.Time `json:"date"`
	Repeat  string    `json:"repeat"`
	Machine string    `json:"machine"`
	Tools   []string  `json:"tools"`
	Rows    []row     `json:"rows"`
}

func (r *report) prepare() {
	r.Date = time.Now().UTC().Truncate(time.Second)
	for i := range r.Rows {
		r.Rows[i].judge()
	}
}

func (r *report) writeJSON(w io.Writer) error {
	r.prepare()
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// writeText prints a Markdown table, as docs/benchmarks.md has them.
func (r *report) writeText(w io.Writer) error {
	r.prepare()
	fmt.Fprintf(w, "## %s: %s\n\n", r.Name, r.What)
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(tw, "| what\t| dedupd\t| yardstick\t| ratio\t| target\t| met\t|")
	fmt.Fprintln(tw, "|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, row := range r.Rows {
		fmt.Fprintf(tw, "| %s\t| %s %s\t|", row.What, number(row.Value), row.Unit)
		if row.Yardstick == "" {
			fmt.Fprint(tw, " \t| \t|")
		} else {
			fmt.Fprintf(tw, " %s: %s %s\t|", row.Yardstick, number(row.YardstickValue), row.Unit)
			fmt.Fprintf(tw, " %.3f", row.Ratio)
			if len(row.Ratios) > 1 {
				fmt.Fprintf(tw, " (%.3f–%.3f)", slices.Min(row.Ratios), slices.Max(row.Ratios))
			}
			fmt.Fprint(tw, "\t|")
		}
		fmt.Fprintf(tw, " %s\t| %s\t|\n", row.Target, yesNo(row.Met))
	}
	tw.Flush()
	_, err := fmt.Fprintf(w, "\n%s\n%s\nrepeat with: %s\n\n", r.Machine, strings.Join(r.Tools, "; "), r.Repeat)
	return err
}

func (t *target) String() string {
	switch {
	case t == nil:
		return ""
	case t.AtLeast:
		return "≥ " + number(t.Limit)
	default:
		return "≤ " + number(t.Limit)
	}
}

// number formats v with about three significant digits.
func number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
}

func yesNo(b *bool) string {
	switch {
	case b == nil:
		return ""
	case *b:
		return "yes"
	default:
		return "**no**"
	}
}

// machine describes this computer in a line.
func machine(ctx context.Context) string {
	return fmt.Sprintf("machine: %s, %d cores, %s, Linux %s",
		procField("/proc/cpuinfo", "model name"), runtime.NumCPU(), procField("/proc/meminfo", "MemTotal"), firstLine(ctx, "uname", "-r"))
}

// tools returns the versions of everything that took part.
func tools(ctx context.Context) []string {
	versions := []string{"dedupd " + firstLine(ctx, "git", "describe", "--always", "--dirty"), runtime.Version()}
	for _, command := range [][]string{
		{"sha256sum", "--version"}, {"zstd", "--version"}, {"xz", "--version"}, {"nginx", "-v"}, {"wrk", "-v"},
	} {
		versions = append(versions, firstLine(ctx, command[0], command[1:]...))
	}
	return versions
}

// firstLine returns the first line that a command prints. wrk exits with a failure
// after telling its version, so the status does not count.
func firstLine(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	line, _, _ := bytes.Cut(out, []byte("\n"))
	if len(line) == 0 && err != nil {
		return name + ": " + err.Error()
	}
	return strings.Trim(string(line), "* ")
}

// procField returns the first value of a field in a file of "name: value" lines.
func procField(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if n, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(n) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
