package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
)

// indexRows are the lines that index's own benchmark logs.
var indexRows = []struct {
	what, unit, pattern string
	target              *target
}{
	{"size on disk a chunk", "bytes", `file: ([0-9.]+) bytes a chunk`, atMost(150)},
	{"inserts, with flushes", "a second", `inserts, with flushes: .*: ([0-9]+) a second`, atLeast(100e3)},
	{"look-ups of unknown chunks", "a second", `after inserting: look-ups of unknown chunks: ([0-9]+) a second`, atLeast(1e6)},
	{"the same after reopening", "a second", `after reopening: look-ups of unknown chunks: ([0-9]+) a second`, atLeast(1e6)},
	{"look-ups of known chunks", "a second", `after reopening: look-ups of known chunks: ([0-9]+) a second`, nil},
	{"filter fill after reopening", "chunks a second", `filter fill: .*: ([0-9]+) a second`, nil},
}

// indexes runs the benchmark of package index.
func indexes(ctx context.Context, b *bench) ([]row, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-timeout=60m", "-run=^TestBench$",
		"github.com/dedupd/dedupd/index")
	cmd.Env = append(os.Environ(), "DEDUPD_BENCH=1", fmt.Sprintf("DEDUPD_BENCH_CHUNKS=%d", b.chunks), "TMPDIR="+b.work)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("go test: %w\n%s", err, out)
	}
	b.progress("%s", out)
	var rows []row
	for _, r := range indexRows {
		match := regexp.MustCompile(r.pattern).FindSubmatch(out)
		if match == nil {
			return nil, fmt.Errorf("the benchmark does not tell %q", r.what)
		}
		value, err := strconv.ParseFloat(string(match[1]), 64)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{What: r.what, Unit: r.unit, Value: value, Target: r.target})
	}
	return rows, nil
}
