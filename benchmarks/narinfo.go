package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// narinfoScript makes wrk ask for the paths of a file in random order.
//
//go:embed narinfo.lua
var narinfoScript []byte

// narinfos measures requests a second of wrk with 64 connections, each server in turn,
// both of which log every request to a file.
func narinfos(ctx context.Context, b *bench) ([]row, error) {
	r, err := startRivals(ctx, b)
	if err != nil {
		return nil, err
	}
	defer r.kill()
	script, paths, err := b.wrkPaths(r.narinfos)
	if err != nil {
		return nil, err
	}
	var dedupd, nginx []float64
	for i := range b.rounds {
		for _, c := range []struct {
			server *child
			rates  *[]float64
		}{{r.dedupd, &dedupd}, {r.nginx, &nginx}} {
			rate, err := b.wrk(ctx, c.server, script, paths)
			if err != nil {
				return nil, err
			}
			*c.rates = append(*c.rates, rate)
		}
		b.progress("round %d of %d: %.0f, nginx %.0f requests/s", i+1, b.rounds, dedupd[i], nginx[i])
	}
	what := fmt.Sprintf("%d narinfos, 64 connections, access logs", len(r.narinfos))
	return []row{compare(what, "requests/s", dedupd, "nginx", nginx, atLeast(0.5))}, nil
}

// wrkPaths writes what wrk needs to ask for files: its script, and their paths.
func (b *bench) wrkPaths(files []file) (script, paths string, err error) {
	var list strings.Builder
	for _, f := range files {
		fmt.Fprintln(&list, f.path)
	}
	script, paths = filepath.Join(b.work, "narinfo.lua"), filepath.Join(b.work, "paths")
	return script, paths, errors.Join(os.WriteFile(script, narinfoScript, 0o644), os.WriteFile(paths, []byte(list.String()), 0o644))
}

var (
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkErrors = regexp.MustCompile(`(?m)^\s*(Non-2xx|Socket errors).*`)
)

// wrk returns the requests a second that a server answers.
func (b *bench) wrk(ctx context.Context, server *child, script, paths string) (float64, error) {
	cmd := exec.CommandContext(ctx, "wrk", "-t2", "-c64", fmt.Sprintf("-d%ds", b.seconds), "-s", script, server.url, "--", paths)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	rate := wrkRate.FindSubmatch(out)
	if failed := wrkErrors.Find(out); failed != nil || rate == nil {
		return 0, fmt.Errorf("wrk: %s\n%s", failed, out)
	}
	return strconv.ParseFloat(string(rate[1]), 64)
}
