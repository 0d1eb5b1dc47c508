package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

var splitters = []string{"rabin", "fastcdc"}

// ingestKnown uploads NARs again, under the names that they have already. The server
// reads and proves all of it, and finds nothing to store.
func ingestKnown(ctx context.Context, b *bench) ([]row, error) {
	paths, err := b.firstGeneration()
	if err != nil {
		return nil, err
	}
	servers := make(map[string]*child)
	for _, splitter := range splitters {
		server, err := b.serveRepository(ctx, b.repository(splitter), splitter)
		if err != nil {
			return nil, err
		}
		defer server.kill()
		servers[splitter] = server
		if err := b.upload(ctx, server, paths); err != nil {
			return nil, err
		}
	}
	cpu := make(map[string][]float64)
	for i := range b.rounds {
		if err := yardstick(ctx, cpu, paths, "sha256sum"); err != nil {
			return nil, err
		}
		for _, splitter := range splitters {
			server := servers[splitter]
			before, err := server.settled(ctx)
			if err != nil {
				return nil, err
			}
			if err := b.upload(ctx, server, paths); err != nil {
				return nil, err
			}
			after, err := server.settled(ctx)
			if err != nil {
				return nil, err
			}
			cpu[splitter] = append(cpu[splitter], (after - before).Round(time.Millisecond).Seconds())
		}
		b.progress("round %d of %d: CPU seconds %v", i+1, b.rounds, cpu)
	}
	var rows []row
	for i, splitter := range splitters {
		rows = append(rows, compare("stored already, "+splitter, "s", cpu[splitter],
			"sha256sum", cpu["sha256sum"], atMost([]float64{2, 1.2}[i])))
	}
	return append(rows, volume(paths)), nil
}

// ingestNew uploads NARs into an empty repository. Everything after the start of the
// server counts, up to its end: the last pack is sealed and uploaded.
func ingestNew(ctx context.Context, b *bench) ([]row, error) {
	paths, err := b.firstGeneration()
	if err != nil {
		return nil, err
	}
	cpu := make(map[string][]float64)
	for i := range b.rounds {
		if err := yardstick(ctx, cpu, paths, "sha256sum"); err != nil {
			return nil, err
		}
		if err := yardstick(ctx, cpu, paths, "zstd", "-3", "-T1", "-q", "-c"); err != nil {
			return nil, err
		}
		cpu["sum"] = append(cpu["sum"], cpu["sha256sum"][i]+cpu["zstd"][i])
		for _, splitter := range splitters {
			spent, err := b.ingestOnce(ctx, fmt.Sprintf("%s-%d", splitter, i), splitter, paths)
			if err != nil {
				return nil, err
			}
			cpu[splitter] = append(cpu[splitter], spent.Round(time.Millisecond).Seconds())
		}
		b.progress("round %d of %d: CPU seconds %v", i+1, b.rounds, cpu)
	}
	var rows []row
	for _, splitter := range splitters {
		rows = append(rows, compare("new, "+splitter, "s", cpu[splitter],
			"sha256sum + zstd -3", cpu["sum"], atMost(1.8)))
	}
	return append(rows, volume(paths)), nil
}

// ingestOnce returns the CPU time of storing paths in a new repository.
func (b *bench) ingestOnce(ctx context.Context, name, splitter string, paths []storePath) (time.Duration, error) {
	server, err := b.serveRepository(ctx, b.repository(name), splitter)
	if err != nil {
		return 0, err
	}
	defer server.kill()
	before, err := server.settled(ctx)
	if err != nil {
		return 0, err
	}
	if err := b.upload(ctx, server, paths); err != nil {
		return 0, err
	}
	total, err := server.stop()
	return total - before, err
}

func (b *bench) upload(ctx context.Context, server *child, paths []storePath) error {
	return each(ctx, paths, b.parallel, func(ctx context.Context, p storePath) error {
		return putNAR(ctx, server.url, p)
	})
}

func (b *bench) firstGeneration() ([]storePath, error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	return distinct(gens[:1], byNAR), nil
}

// yardstick adds the CPU seconds of one command over the files of all paths.
func yardstick(ctx context.Context, cpu map[string][]float64, paths []storePath, name string, args ...string) error {
	for _, p := range paths {
		args = append(args, p.file)
	}
	cmd := exec.CommandContext(ctx, name, args...) // output to /dev/null
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	spent := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	cpu[name] = append(cpu[name], spent.Round(time.Millisecond).Seconds())
	return nil
}

// volume tells how much was ingested, since the other rows are CPU seconds of all of it.
func volume(paths []storePath) row {
	return row{What: fmt.Sprintf("volume of %d NARs", len(paths)), Unit: "MB", Value: float64(narBytes(paths)) / 1e6}
}
