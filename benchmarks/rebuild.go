package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
)

// rebuilt is what chunkstore's own benchmark reports.
var rebuilt = regexp.MustCompile(`([0-9.e+]+) chunks/s`)

// rebuild runs the benchmark of package chunkstore that makes an index from packs.
func rebuild(ctx context.Context, b *bench) ([]row, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-timeout=60m", "-run=^$", "-bench=Rebuild", "-benchtime=1x",
		"github.com/dedupd/dedupd/chunkstore")
	cmd.Env = append(os.Environ(), fmt.Sprintf("DEDUPD_BENCH_CHUNKS=%d", b.chunks), "TMPDIR="+b.work)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("go test: %w\n%s", err, out)
	}
	b.progress("%s", out)
	match := rebuilt.FindSubmatch(out)
	if match == nil {
		return nil, fmt.Errorf("the benchmark does not tell its speed:\n%s", out)
	}
	speed, err := strconv.ParseFloat(string(match[1]), 64)
	if err != nil {
		return nil, err
	}
	return []row{{What: fmt.Sprintf("rebuilding the index of %d chunks", b.chunks), Unit: "chunks a second", Value: speed, Target: atLeast(300e3)}}, nil
}
