package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/narinfo"
)

const (
	loadReaders   = 2000 // connections that get narinfos
	loadUploads   = 64
	loadDownloads = 64
	loadNAR       = 16e6 // bytes of each upload
)

// load has clients of all kinds at once for a while: the first answer that is not what
// it should be ends it with an error.
func load(ctx context.Context, b *bench) ([]row, error) {
	s, err := b.startStocked(ctx)
	if err != nil {
		return nil, err
	}
	defer s.kill()
	b.progress("%d narinfo readers, %d uploads and %d downloads for %d s", loadReaders, loadUploads, loadDownloads, b.duration)
	start := time.Now()
	until := start.Add(time.Duration(b.duration) * time.Second)
	sampling, stop := context.WithCancel(ctx)
	defer stop()
	sampled := make(chan int64)
	go func() { sampled <- s.peakMemory(sampling) }()

	var narinfos, in, out atomic.Int64
	group, clients := errgroup.WithContext(ctx)
	for i := range loadReaders {
		group.Go(func() error {
			n, err := s.getNarinfos(clients, uint64(i), until)
			narinfos.Add(n)
			return err
		})
	}
	for i := range loadUploads {
		group.Go(func() error {
			n, err := s.uploadUntil(clients, i, until)
			in.Add(n)
			return err
		})
	}
	for i := range loadDownloads {
		group.Go(func() error {
			n, err := fetchUntil(clients, s.addr(), s.nars, rand.New(rand.NewPCG(1, uint64(i))), until)
			out.Add(n)
			return err
		})
	}
	err = group.Wait()
	spent := time.Since(start).Seconds()
	stop()
	peak := <-sampled
	if err != nil {
		return nil, err
	}
	if _, err := s.stop(); err != nil {
		return nil, err
	}
	return []row{
		{What: fmt.Sprintf("narinfos, %d connections", loadReaders), Unit: "requests/s", Value: float64(narinfos.Load()) / spent},
		{What: fmt.Sprintf("in, %d uploads", loadUploads), Unit: "MB/s of NAR", Value: float64(in.Load()) / 1e6 / spent},
		{What: fmt.Sprintf("out, %d downloads", loadDownloads), Unit: "MB/s of frames", Value: float64(out.Load()) / 1e6 / spent},
		{What: "peak RssAnon", Unit: "MB", Value: float64(peak) / 1e6, Target: atMost(512 * 1.048576)},
	}, nil
}

// latency measures how long the answer to a narinfo takes while nothing else happens, and
// while 16 clients upload, in turn. Wrk asks: this process is busy with the uploads. What
// an nginx that has nothing to do with them answers meanwhile is what the machine costs.
func latency(ctx context.Context, b *bench) ([]row, error) {
	s, err := b.startStocked(ctx)
	if err != nil {
		return nil, err
	}
	defer s.kill()
	script, paths, err := b.wrkPaths(s.narinfos)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(b.work, "www")
	if err := s.mirrorNarinfos(root); err != nil {
		return nil, err
	}
	nginx, err := b.startNginx(ctx, root)
	if err != nil {
		return nil, err
	}
	defer nginx.kill()
	var idle, busy, beside []float64
	for i := range b.rounds {
		quiet, err := b.wrkLatency(ctx, s.child, script, paths)
		if err != nil {
			return nil, err
		}
		uploading, stop := context.WithCancel(ctx)
		group, uploading := errgroup.WithContext(uploading)
		for k := range uploads {
			group.Go(func() error {
				if _, err := s.uploadUntil(uploading, i*uploads+k, time.Time{}); uploading.Err() == nil {
					return err
				}
				return nil
			})
		}
		time.Sleep(time.Second) // until all of them run
		loud, err := b.wrkLatency(ctx, s.child, script, paths)
		var floor float64
		if err == nil {
			floor, err = b.wrkLatency(ctx, nginx, script, paths)
		}
		stop()
		if err := errors.Join(err, group.Wait()); err != nil {
			return nil, err
		}
		idle, busy, beside = append(idle, quiet), append(busy, loud), append(beside, floor)
		b.progress("round %d of %d: p99 %.2f ms idle, %.2f ms while %d upload, nginx %.2f ms then", i+1, b.rounds, quiet, loud, uploads, floor)
		if _, err := s.settled(ctx); err != nil {
			return nil, err
		}
	}
	what := fmt.Sprintf("p99 of a narinfo, %d uploads", uploads)
	return []row{
		compare(what, "ms", busy, "idle", idle, atMost(10)),
		compare("the same", "ms", busy, "nginx at that time", beside, nil),
	}, nil
}

