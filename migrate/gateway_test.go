package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// A counted server counts requests by method, and lets before answer instead.
type counted struct {
	*httptest.Server
	before func(w http.ResponseWriter, r *http.Request) bool
	mu     sync.Mutex
	n      map[string]int
}

func count(t *testing.T, h http.Handler) *counted {
	c := &counted{n: map[string]int{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.n[r.Method]++
		c.mu.Unlock()
		if c.before == nil || !c.before(w, r) {
			h.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// take returns how many requests of a method there were since the last call.
func (c *counted) take(method string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.n[method]
	c.n[method] = 0
	return n
}

func openGateway(t *testing.T, url string) *Gateway {
	t.Helper()
	g, err := OpenGateway(t.Context(), GatewayOptions{URL: url, Temp: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// runInto is run into any sink.
func runInto(t *testing.T, sink Sink, source upstream.Source, opts Options) (*Report, []Skip) {
	t.Helper()
	var skipped []Skip
	opts.Skipped = func(s Skip) { skipped = append(skipped, s) }
	opts.Warn = func(msg string, args ...any) { t.Log(append([]any{msg}, args...)...) }
	report, err := Import(t.Context(), sink, source, opts, new(Progress))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(skipped, func(a, b Skip) int { return strings.Compare(a.Name, b.Name) })
	return report, skipped
}

// TestGateway imports a cache, of which some is damaged, into a gateway that fails now and then.
func TestGateway(t *testing.T) {
	key, err := narinfo.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCache(t)
	var all []*narinfo.NarInfo
	for _, typ := range []compression.Type{compression.XZ, compression.Zstd, compression.None, compression.Gzip, compression.Brotli, compression.LZ4} {
		all = append(all, c.add(typ, func(info *narinfo.NarInfo) {
			for _, other := range all {
				info.References = append(info.References, other.StorePath)
			}
			info.Sign(chunkstore.DefaultStoreDir, key)
		}))
	}
	all = append(all, c.addNAR(bzip2Plain(t), compression.Bzip2))
	shared := makeNAR(t, 1000)
	for range 3 {
		all = append(all, c.addNAR(shared, compression.XZ))
	}
	damaged := c.add(compression.XZ)
	text, err := os.ReadFile(filepath.Join(c.dir, damaged.URL))
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	c.write(damaged.URL, text)
	gone := c.add(compression.None)
	if err := os.Remove(filepath.Join(c.dir, gone.URL)); err != nil {
		t.Fatal(err)
	}
	wrong := c.add(compression.None, func(info *narinfo.NarInfo) { info.NarHash[0] ^= 1 })
	c.write("log/"+strings.Repeat("0", 32)+"-x.drv", []byte("built\n"))

	s := openStore(t)
	log := slog.New(slog.DiscardHandler)
	server := count(t, gateway.New(s, gateway.Config{Log: log}))
	var requests atomic.Int64
	server.before = func(w http.ResponseWriter, r *http.Request) bool {
		if requests.Add(1)%20 > 0 {
			return false
		}
		w.WriteHeader(http.StatusBadGateway)
		return true
	}
	source := upstream.NewDir(c.dir, chunkstore.DefaultStoreDir)
	if r, _ := runInto(t, openGateway(t, server.URL), source, Options{DryRun: true}); r.Imported != int64(len(all)+3) || server.take("PUT") > 0 {
		t.Errorf("dry run: got %+v", r)
	}
	report, skipped := runInto(t, openGateway(t, server.URL), source, Options{})
	want := map[string]Reason{damaged.StorePath.String(): BadNAR, gone.StorePath.String(): NoNAR, wrong.StorePath.String(): BadNAR}
	for _, skip := range skipped {
		if want[skip.Name] != skip.Reason {
			t.Errorf("left out: %+v, want %q", skip, want[skip.Name])
		}
	}
	if len(skipped) != len(want) || report.Imported != int64(len(all)) || report.Shared != 2 || report.Files != 1 || report.Incomplete != 0 {
		t.Errorf("got %+v, %v", report, skipped)
	}
	for _, info := range all {
		c.check(s, info)
	}
	server.before = nil
	server.take("PUT")
	server.take("POST")
	report, _ = runInto(t, openGateway(t, server.URL), source, Options{})
	if puts, posts := server.take("PUT"), server.take("POST"); report.Imported != 0 || report.Present != int64(len(all)) || puts != 0 || posts != 1 {
		t.Errorf("again: got %+v with %d PUTs and %d questions", report, puts, posts)
	}
	report, _ = runInto(t, openGateway(t, server.URL), source, Options{Closure: true, Paths: listOf([]string{all[5].StorePath.HashPart()})})
	if posts := server.take("POST"); report.Present != 6 || posts != 2 {
		t.Errorf("a closure: got %+v with %d questions", report, posts)
	}
	for _, info := range []*narinfo.NarInfo{damaged, wrong} {
		if has, err := s.HasPath(t.Context(), info.StorePath.HashPart()); has || err != nil {
			t.Errorf("%s is there, %v", info.StorePath, err)
		}
	}

	r, err := ImportStream(t.Context(), openGateway(t, server.URL), strings.NewReader(string(c.stream(all[0], gone))), Options{}, new(Progress))
	if err != nil || r.Present != 1 || r.Imported != 1 {
		t.Errorf("a stream: got %+v, %v", r, err)
	}
	c.check(s, gone)
}

// TestGatewayRefuses has a gateway that takes only what somebody has signed.
func TestGatewayRefuses(t *testing.T) {
	key, err := narinfo.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCache(t)
	signed := c.add(compression.XZ, func(info *narinfo.NarInfo) { info.Sign(chunkstore.DefaultStoreDir, key) })
	c.add(compression.XZ)
	s := openStore(t)
	log := slog.New(slog.DiscardHandler)
	server := count(t, gateway.New(s, gateway.Config{Log: log, TrustedKeys: []narinfo.PublicKey{key.Public()}}))
	source := upstream.NewDir(c.dir, chunkstore.DefaultStoreDir)
	report, skipped := runInto(t, openGateway(t, server.URL), source, Options{})
	if report.Imported != 1 || len(skipped) != 1 || skipped[0].Reason != Refused {
		t.Errorf("got %+v, %v", report, skipped)
	}
	c.check(s, signed)

	server.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			w.WriteHeader(http.StatusUnauthorized)
		}
		return r.Method == http.MethodPut
	}
	c.add(compression.XZ)
	if _, err := Import(t.Context(), openGateway(t, server.URL), source, Options{}, new(Progress)); err == nil {
		t.Error("without rights: no error")
	}
	for _, url := range []string{"http://127.0.0.1:1", "ftp://x", "http://u@x"} {
		if _, err := OpenGateway(t.Context(), GatewayOptions{URL: url}); err == nil {
			t.Errorf("%s: no error", url)
		}
	}
}

// TestGatewayInterrupted ends an import many times. No more NARs are sent again than were on their
// way.
func TestGatewayInterrupted(t *testing.T) {
	c := newCache(t)
	const paths, jobs = 30, 4
	for range paths {
		c.add(compression.XZ)
	}
	s := openStore(t)
	server := count(t, gateway.New(s, gateway.Config{Log: slog.New(slog.DiscardHandler)}))
	source := &brokenSource{Dir: upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), opened: map[string]int{}}
	runs := 0
	for err := errors.New("none yet"); err != nil; runs++ {
		ctx, cancel := context.WithCancel(t.Context())
		source.cancel = cancel
		source.left.Store(8)
		_, err = Import(ctx, openGateway(t, server.URL), source, Options{Jobs: jobs}, new(Progress))
		cancel()
		if runs > paths {
			t.Fatal(err)
		}
	}
	total := 0
	for _, n := range source.opened {
		total += n
	}
	if total > paths+runs*jobs {
		t.Errorf("%d NARs were opened in %d runs of %d jobs, there are %d", total, runs, jobs, paths)
	}
}

// TestPlainCache imports into a cache that is no dedupd, and from there.
func TestPlainCache(t *testing.T) {
	dir := t.TempDir()
	server := count(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := filepath.Join(dir, filepath.FromSlash(r.URL.Path))
		switch r.Method {
		case http.MethodPut:
			text, err := io.ReadAll(r.Body)
			if err := errors.Join(err, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, text, 0o644)); err != nil {
				t.Error(err)
			}
			w.WriteHeader(http.StatusCreated)
		case http.MethodPost:
			w.WriteHeader(http.StatusMethodNotAllowed)
		default:
			http.ServeFile(w, r, name)
		}
	}))
	c := newCache(t)
	all := []*narinfo.NarInfo{c.add(compression.XZ), c.add(compression.None)}
	c.write("log/x.drv", []byte("built\n"))
	for i := range 2 {
		r, skipped := runInto(t, openGateway(t, server.URL), upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{})
		if r.Imported+r.Present != 2 || r.Present != int64(2*i) || len(skipped) > 0 {
			t.Errorf("got %+v, %v", r, skipped)
		}
	}
	s := openStore(t)
	if r, skipped := run(t, s, upstream.NewDir(dir, chunkstore.DefaultStoreDir), Options{}); r.Imported != 2 || r.Files != 1 || r.Renamed != 0 || len(skipped) > 0 {
		t.Errorf("from there: got %+v, %v", r, skipped)
	}
	for _, info := range all {
		c.check(s, info)
		want := info.Text(chunkstore.DefaultStoreDir)
		if got, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%s.narinfo", info.StorePath.HashPart()))); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}
