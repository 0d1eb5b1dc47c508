package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/narinfo"
)

// stored uploads the corpus's generations one after another, and sums up the bucket
// after each: everything in it, packs and what belongs to the repository.
func stored(ctx context.Context, b *bench) ([]row, error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	repo := b.repository("stored")
	server, err := b.serveRepository(ctx, repo, b.splitter)
	if err != nil {
		return nil, err
	}
	defer func() { server.kill() }()

	var rows []row
	var before, xzBefore int64
	var objects int
	seen := make(map[string]bool)
	for i, g := range gens {
		if err := copyTo(ctx, server.url, g.paths, b.parallel); err != nil {
			return nil, err
		}
		// The end of the process seals what is in the spool.
		next, err := b.restart(ctx, server, repo, b.splitter)
		if err != nil {
			return nil, err
		}
		server = next
		size, n, err := measureDir(repo.bucket)
		if err != nil {
			return nil, err
		}
		xz := xzBefore
		for name, size := range g.xz {
			if !seen[name] {
				seen[name] = true
				xz += size
			}
		}
		b.progress("gen%d: %d bytes in %d objects, %d as xz", i, size, n, xz)
		var added, total *target
		if i == 1 {
			added = atMost(0.07)
		}
		if i == len(gens)-1 {
			total = atMost(0.90)
		}
		rows = append(rows,
			compare(fmt.Sprintf("gen%d adds", i), "MB", mb(size-before), ".nar.xz", mb(xz-xzBefore), added),
			compare(fmt.Sprintf("gen0 to gen%d stored", i), "MB", mb(size), ".nar.xz", mb(xz), total))
		before, xzBefore, objects = size, xz, n
	}

	paths := distinct(gens, byNarinfo)
	rows = append(rows, row{
		What: fmt.Sprintf("objects per store path (%d / %d)", objects, len(paths)), Unit: "objects",
		Value: float64(objects) / float64(len(paths)), Target: atMost(0.05),
	})
	if err := each(ctx, paths, b.parallel, func(ctx context.Context, p storePath) error {
		return verify(ctx, server.url, p)
	}); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	b.progress("%d paths came back as they were", len(paths))
	return rows, nil
}

func mb(bytes int64) []float64 { return []float64{float64(bytes) / 1e6} }

// measureDir returns the sizes of all files below dir, and their number.
func measureDir(dir string) (size int64, files int, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
			files++
		}
		return err
	})
	return size, files, err
}

// verify downloads p as the cache's narinfo says, and compares size and hash of what
// the file decodes to with what was uploaded.
func verify(ctx context.Context, base string, p storePath) error {
	url, size, err := lookUp(ctx, base, p)
	if err != nil {
		return err
	}
	resp, err := get(ctx, url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.ContentLength != size {
		return fmt.Errorf("%s: Content-Length is %d, FileSize %d", url, resp.ContentLength, size)
	}
	decoder, err := zstd.NewReader(resp.Body, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer decoder.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, decoder)
	if err != nil {
		return fmt.Errorf("decode %s: %w", url, err)
	}
	if got := narinfo.NewHash(narinfo.SHA256, hash.Sum(nil)).String(); got != p.narHash || n != p.narSize {
		return fmt.Errorf("%s: got %s of %d bytes, want %s of %d", url, got, n, p.narHash, p.narSize)
	}
	return nil
}

// lookUp returns the URL and FileSize in the cache's narinfo of p.
func lookUp(ctx context.Context, base string, p storePath) (url string, size int64, err error) {
	resp, err := get(ctx, base+"/"+p.narinfo)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", 0, err
	}
	f := fields(text)
	if f["Compression"] != "zstd" || f["NarHash"] != p.narHash {
		return "", 0, fmt.Errorf("%s is not what was uploaded:\n%s", p.narinfo, text)
	}
	if _, err := fmt.Sscan(f["FileSize"], &size); err != nil {
		return "", 0, fmt.Errorf("%s: FileSize: %w", p.narinfo, err)
	}
	return base + "/" + f["URL"], size, nil
}
