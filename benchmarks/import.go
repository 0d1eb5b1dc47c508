package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
)

// imports imports the .nar.xz of the first generation into an empty repository, 16 paths at
// a time. The yardstick is the CPU of `xz -dc` of the same files, and of a server that takes in the same
// NARs without compression, as ingest-new measures it. The import's own counts from its start to its end,
// with all processes of xz.
func imports(ctx context.Context, b *bench) ([]row, error) {
	paths, err := b.firstGeneration()
	if err != nil {
		return nil, err
	}
	files, err := b.xzFiles()
	if err != nil {
		return nil, err
	}
	from := "file://" + filepath.Join(b.corpus, "gen0", "xz")
	var sum, cpu, inGo, busy, peaks []float64
	for i := range b.rounds {
		decoding, err := xzTime(ctx, files)
		if err != nil {
			return nil, err
		}
		ingest, err := b.ingestOnce(ctx, fmt.Sprint("ingest-", i), b.splitter, paths)
		if err != nil {
			return nil, err
		}
		sum = append(sum, (decoding + ingest).Seconds())
		c, err := b.importOnce(ctx, b.repository(fmt.Sprint("import-", i)), from)
		if err != nil {
			return nil, err
		}
		cpu, busy, peaks = append(cpu, c.cpu.Seconds()), append(busy, c.cpu.Seconds()/c.wall.Seconds()), append(peaks, float64(c.peak)/1e6)
		g, err := b.importOnce(ctx, b.repository(fmt.Sprint("import-go-", i)), from, "--xz", "go")
		if err != nil {
			return nil, err
		}
		inGo = append(inGo, g.cpu.Seconds())
		b.progress("round %d of %d: xz %v, ingest %v, import %+v, in Go %+v", i+1, b.rounds, decoding, ingest, c, g)
	}
	const yardstick = "xz -dc + ingest"
	return []row{
		compare(fmt.Sprintf("CPU of importing %d .nar.xz", len(files)), "s", cpu, yardstick, sum, atMost(1.3)),
		compare("the same, decoded in Go", "s", inGo, yardstick, sum, nil),
		{What: "processors that it keeps busy", Value: median(busy), Target: atLeast(1.7)},
		{What: "peak RssAnon, with all processes of xz", Unit: "MB", Value: median(peaks), Target: atMost(512)},
	}, nil
}

// An importCost is what one import has taken.
type importCost struct {
	cpu, wall time.Duration
	peak      int64 // bytes of anonymous memory, its processes of xz included
}

// importOnce imports a cache, which must be whole.
func (b *bench) importOnce(ctx context.Context, r repository, from string, flags ...string) (c importCost, err error) {
	for _, dir := range []string{r.bucket, r.state, r.home} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return c, err
		}
	}
	cmd := b.command(ctx, r, append([]string{"import", from, "--jobs", fmt.Sprint(uploads), "--no-files"}, flags...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return c, err
	}
	sampling, stop := context.WithCancel(ctx)
	sampled := make(chan int64)
	go func() {
		sampled <- peak(sampling, 100*time.Millisecond, func() int64 { return familyMemory(fmt.Sprint(cmd.Process.Pid)) })
	}()
	err = cmd.Wait()
	c.wall = time.Since(start)
	stop()
	c.peak = <-sampled
	c.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if err != nil {
		err = fmt.Errorf("import: %w\n%s", err, &out)
	}
	return c, err
}

// familyMemory returns the RssAnon of a process and of its children. What does not yet run a
// program of its own shares the memory of the process, and is not counted.
func familyMemory(pid string) int64 {
	sum := memoryOf(pid)
	program := procField("/proc/"+pid+"/status", "Name")
	stats, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, name := range stats {
		if procField(name, "PPid") == pid && procField(name, "Name") != program {
			sum += memoryOf(filepath.Base(filepath.Dir(name)))
		}
	}
	return sum
}

// importPuts imports a cache with all generations, as a real one has, into a bucket on MinIO.
func importPuts(ctx context.Context, b *bench) ([]row, error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	paths := distinct(gens, byNarinfo)
	cache := filepath.Join(b.work, "cache")
	if err := linkCache(cache, paths); err != nil {
		return nil, err
	}
	store, err := b.startMinIO(ctx)
	if err != nil {
		return nil, err
	}
	defer store.kill()
	repo := b.repository("import")
	if repo.url, err = b.newBucket(ctx, store, "import"); err != nil {
		return nil, err
	}
	cost, err := b.importOnce(ctx, repo, "file://"+cache)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(repo.state, "requests.json"))
	if err != nil {
		return nil, err
	}
	var stats chunkstore.RequestStats
	if err := json.Unmarshal(text, &stats); err != nil {
		return nil, err
	}
	sent := stats.Process
	b.progress("%+v, %+v", sent, cost)
	count := float64(sent.Put + sent.List)
	return []row{
		{What: fmt.Sprintf("PUT and LIST per path (%.0f / %d)", count, len(paths)), Unit: "requests", Value: count / float64(len(paths)), Target: atMost(0.02)},
		{What: "sent", Unit: "MB", Value: float64(sent.Sent) / 1e6},
		{What: "peak RssAnon", Unit: "MB", Value: float64(cost.peak) / 1e6, Target: atMost(512)},
		{What: "processors that it keeps busy", Value: cost.cpu.Seconds() / cost.wall.Seconds()},
	}, nil
}

// linkCache makes a cache of paths in dir, with links to their NARs.
func linkCache(dir string, paths []storePath) error {
	if err := os.MkdirAll(filepath.Join(dir, "nar"), 0o755); err != nil {
		return err
	}
	errs := []error{os.WriteFile(filepath.Join(dir, "nix-cache-info"), []byte("StoreDir: /nix/store\n"), 0o644)}
	for _, p := range paths {
		errs = append(errs, os.WriteFile(filepath.Join(dir, p.narinfo), p.text, 0o644))
		if err := os.Link(p.file, filepath.Join(dir, p.nar)); !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
