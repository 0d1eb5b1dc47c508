package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixstore"
)

const (
	dumpFile  = 256 << 20 // bytes of each large file
	dumpFiles = 4
)

// A dumpTree is a store path, and what it has to show.
type dumpTree struct {
	what  string
	path  narinfo.StorePath
	times map[string][]float64 // MB/s
	cpu   map[string][]float64 // seconds
}

// dumps measures how fast NARs come out of a Nix store, from the page cache: one of many
// small files, which is Go's own distribution, and one of a few large ones. Both sides
// dump without hashing, and then with it: the gateway hashes what it dumps.
func dumps(ctx context.Context, b *bench) ([]row, error) {
	root := filepath.Join(b.work, "store")
	large := filepath.Join(b.work, "large")
	if err := makeLarge(large); err != nil {
		return nil, err
	}
	trees := []*dumpTree{{what: "15,000 small files"}, {what: "large files"}}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	for i, source := range []string{strings.TrimSpace(string(goroot)), large} {
		b.progress("adding %s", source)
		path, err := addToStore(ctx, root, source)
		if err != nil {
			return nil, err
		}
		trees[i].path, trees[i].times, trees[i].cpu = path, map[string][]float64{}, map[string][]float64{}
	}
	store, err := nixstore.Open(ctx, nixstore.Options{Root: root})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	for i := range b.rounds {
		for _, t := range trees {
			if err := t.measure(ctx, store, root); err != nil {
				return nil, err
			}
			b.progress("round %d of %d: %s done", i+1, b.rounds, t.what)
		}
	}
	var rows []row
	for _, t := range trees {
		rows = append(rows,
			compare(t.what, "MB/s", t.times["dump"], "nix-store --dump", t.times["nix"], atLeast(1)),
			compare(t.what+", CPU", "s", t.cpu["dump"], "nix-store --dump", t.cpu["nix"], nil),
			compare(t.what+", hash checked", "MB/s", t.times["checked"], "nix-store --dump | sha256sum", t.times["nix sum"], nil))
	}
	return rows, nil
}

func makeLarge(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range dumpFiles {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("file-", i)))
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, rand.Reader, dumpFile)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// addToStore adds a directory to the store in root, with a configuration of its own.
func addToStore(ctx context.Context, root, dir string) (narinfo.StorePath, error) {
	cmd := exec.CommandContext(ctx, "nix-store", "--store", root, "--add", dir)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+root, "NIX_REMOTE=", "NIX_CONFIG=fsync-metadata = false\nbuild-users-group =\n")
	out, err := cmd.Output()
	if err != nil {
		return narinfo.StorePath{}, fmt.Errorf("nix-store --add: %w", err)
	}
	return narinfo.ParseStorePath(nixstore.DefaultDir, strings.TrimSpace(string(out)))
}

// measure dumps the path in every way, once to warm up and once by the clock.
func (t *dumpTree) measure(ctx context.Context, store *nixstore.Store, root string) error {
	file := filepath.Join(root, t.path.Path(nixstore.DefaultDir))
	info, err := store.NarInfo(ctx, t.path.HashPart())
	if err != nil {
		return err
	}
	for _, m := range []struct {
		name string
		run  func() error
	}{
		{"dump", func() error { return nixstore.Dump(ctx, sink{}, file) }},
		{"nix", func() error { return exec.CommandContext(ctx, "nix-store", "--dump", file).Run() }},
		{"checked", func() error {
			body, _, err := store.NAR(ctx, info, 0)
			if err != nil {
				return err
			}
			defer body.Close()
			_, err = io.Copy(sink{}, body)
			return err
		}},
		{"nix sum", func() error {
			return exec.CommandContext(ctx, "sh", "-c", `nix-store --dump "$0" | sha256sum`, file).Run()
		}},
	} {
		if len(t.times[m.name]) == 0 {
			if err := m.run(); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
		start, cpu := time.Now(), cpuTime()
		if err := m.run(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		t.times[m.name] = append(t.times[m.name], float64(info.NarSize)/1e6/time.Since(start).Seconds())
		t.cpu[m.name] = append(t.cpu[m.name], (cpuTime() - cpu).Seconds())
	}
	return nil
}

// cpuTime returns the CPU time of this process and of those that it has waited for.
func cpuTime() time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// A sink is io.Discard without its own way of reading.
type sink struct{}

func (sink) Write(p []byte) (int, error) { return len(p), nil }
