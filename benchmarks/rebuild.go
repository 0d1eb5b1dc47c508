package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// rebuild runs the benchmark of package chunkstore that makes an index from packs.
func rebuild(ctx context.Context, b *bench) ([]row, error) {
	found, err := b.chunkstore(ctx, "Rebuild", fmt.Sprintf("DEDUPD_BENCH_CHUNKS=%d", b.chunks))
	if err != nil {
		return nil, err
	}
	return []row{{
		What: fmt.Sprintf("rebuilding the index of %d chunks", b.chunks), Unit: "chunks a second",
		Value: found["Rebuild/memory=128MiB chunks/s"], Target: atLeast(300e3),
	}}, nil
}

// newMachine runs the one that starts from packs on MinIO, and from a snapshot there.
func newMachine(ctx context.Context, b *bench) ([]row, error) {
	found, err := b.chunkstore(ctx, "NewMachine", fmt.Sprintf("DEDUPD_BENCH_PACKS=%d", b.packs))
	if err != nil {
		return nil, err
	}
	value := func(what, unit, name string, t *target) row {
		return row{What: what, Unit: unit, Value: found["NewMachine/"+name], Target: t}
	}
	of := fmt.Sprintf(" the index of %d packs", b.packs)
	return []row{
		value("rebuilding"+of, "GETs and HEADs a pack", "packs gets/pack", atMost(2)),
		value("rebuilding"+of, "seconds", "packs seconds", nil),
		value("restoring"+of+" from a snapshot", "GETs and HEADs a pack", "snapshot gets/pack", nil),
		value("restoring"+of+" from a snapshot", "seconds", "snapshot seconds", nil),
		value("writing the snapshot", "seconds", "write seconds", nil),
		value("the snapshot", "bytes a chunk", "write bytes/chunk", nil),
	}, nil
}

// metric is a number in the output of go test -bench, with its unit.
var metric = regexp.MustCompile(`([0-9.e+-]+) ([a-z]+(?:/[a-z]+)?)\b`)

// chunkstore runs benchmarks of package chunkstore once, and returns what they report, by
// name and unit.
func (b *bench) chunkstore(ctx context.Context, name string, env ...string) (map[string]float64, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-timeout=60m", "-run=^$", "-bench="+name, "-benchtime=1x",
		"github.com/dedupd/dedupd/chunkstore")
	cmd.Env = append(append(os.Environ(), "TMPDIR="+b.work), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("go test: %w\n%s", err, out)
	}
	b.progress("%s", out)
	found := map[string]float64{}
	for line := range strings.Lines(string(out)) {
		line, isResult := strings.CutPrefix(line, "Benchmark")
		if !isResult {
			continue
		}
		full, rest, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
		if i := strings.LastIndexByte(full, '-'); i > 0 { // the number of processors
			full = full[:i]
		}
		for _, m := range metric.FindAllStringSubmatch(rest, -1) {
			if v, err := strconv.ParseFloat(m[1], 64); err == nil {
				found[full+" "+m[2]] = v
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the benchmark reports nothing: is a program missing that it needs?")
	}
	return found, nil
}
