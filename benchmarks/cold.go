package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/narinfo"
)

const (
	coldSize  = 100e6 // bytes of the NAR that is served
	crowd     = 64    // NARs that are served at once
	crowdSize = 25e6  // bytes of each
)

// cold measures downloads from a dedupd whose bucket is on MinIO: what they cost in
// requests, how fast they are beside one object of the same bytes, and beside a dedupd
// whose bucket is a directory, and what memory many at once take.
func cold(ctx context.Context, b *bench) ([]row, error) {
	store, err := b.startMinIO(ctx)
	if err != nil {
		return nil, err
	}
	defer store.kill()
	b.serveFlags += " --scrub-rate 0" // which reads, too
	remote, local := b.repository("s3"), b.repository("dir")
	if remote.url, err = b.newBucket(ctx, store, "dedupd-bucket"); err != nil {
		return nil, err
	}
	b.progress("storing %d NARs", 1+crowd)
	paths, err := b.fill(ctx, remote, coldSize, 1+crowd)
	if err != nil {
		return nil, err
	}
	if _, err := b.fill(ctx, local, coldSize, 1); err != nil {
		return nil, err
	}
	rows, err := b.coldRounds(ctx, store, remote, local, paths[0])
	if err != nil {
		return nil, err
	}
	more, err := b.coldCrowd(ctx, remote, paths[1:])
	return append(rows, more...), err
}

// fill stores NARs of random bytes in a repository, the first of size bytes, and returns
// the paths of their URLs.
func (b *bench) fill(ctx context.Context, r repository, size int, n int) (paths []string, err error) {
	server, err := b.serveRepository(ctx, r, b.splitter)
	if err != nil {
		return nil, err
	}
	defer server.kill()
	for i := range n {
		path, err := putRandom(ctx, server.url, size, uint64(i))
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
		size = crowdSize
	}
	_, err = server.stop() // which seals and uploads what there is
	return paths, err
}

// putRandom uploads a NAR of random bytes, and returns the path of its URL.
func putRandom(ctx context.Context, base string, size int, seed uint64) (string, error) {
	contents := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed), 1}).Read(contents)
	head, tail := bigNARFrame(int64(size))
	nar := append(append([]byte(head), contents...), tail...)
	sum := sha256.Sum256(nar)
	name := narinfo.EncodeNix32(sum[:])
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(sum[:20]) + "-random")
	if err != nil {
		return "", err
	}
	info := &narinfo.NarInfo{StorePath: path, URL: "nar/" + name + ".nar", Compression: "none", NarHash: sum, NarSize: uint64(len(nar))}
	if err := put(ctx, base+"/"+info.URL, bytes.NewReader(nar), int64(len(nar))); err != nil {
		return "", err
	}
	text := info.Text("/nix/store")
	at := base + "/" + path.HashPart() + ".narinfo"
	if err := put(ctx, at, strings.NewReader(text), int64(len(text))); err != nil {
		return "", err
	}
	resp, err := get(ctx, at)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return "/" + fields(got)["URL"], err
}

// coldRounds has curl download a NAR that is not cached, then again, then the same bytes
// as one object, and then the NAR from the other repository.
func (b *bench) coldRounds(ctx context.Context, store *child, remote, local repository, path string) ([]row, error) {
	directory, err := b.serveRepository(ctx, local, b.splitter)
	if err != nil {
		return nil, err
	}
	defer directory.kill()
	object, err := b.putObject(ctx, store, directory.url+path)
	if err != nil {
		return nil, err
	}
	var colds, hots, objects, directories, first, objectFirst, gets, hotGets []float64
	for i := range b.rounds {
		if err := os.RemoveAll(filepath.Join(remote.state, "cache")); err != nil {
			return nil, err
		}
		server, err := b.serveRepository(ctx, remote, b.splitter)
		if err != nil {
			return nil, err
		}
		for _, c := range []struct {
			url                   string
			speeds, firsts, count *[]float64
		}{
			{server.url + path, &colds, &first, &gets}, {object, &objects, &objectFirst, nil},
			{server.url + path, &hots, nil, &hotGets}, {directory.url + path, &directories, nil, nil},
		} {
			before, err := bucketGets(ctx, server.url)
			if err != nil {
				server.kill()
				return nil, err
			}
			speed, early, err := curl(ctx, c.url)
			if err == nil && c.count != nil {
				var after float64
				after, err = bucketGets(ctx, server.url)
				*c.count = append(*c.count, after-before)
			}
			if err != nil {
				server.kill()
				return nil, err
			}
			*c.speeds = append(*c.speeds, speed)
			if c.firsts != nil {
				*c.firsts = append(*c.firsts, early)
			}
		}
		if _, err := server.stop(); err != nil {
			return nil, err
		}
		b.progress("round %d of %d: cold %.0f MB/s and %.0f requests, hot %.0f and %.0f, one object %.0f, directory %.0f MB/s",
			i+1, b.rounds, colds[i], gets[i], hots[i], hotGets[i], objects[i], directories[i])
	}
	return []row{
		{What: "GET and HEAD for a cold NAR of 100 MB", Unit: "requests", Value: median(gets), Target: atMost(10)},
		{What: "GET and HEAD for the same NAR, hot", Unit: "requests", Value: median(hotGets), Target: atMost(0)},
		compare("cold NAR of 100 MB", "MB/s", colds, "one object from MinIO", objects, atLeast(0.5)),
		compare("hot NAR of 100 MB", "MB/s", hots, "directory bucket", directories, nil),
		compare("first byte of a cold NAR", "ms", first, "one object from MinIO", objectFirst, nil),
	}, nil
}

