package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/dedupd/dedupd/plan"
)

// plans plans the import of a cache with the .nar.xz of all generations from a sample of
// 20 %, another one in each round, and imports it.
func plans(ctx context.Context, b *bench) ([]row, error) {
	if b.corpus == "" {
		return nil, errors.New("no corpus: set DEDUPD_CORPUS, or run under scripts/with-deps")
	}
	cache := filepath.Join(b.work, "cache")
	if err := linkXZ(cache, b.corpus); err != nil {
		return nil, err
	}
	var planned, imported, wrong, stored, real []float64
	within := 0
	for i := range b.rounds {
		r, took, err := b.planOnce(ctx, "file://"+cache, uint64(i+1))
		if err != nil {
			return nil, err
		}
		repo := b.repository(fmt.Sprint("import-", i))
		cost, err := b.importOnce(ctx, repo, "file://"+cache)
		if err != nil {
			return nil, err
		}
		size, _, err := measureDir(repo.bucket)
		if err != nil {
			return nil, err
		}
		if err := os.RemoveAll(repo.bucket); err != nil {
			return nil, err
		}
		b.progress("round %d of %d: %+v of %d bytes in %v, import %+v", i+1, b.rounds, r.Stored, size, took, cost)
		planned, imported = append(planned, took.Seconds()), append(imported, cost.wall.Seconds())
		stored, real = append(stored, r.Stored.Value/1e6), append(real, float64(size)/1e6)
		wrong = append(wrong, math.Abs(r.Stored.Value/float64(size)-1))
		if r.Stored.Low <= float64(size) && float64(size) <= r.Stored.High {
			within++
		}
	}
	return []row{
		compare("time", "s", planned, "import", imported, atMost(0.3)),
		compare("stored", "MB", stored, "import", real, nil),
		{What: "error of what is stored", Value: median(wrong), Target: atMost(0.15)},
		{What: fmt.Sprintf("plans of %d in whose interval it is", b.rounds), Value: float64(within)},
	}, nil
}

func (b *bench) planOnce(ctx context.Context, from string, seed uint64) (*plan.Report, time.Duration, error) {
	cmd := b.command(ctx, repository{home: b.work}, "plan", from, "--sample", "20%", "--seed", fmt.Sprint(seed), "--json")
	cmd.Args = cmd.Args[:len(cmd.Args)-4] // it has neither a bucket nor a state directory
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return nil, 0, fmt.Errorf("plan: %w\n%s", err, &log)
	}
	took := time.Since(start)
	r := new(plan.Report)
	return r, took, json.Unmarshal(out.Bytes(), r)
}

// linkXZ makes a cache in dir of the .nar.xz of all generations of a corpus, with links to
// them.
func linkXZ(dir, corpus string) error {
	files, err := filepath.Glob(filepath.Join(corpus, "gen[0-9]", "xz", "*.narinfo"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no .nar.xz in %s", corpus)
	}
	if err := os.MkdirAll(filepath.Join(dir, "nar"), 0o755); err != nil {
		return err
	}
	errs := []error{os.WriteFile(filepath.Join(dir, "nix-cache-info"), []byte("StoreDir: /nix/store\n"), 0o644)}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, filepath.Base(file)), text, 0o644))
		url := fields(text)["URL"]
		if err := os.Link(filepath.Join(filepath.Dir(file), url), filepath.Join(dir, url)); !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