// mirrorNarinfos writes what the server has been given into root.
func (s *stocked) mirrorNarinfos(root string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	errs := []error{os.WriteFile(filepath.Join(root, "nix-cache-info"), []byte("StoreDir: /nix/store\n"), 0o644)}
	for _, p := range s.paths {
		errs = append(errs, os.WriteFile(filepath.Join(root, p.narinfo), p.text, 0o644))
	}
	return errors.Join(errs...)
}

var wrkP99 = regexp.MustCompile(`(?m)^\s*99%\s+([0-9.]+[a-z]+)$`)

// wrkLatency returns the 99th percentile, in milliseconds, of one connection's requests.
func (b *bench) wrkLatency(ctx context.Context, server *child, script, paths string) (float64, error) {
	cmd := exec.CommandContext(ctx, "wrk", "-t1", "-c1", "--timeout", "30s", "--latency", fmt.Sprintf("-d%ds", b.seconds), "-s", script, server.url, "--", paths)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	p99 := wrkP99.FindSubmatch(out)
	if failed := wrkErrors.Find(out); failed != nil || p99 == nil {
		return 0, fmt.Errorf("wrk: %s\n%s", failed, out)
	}
	d, err := time.ParseDuration(string(p99[1]))
	return d.Seconds() * 1e3, err
}

// A stocked server has the corpus, in the bucket.
type stocked struct {
	*child
	paths, sources []storePath // all, and those with a NAR of their own
	narinfos, nars []file
}

func (b *bench) startStocked(ctx context.Context) (_ *stocked, err error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	paths, repo := distinct(gens, byNarinfo), b.repository("stocked")
	s := &stocked{paths: paths, sources: distinct(gens, byNAR)}
	if s.child, err = b.serveRepository(ctx, repo, b.splitter); err != nil {
		return nil, err
	}
	b.progress("storing %d paths", len(paths))
	if err := copyTo(ctx, s.url, paths, b.parallel); err != nil {
		s.kill()
		return nil, err
	}
	next, err := b.restart(ctx, s.child, repo, b.splitter)
	if err != nil {
		s.kill()
		return nil, err
	}
	s.child = next
	for _, p := range paths {
		url, size, err := lookUp(ctx, s.url, p)
		if err != nil {
			s.kill()
			return nil, err
		}
		s.narinfos = append(s.narinfos, file{path: "/" + p.narinfo})
		s.nars = append(s.nars, file{path: strings.TrimPrefix(url, s.url), size: size})
	}
	return s, nil
}

func (s *stocked) addr() string { return strings.TrimPrefix(s.url, "http://") }

// getNarinfos gets narinfos over one connection, and returns how many.
func (s *stocked) getNarinfos(ctx context.Context, seed uint64, until time.Time) (n int64, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.addr())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reader, random := bufio.NewReader(conn), rand.New(rand.NewPCG(seed, 0))
	for time.Now().Before(until) {
		f := s.narinfos[random.IntN(len(s.narinfos))]
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", f.path, s.addr()); err != nil {
			return n, err
		}
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return n, fmt.Errorf("GET %s: %w", f.path, err)
		}
		if size, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK || size < 100 {
			return n, fmt.Errorf("GET %s: %s, %d bytes: %w", f.path, resp.Status, size, err)
		}
		n++
	}
	return n, nil
}

// uploadUntil uploads paths that nobody has, with their narinfos, one after the other,
// until then, or ctx ends if that is zero. It returns the bytes of their NARs.
func (s *stocked) uploadUntil(ctx context.Context, client int, until time.Time) (total int64, err error) {
	for i := 0; until.IsZero() || time.Now().Before(until); i++ {
		nar, sum := newBigNAR(s.sources, client<<20|i, loadNAR), sha256.New()
		size, name := bigNARSize(loadNAR), fmt.Sprintf("nar/load-%d-%d.nar", client, i)
		err := put(ctx, s.url+"/"+name, io.TeeReader(nar, sum), size)
		nar.Close()
		if err != nil {
			return total, err
		}
		hash := [sha256.Size]byte(sum.Sum(nil))
		path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(hash[:20]) + "-load")
		if err != nil {
			return total, err
		}
		info := &narinfo.NarInfo{StorePath: path, URL: name, Compression: "none", NarHash: hash, NarSize: uint64(size)}
		text := info.Text("/nix/store")
		if err := put(ctx, s.url+"/"+path.HashPart()+".narinfo", strings.NewReader(text), int64(len(text))); err != nil {
			return total, err
		}
		total += size
	}
	return total, nil
}
