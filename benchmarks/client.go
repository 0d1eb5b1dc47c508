package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"

	"golang.org/x/sync/errgroup"
)

// client speaks to dedupd as Nix does: no compression of its own.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}

// put uploads size bytes.
func put(ctx context.Context, url string, body io.Reader, size int64) error {
	req, err := http.NewRequestWithContext(ctx, "PUT", url, body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	message, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("PUT %s: %s: %s", url, resp.Status, message)
	}
	return nil
}

// exists asks with HEAD whether the cache has url.
func exists(ctx context.Context, url string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, "HEAD", url, nil)
	if err != nil {
		return false, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("HEAD %s: %s", url, resp.Status)
}

// get opens a response's body; the caller closes it.
func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return resp, nil
}

// putNAR uploads p's NAR as it lies on disk.
func putNAR(ctx context.Context, base string, p storePath) error {
	f, err := os.Open(p.file)
	if err != nil {
		return err
	}
	defer f.Close()
	return put(ctx, base+"/"+p.nar, f, p.narSize)
}

// copyTo uploads paths as nix copy does: narinfos and NARs that are there are skipped.
func copyTo(ctx context.Context, base string, paths []storePath, parallel int) error {
	return each(ctx, paths, parallel, func(ctx context.Context, p storePath) error {
		if there, err := exists(ctx, base+"/"+p.narinfo); there || err != nil {
			return err
		}
		there, err := exists(ctx, base+"/"+p.nar)
		if err != nil {
			return err
		}
		if !there {
			if err := putNAR(ctx, base, p); err != nil {
				return err
			}
		}
		return put(ctx, base+"/"+p.narinfo, bytes.NewReader(p.text), int64(len(p.text)))
	})
}

// each calls fn for all paths, some at once, until one call fails.
func each(ctx context.Context, paths []storePath, parallel int, fn func(context.Context, storePath) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, p := range paths {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return fn(ctx, p)
		})
	}
	return group.Wait()
}
