package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
)

// puts uploads the corpus to a dedupd whose bucket is on MinIO, once for each way to
// acknowledge, and counts what that sends to MinIO from its start to its end: the first
// probe, every pack, and the last one, which the end of the server seals.
func puts(ctx context.Context, b *bench) ([]row, error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	paths := float64(len(distinct(gens, byNarinfo)))
	store, err := b.startMinIO(ctx)
	if err != nil {
		return nil, err
	}
	defer store.kill()
	var rows []row
	for _, ack := range []string{"spool", "bucket"} {
		sent, took, err := b.copyAll(ctx, store, ack, gens)
		if err != nil {
			return nil, fmt.Errorf("ack = %s: %w", ack, err)
		}
		b.progress("ack = %s: %+v in %v", ack, sent, took)
		count := float64(sent.Put + sent.List)
		r := row{What: fmt.Sprintf("PUT and LIST per store path (%.0f / %.0f), ack = %s", count, paths, ack), Unit: "requests", Value: count / paths}
		if ack == "spool" {
			r.Target = atMost(0.05)
		}
		rows = append(rows, r, row{What: "uploading the corpus, ack = " + ack, Unit: "s", Value: took.Seconds()})
	}
	return rows, nil
}

// copyAll uploads the generations one after another to a new repository, in a bucket of
// its own, and returns what that has sent to the bucket.
func (b *bench) copyAll(ctx context.Context, store *child, ack string, gens []generation) (sent bucket.Requests, took time.Duration, err error) {
	repo := b.repository(ack)
	if repo.url, err = b.newBucket(ctx, store, ack+"-bucket"); err != nil {
		return sent, 0, err
	}
	run := *b
	run.serveFlags += " --ack " + ack
	server, err := run.serveRepository(ctx, repo, b.splitter)
	if err != nil {
		return sent, 0, err
	}
	defer server.kill()
	start := time.Now()
	for _, g := range gens {
		if err := copyInOrder(ctx, server.url, g.paths, b.parallel); err != nil {
			return sent, 0, err
		}
	}
	took = time.Since(start)
	if _, err := server.stop(); err != nil {
		return sent, 0, err
	}
	text, err := os.ReadFile(filepath.Join(repo.state, "requests.json"))
	if err != nil {
		return sent, 0, err
	}
	var stats chunkstore.RequestStats
	err = json.Unmarshal(text, &stats)
	return stats.Process, took, err
}

// copyInOrder uploads paths as nix copy does up to 2.34: each when those that it refers
// to are there.
func copyInOrder(ctx context.Context, base string, paths []storePath, parallel int) error {
	done := map[string]chan struct{}{}
	for _, p := range paths {
		done[strings.TrimSuffix(p.narinfo, ".narinfo")] = make(chan struct{})
	}
	slots := make(chan struct{}, parallel)
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range paths {
		self := strings.TrimSuffix(p.narinfo, ".narinfo")
		group.Go(func() error {
			for _, ref := range strings.Fields(fields(p.text)["References"]) {
				hashPart, _, _ := strings.Cut(ref, "-")
				before := done[hashPart]
				if before == nil || hashPart == self {
					continue
				}
				select {
				case <-before:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				return ctx.Err()
			}
			defer close(done[self])
			return copyTo(ctx, base, []storePath{p}, 1)
		})
	}
	return group.Wait()
}

// What MinIO is started with. Nobody else can reach it.
const (
	minioUser     = "dedupd"
	minioPassword = "dedupd-secret"
)

// startMinIO starts an object store on loopback, with its data in the work directory.
func (b *bench) startMinIO(ctx context.Context) (*child, error) {
	binary, err := exec.LookPath("minio")
	if err != nil {
		return nil, errors.New("minio is not installed: run scripts/with-deps")
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, "server", "--quiet", "--address", addr, filepath.Join(b.work, "minio"))
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+minioUser, "MINIO_ROOT_PASSWORD="+minioPassword, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "HOME="+b.work)
	return startChild(ctx, cmd, addr, "/minio/health/ready", filepath.Join(b.work, "minio.log"), syscall.SIGTERM)
}

// newBucket makes a bucket and returns its URL for dedupd.
func (b *bench) newBucket(ctx context.Context, store *child, name string) (string, error) {
	c, err := minio.New(strings.TrimPrefix(store.url, "http://"), &minio.Options{Creds: credentials.NewStaticV4(minioUser, minioPassword, "")})
	if err != nil {
		return "", err
	}
	if err := c.MakeBucket(ctx, name, minio.MakeBucketOptions{}); err != nil {
		return "", err
	}
	file := filepath.Join(b.work, "credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", minioUser, minioPassword)
	q := url.Values{"endpoint": {store.url}, "region": {"us-east-1"}, "style": {"path"}, "credentials": {file}}
	return "s3://" + name + "?" + q.Encode(), os.WriteFile(file, []byte(text), 0o600)
}
