package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// A file is something that both servers have, below their roots.
type file struct {
	path string // with a slash at the start
	size int64
}

// rivals are a dedupd and an nginx that serve the same bytes.
type rivals struct {
	dedupd, nginx *child
	nars          []file
	narinfos      []file
}

func (r *rivals) kill() {
	r.dedupd.kill()
	r.nginx.kill()
}

// startRivals stores the corpus in a dedupd, and starts an nginx on what it serves.
func startRivals(ctx context.Context, b *bench) (_ *rivals, err error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	paths := distinct(gens, byNarinfo)
	repo := b.repository("serve")
	r := new(rivals)
	if r.dedupd, err = b.serveRepository(ctx, repo, b.splitter); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.dedupd.kill()
		}
	}()
	b.progress("storing %d paths", len(paths))
	if err := copyTo(ctx, r.dedupd.url, paths, b.parallel); err != nil {
		return nil, err
	}
	// After a restart everything comes from packs in the bucket.
	next, err := b.restart(ctx, r.dedupd, repo, b.splitter)
	if err != nil {
		return nil, err
	}
	r.dedupd = next
	root := filepath.Join(b.work, "www")
	if err := r.mirror(ctx, paths, root); err != nil {
		return nil, err
	}
	if r.nginx, err = b.startNginx(ctx, root); err != nil {
		return nil, err
	}
	return r, nil
}

// mirror downloads what dedupd serves of paths into root.
func (r *rivals) mirror(ctx context.Context, paths []storePath, root string) error {
	if err := os.MkdirAll(filepath.Join(root, "nar"), 0o755); err != nil {
		return err
	}
	if _, err := r.download(ctx, root, "/nix-cache-info"); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, p := range paths {
		narinfo, err := r.download(ctx, root, "/"+p.narinfo)
		if err != nil {
			return err
		}
		r.narinfos = append(r.narinfos, narinfo)
		url, _, err := lookUp(ctx, r.dedupd.url, p)
		if err != nil {
			return err
		}
		path := strings.TrimPrefix(url, r.dedupd.url)
		if seen[path] {
			continue
		}
		seen[path] = true
		nar, err := r.download(ctx, root, path)
		if err != nil {
			return err
		}
		r.nars = append(r.nars, nar)
	}
	return nil
}

func (r *rivals) download(ctx context.Context, root, path string) (file, error) {
	resp, err := get(ctx, r.dedupd.url+path)
	if err != nil {
		return file{}, err
	}
	defer resp.Body.Close()
	f, err := os.Create(filepath.Join(root, path))
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	n, err := io.Copy(f, resp.Body)
	if err != nil {
		return file{}, fmt.Errorf("download %s: %w", path, err)
	}
	return file{path: path, size: n}, f.Close()
}

// serve measures the bytes a second that one and 16 connections get, in random order,
// from each server in turn.
func serve(ctx context.Context, b *bench) ([]row, error) {
	r, err := startRivals(ctx, b)
	if err != nil {
		return nil, err
	}
	defer r.kill()
	var rows []row
	for _, connections := range []int{1, 16} {
		var dedupd, nginx []float64
		for i := range b.rounds {
			for _, c := range []struct {
				server *child
				speeds *[]float64
			}{{r.dedupd, &dedupd}, {r.nginx, &nginx}} {
				speed, err := b.fetch(ctx, c.server, r.nars, connections, uint64(i))
				if err != nil {
					return nil, err
				}
				*c.speeds = append(*c.speeds, speed)
			}
			b.progress("connections: %d, round %d of %d: %.0f, nginx %.0f MB/s", connections, i+1, b.rounds, dedupd[i], nginx[i])
		}
		what := fmt.Sprintf(".nar.zst, %d connections", connections)
		if connections == 1 {
			what = ".nar.zst, 1 connection"
		}
		rows = append(rows, compare(what, "MB/s", dedupd, "nginx", nginx, atLeast(0.5)))
	}
	var total int64
	for _, f := range r.nars {
		total += f.size
	}
	return append(rows, row{What: fmt.Sprintf("volume of %d files", len(r.nars)), Unit: "MB", Value: float64(total) / 1e6}), nil
}

// fetch returns the MB/s that a number of connections get together.
func (b *bench) fetch(ctx context.Context, server *child, files []file, connections int, seed uint64) (float64, error) {
	group, ctx := errgroup.WithContext(ctx)
	counts := make([]int64, connections)
	start := time.Now()
	until := start.Add(time.Duration(b.seconds) * time.Second)
	for i := range connections {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		group.Go(func() (err error) {
			counts[i], err = fetchUntil(ctx, strings.TrimPrefix(server.url, "http://"), files, random, until)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	spent := time.Since(start)
	var total int64
	for _, n := range counts {
		total += n
	}
	return float64(total) / 1e6 / spent.Seconds(), nil
}

// fetchUntil gets files over one connection, and counts the bytes of their bodies. It
// is written for little CPU of its own, since it shares the machine with the servers.
func fetchUntil(ctx context.Context, addr string, files []file, random *rand.Rand, until time.Time) (total int64, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reader := bufio.NewReaderSize(conn, 16<<10)
	buf := make([]byte, 256<<10) // larger than reader's, so that bodies are read right into it
	for time.Now().Before(until) {
		f := files[random.IntN(len(files))]
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", f.path, addr); err != nil {
			return total, err
		}
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return total, err
		}
		if resp.StatusCode != http.StatusOK || resp.ContentLength != f.size {
			return total, fmt.Errorf("GET %s: %s, %d bytes, want %d", f.path, resp.Status, resp.ContentLength, f.size)
		}
		var n int64
		for err == nil {
			var k int
			k, err = resp.Body.Read(buf)
			n += int64(k)
		}
		if err != io.EOF || n != f.size {
			return total, fmt.Errorf("GET %s: %d of %d bytes: %w", f.path, n, f.size, err)
		}
		total += n
	}
	return total, nil
}