// putObject stores what is at url as one object in MinIO, and returns where curl finds it.
func (b *bench) putObject(ctx context.Context, store *child, url string) (string, error) {
	resp, err := get(ctx, url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	c, err := minio.New(strings.TrimPrefix(store.url, "http://"), &minio.Options{Creds: credentials.NewStaticV4(minioUser, minioPassword, "")})
	if err != nil {
		return "", err
	}
	if err := c.MakeBucket(ctx, "one-object", minio.MakeBucketOptions{}); err != nil {
		return "", err
	}
	if _, err := c.PutObject(ctx, "one-object", "nar", resp.Body, resp.ContentLength, minio.PutObjectOptions{DisableMultipart: true}); err != nil {
		return "", err
	}
	signed, err := c.PresignedGetObject(ctx, "one-object", "nar", time.Hour, nil)
	if err != nil {
		return "", err
	}
	return signed.String(), nil
}

// curl downloads url, and returns MB/s and the milliseconds until the first byte.
func curl(ctx context.Context, url string) (speed, first float64, err error) {
	out, err := exec.CommandContext(ctx, "curl", "--silent", "--show-error", "--fail", "--output", "/dev/null",
		"--write-out", "%{size_download} %{time_total} %{time_starttransfer}", url).Output()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return 0, 0, fmt.Errorf("curl: %w: %s", err, e.Stderr)
	} else if err != nil {
		return 0, 0, err
	}
	var size, total float64
	if _, err := fmt.Sscan(string(out), &size, &total, &first); err != nil {
		return 0, 0, fmt.Errorf("curl says %q: %w", out, err)
	}
	return size / 1e6 / total, 1000 * first, nil
}

// bucketGets returns how many requests of the kind that GET is a server has sent to its
// bucket, by its metrics.
func bucketGets(ctx context.Context, base string) (n float64, err error) {
	resp, err := get(ctx, base+"/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	found := false
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name == `dedupd_bucket_requests_total{method="get"}` || name == `dedupd_bucket_requests_total{method="head"}` {
			var v float64
			if _, err := fmt.Sscan(value, &v); err != nil {
				return 0, err
			}
			n, found = n+v, true
		}
	}
	if !found {
		return 0, errors.New("the metrics do not count the requests to the bucket")
	}
	return n, lines.Err()
}

// coldCrowd downloads NARs that are not cached all at once, from a new server.
func (b *bench) coldCrowd(ctx context.Context, r repository, paths []string) ([]row, error) {
	if err := os.RemoveAll(filepath.Join(r.state, "cache")); err != nil {
		return nil, err
	}
	server, err := b.serveRepository(ctx, r, b.splitter)
	if err != nil {
		return nil, err
	}
	defer server.kill()
	before, err := bucketGets(ctx, server.url)
	if err != nil {
		return nil, err
	}
	sampling, stop := context.WithCancel(ctx)
	defer stop()
	sampled := make(chan int64)
	go func() { sampled <- server.peakMemory(sampling) }()
	start := time.Now()
	group, downloading := errgroup.WithContext(ctx)
	for _, path := range paths {
		group.Go(func() error {
			resp, err := get(downloading, server.url+path)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body) // which fails if there is less than was announced
			return err
		})
	}
	err = group.Wait()
	took := time.Since(start)
	stop()
	peak := <-sampled
	if err != nil {
		return nil, err
	}
	after, err := bucketGets(ctx, server.url)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("%d cold NARs of 25 MB at once", len(paths))
	return []row{
		{What: "peak RssAnon, " + what, Unit: "MB", Value: float64(peak) / 1e6, Target: atMost(512)},
		{What: "GET and HEAD for each, " + what, Unit: "requests", Value: (after - before) / float64(len(paths))},
		{What: what, Unit: "MB/s", Value: float64(len(paths)) * crowdSize / 1e6 / took.Seconds()},
	}, nil
}
