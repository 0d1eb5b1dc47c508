package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

const pullSize = 100 << 20 // bytes of the NAR that is pulled

// An origin is an upstream with one NAR, which is another in each round.
type origin struct {
	mu    sync.Mutex
	info  *narinfo.NarInfo
	nar   []byte
	first time.Time // when the last answer with it began
}

// renew makes another NAR, of random bytes.
func (o *origin) renew() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	contents := make([]byte, pullSize)
	rand.Read(contents)
	var buf bytes.Buffer
	w := nar.NewWriter(&buf)
	if err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: pullSize}); err != nil {
		return err
	}
	if _, err := w.Write(contents); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	o.nar = buf.Bytes()
	sum := sha256.Sum256(o.nar)
	name := narinfo.EncodeNix32(sum[:])
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(sum[:20]) + "-pulled")
	o.info = &narinfo.NarInfo{StorePath: path, URL: "nar/" + name + ".nar", Compression: "none", NarHash: sum, NarSize: uint64(len(o.nar))}
	return err
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch strings.TrimPrefix(r.URL.Path, "/") {
	case o.info.StorePath.HashPart() + ".narinfo":
		io.WriteString(w, o.info.Text("/nix/store"))
	case o.info.URL:
		w.Header().Set("Content-Length", fmt.Sprint(len(o.nar)))
		o.first = time.Now()
		w.Write(o.nar)
	default:
		http.NotFound(w, r)
	}
}

// pulls measures what it costs to get a NAR through dedupd that only an upstream has: how
// long after the upstream's first byte the client's comes, and how fast the rest.
func pulls(ctx context.Context, b *bench) ([]row, error) {
	o := new(origin)
	upstream := httptest.NewServer(o)
	defer upstream.Close()
	config := filepath.Join(b.work, "pull.toml")
	text := fmt.Sprintf("[[upstream]]\nurl = %q\ntrust = true\n", upstream.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	b.serveFlags += " --config " + config
	dedupd, err := b.serveRepository(ctx, b.repository("pull"), b.splitter)
	if err != nil {
		return nil, err
	}
	defer dedupd.kill()
	var first, through, direct []float64
	for i := range b.rounds {
		if err := o.renew(); err != nil {
			return nil, err
		}
		_, speed, err := o.download(ctx, upstream.URL)
		if err != nil {
			return nil, err
		}
		direct = append(direct, speed)
		wait, speed, err := o.download(ctx, dedupd.url)
		if err != nil {
			return nil, err
		}
		first, through = append(first, float64(wait)/1e6), append(through, speed)
		b.progress("round %d of %d: first byte after %v, %.0f, direct %.0f MB/s", i+1, b.rounds, wait, speed, direct[i])
	}
	return []row{
		{What: "first byte after the upstream's", Unit: "ms", Value: median(first), Target: atMost(50)},
		compare("a NAR of 100 MiB that nobody has pulled", "MB/s", through, "direct", direct, nil),
	}, nil
}

// download gets the path from a cache. It returns how long after the origin's first byte
// its own first one came, and MB/s.
func (o *origin) download(ctx context.Context, url string) (time.Duration, float64, error) {
	resp, err := get(ctx, url+"/"+o.info.StorePath.HashPart()+".narinfo")
	if err != nil {
		return 0, 0, err
	}
	resp.Body.Close()
	start := time.Now()
	if resp, err = get(ctx, url+"/"+o.info.URL); err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		return 0, 0, err
	}
	arrived := time.Now()
	n, err := io.Copy(io.Discard, resp.Body)
	spent := time.Since(start)
	if err == nil && n+1 != int64(len(o.nar)) {
		err = errors.New("another length")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("download %s from %s: %w", o.info.URL, url, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return arrived.Sub(o.first), float64(n) / 1e6 / spent.Seconds(), nil
}
