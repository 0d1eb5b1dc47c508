package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	fullSpool    = 1 << 30  // bytes of packs
	startupNAR   = 24 << 20 // bytes of a large NAR
	maxSpoolFill = 20 * time.Minute
)

// A filling is what the spool is full of.
type filling struct {
	name    string
	clients int
	// upload uploads the i-th of what has no chunk in common.
	upload func(ctx context.Context, base string, i int) error
}

// startup measures the time from the start of a process to its first answer, where the
// one before was killed under uploads, with a gigabyte of packs that it could not get rid
// of. Nothing of bucket and state is in the page cache.
func startup(ctx context.Context, b *bench) ([]row, error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	sources := distinct(gens, byNAR)
	large := func(ctx context.Context, base string, i int) error {
		nar := newBigNAR(sources, i, startupNAR)
		defer nar.Close()
		return put(ctx, fmt.Sprintf("%s/nar/startup-%d.nar", base, i), nar, bigNARSize(startupNAR))
	}
	var rows []row
	for _, f := range []filling{{"large NARs", 4, large}, {"small paths", smallClients, putSmallPath}} {
		some, err := b.startups(ctx, f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		rows = append(rows, some...)
	}
	return rows, nil
}

func putSmallPath(ctx context.Context, base string, i int) error {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(i))
	p, nar, err := makeSmallPath(rand.NewChaCha8(seed))
	if err != nil {
		return err
	}
	if err := put(ctx, base+"/"+p.nar, bytes.NewReader(nar), p.narSize); err != nil {
		return err
	}
	return put(ctx, base+"/"+p.narinfo, bytes.NewReader(p.text), int64(len(p.text)))
}

// startups fills a spool, and kills and starts its server again and again.
func (b *bench) startups(ctx context.Context, f filling) ([]row, error) {
	repo := b.repository("startup-" + f.name)
	defer os.RemoveAll(filepath.Dir(repo.state))
	server, err := b.serveRepository(ctx, repo, b.splitter)
	if err != nil {
		return nil, err
	}
	defer func() { server.kill() }()
	// A file where the bucket has its directory of packs: it takes none.
	if err := os.WriteFile(filepath.Join(repo.bucket, "packs"), nil, 0o644); err != nil {
		return nil, err
	}
	var uploaded atomic.Int64
	var times, cpus []float64
	var size int64
	var files int
	for i := range b.rounds {
		if size, files, err = b.killFull(ctx, server, repo, f, &uploaded); err != nil {
			return nil, err
		}
		if err := errors.Join(dropCache(repo.state), dropCache(repo.bucket)); err != nil {
			return nil, err
		}
		start := time.Now()
		next, err := b.serveRepository(ctx, repo, b.splitter)
		if err != nil {
			return nil, err
		}
		times = append(times, time.Since(start).Seconds())
		server = next
		cpu, err := server.cpu()
		if err != nil {
			return nil, err
		}
		cpus = append(cpus, cpu.Seconds())
		b.progress("%s, round %d of %d: %.3f s, CPU %.3f s, with %d bytes in %d files", f.name, i+1, b.rounds, times[i], cpus[i], size, files)
	}
	return []row{
		{What: "start after kill -9, spool full of " + f.name, Unit: "s", Value: median(times), Target: atMost(5)},
		{What: "CPU of that", Unit: "s", Value: median(cpus)},
		{What: fmt.Sprintf("volume of the spool's %d files", files), Unit: "MB", Value: float64(size) / 1e6},
	}, nil
}

// killFull uploads until the spool has a gigabyte and uploads are under way, then kills
// the server. It returns what is in the spool then.
func (b *bench) killFull(ctx context.Context, server *child, repo repository, f filling, uploaded *atomic.Int64) (size int64, files int, err error) {
	spool := filepath.Join(repo.state, "spool")
	before, _, err := measureDir(spool)
	if err != nil {
		return 0, 0, err
	}
	uploading, stop := context.WithTimeout(ctx, maxSpoolFill)
	defer stop()
	group, uploading := errgroup.WithContext(uploading)
	for range f.clients {
		group.Go(func() error {
			for {
				if err := f.upload(uploading, server.url, int(uploaded.Add(1))); err != nil {
					return err
				}
			}
		})
	}
	// What an earlier round has left does not count as being under way.
	want := max(fullSpool, before+1<<20)
	for size < want && uploading.Err() == nil {
		select {
		case <-uploading.Done():
		case <-time.After(50 * time.Millisecond):
		}
		// A pack may be renamed while it is looked at: the next look will find it.
		if size, _, err = measureDir(spool); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, 0, err
		}
	}
	server.kill()
	if err := group.Wait(); size < want {
		return 0, 0, fmt.Errorf("the spool did not fill, it has %d bytes: %w", size, err)
	}
	return measureDir(spool)
}

// dropCache writes the files below dir to the disk and out of the page cache. Unlike
// /proc/sys/vm/drop_caches it leaves those of others alone, and needs no rights.
func dropCache(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil {
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}
