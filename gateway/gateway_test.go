package gateway_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/pull"
)

const storeDir = "/nix/store"

// A server is a gateway to a fresh store that listens on a port.
type server struct {
	t       testing.TB
	url     string
	host    string
	dir     string
	store   *chunkstore.Store
	gateway *gateway.Gateway
	log     *logBuffer
	client  *http.Client
	stop    func() // ends Serve and waits for it
	close   func() // does the same, checks the store, and closes it
	damaged bool   // the store cannot be checked when the test ends
	pull    *pull.Puller
}

// start starts a server. When the test ends, it is stopped and its store checked.
func start(t testing.TB, change ...func(*gateway.Config)) *server {
	t.Helper()
	return startLimited(t, chunkstore.Limits{}, change...)
}

// startLimited starts a server whose store has limits.
func startLimited(t testing.TB, limits chunkstore.Limits, change ...func(*gateway.Config)) *server {
	t.Helper()
	return startPulling(t, t.TempDir(), limits, nil, change...)
}

// startPulling starts a server in a directory, which may be that of one before it, with
// upstreams, if there are any.
func startPulling(t testing.TB, dir string, limits chunkstore.Limits, upstreams *pull.Config, change ...func(*gateway.Config)) *server {
	t.Helper()
	return startAt(t, "127.0.0.1:0", dir, limits, upstreams, change...)
}

// startAt is startPulling at an address.
func startAt(t testing.TB, addr, dir string, limits chunkstore.Limits, upstreams *pull.Config, change ...func(*gateway.Config)) *server {
	t.Helper()
	s := &server{t: t, dir: dir, log: &logBuffer{}, client: &http.Client{Transport: &http.Transport{
		DisableCompression: true, ExpectContinueTimeout: 5 * time.Second,
	}}}
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(s.dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	s.store, err = chunkstore.Open(t.Context(), chunkstore.Options{
		State: filepath.Join(s.dir, "state"), Bucket: b, Repository: chunkstore.DefaultRepository(storeDir, chunkstore.FastCDC), Log: log, Limits: limits,
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := gateway.Config{Log: log, AccessLog: true}
	if upstreams != nil {
		upstreams.Dir, upstreams.Log = filepath.Join(s.dir, "state", "pulled"), log
		if s.pull, err = pull.New(s.store, *upstreams); err != nil {
			t.Fatal(err)
		}
		cfg.Pull = s.pull
	}
	for _, c := range change {
		c(&cfg)
	}
	s.gateway = gateway.New(s.store, cfg)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s.host = l.Addr().String()
	s.url = "http://" + s.host
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- s.gateway.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		s.client.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if s.pull != nil {
			s.pull.Close()
		}
	})
	s.close = sync.OnceFunc(func() {
		s.stop()
		if !s.damaged {
			s.check()
		}
		if err := s.store.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(func() {
		s.close()
		if t.Failed() {
			t.Logf("log:\n%s", s.log)
		}
	})
	return s
}

// check runs a whole check of the store, which must find nothing.
func (s *server) check() {
	s.t.Helper()
	report, err := s.store.Check(context.WithoutCancel(s.t.Context()), chunkstore.CheckOptions{ReadData: true})
	if err != nil {
		s.t.Errorf("check: %v", err)
	} else if !report.OK() {
		s.t.Errorf("check found %q", report.Problems)
	}
}

// An answer is a response whose body was read.
type answer struct {
	*http.Response
	body []byte
}

func (a *answer) String() string { return fmt.Sprintf("%s: %.300s", a.Status, a.body) }

// do sends a request. Headers are given as "Name: value".
func (s *server) do(method, path string, body []byte, headers ...string) *answer {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: read body: %v", method, path, err)
	}
	return &answer{resp, b}
}

// want is do, with the status that must come.
func (s *server) want(status int, method, path string, body []byte, headers ...string) *answer {
	s.t.Helper()
	a := s.do(method, path, body, headers...)
	if a.StatusCode != status {
		s.t.Errorf("%s %s: got %v, want %d", method, path, a, status)
	}
	return a
}

// A fixture is a NAR that is ready to be uploaded.
type fixture struct {
	nar  []byte
	hash chunkstore.Hash
	path narinfo.StorePath
}

// newFixture makes a NAR of about size random bytes, in files of several sizes, with
// store paths in them.
func newFixture(t testing.TB, seed uint64, size int) *fixture {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	var buf bytes.Buffer
	w := nar.NewWriter(&buf)
	put := func(h *nar.Header, contents []byte) {
		h.Size = int64(len(contents))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(contents); err != nil {
			t.Fatal(err)
		}
	}
	random := make([]byte, size)
	for i := range random {
		random[i] = "0123456789abcdef"[rnd.Uint32()&15]
	}
	for i := 0; i+100 < len(random); i += 40_000 {
		copy(random[i:], "/nix/store/"+strings.Repeat("abcdfghijklmnpqr", 2)+"-glibc-2.40/lib")
		random[i+11] = "0123456789"[seed%10]
	}
	put(&nar.Header{Type: nar.Directory}, nil)
	put(&nar.Header{Path: "big", Type: nar.Regular}, random)
	put(&nar.Header{Path: "link", Type: nar.Symlink, Target: "big"}, nil)
	put(&nar.Header{Path: "tool", Type: nar.Regular, Executable: true}, random[:min(size, 700)])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return fixtureOf(t, buf.Bytes())
}

// fixtureOf returns a NAR with a path of its own.
func fixtureOf(t testing.TB, b []byte) *fixture {
	t.Helper()
	f := &fixture{nar: b, hash: sha256.Sum256(b)}
	var err error
	if f.path, err = narinfo.ParseBaseName(narinfo.EncodeNix32(f.hash[:20]) + "-test"); err != nil {
		t.Fatal(err)
	}
	return f
}

// file returns the name by which Nix uploads b.
func fileName(b []byte, ext string) string {
	sum := sha256.Sum256(b)
	return "nar/" + narinfo.EncodeNix32(sum[:]) + ".nar" + ext
}

func (f *fixture) narInfoURL() string { return "/" + f.path.HashPart() + ".narinfo" }

func (f *fixture) plainURL() string { return "/nar/" + narinfo.EncodeNix32(f.hash[:]) + ".nar" }

// info returns the narinfo as Nix would upload it with a file.
func (f *fixture) info(url, compression string) *narinfo.NarInfo {
	return &narinfo.NarInfo{
		StorePath: f.path, URL: url, Compression: compression, NarHash: f.hash, NarSize: uint64(len(f.nar)),
		References: []narinfo.StorePath{f.path},
	}
}

// upload uploads the NAR uncompressed, and its narinfo.
func (s *server) upload(f *fixture) {
	s.t.Helper()
	name := fileName(f.nar, "")
	s.want(200, "PUT", "/"+name, f.nar)
	s.want(200, "PUT", f.narInfoURL(), []byte(f.info(name, "none").Text(storeDir)))
}

// narInfo gets the narinfo of a path.
func (s *server) narInfo(f *fixture) *narinfo.NarInfo {
	s.t.Helper()
	info, err := narinfo.Parse(s.want(200, "GET", f.narInfoURL(), nil).body, storeDir)
	if err != nil {
		s.t.Fatalf("narinfo: %v", err)
	}
	return info
}

func zstdEncode(t testing.TB, b []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(b, nil)
}

func zstdDecode(t testing.TB, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err = d.DecodeAll(b, nil)
	if err != nil {
		t.Errorf("decode zstd: %v", err)
	}
	return b
}

func gzipEncode(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipDecode(t testing.TB, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	b, err = io.ReadAll(r)
	if err != nil {
		t.Errorf("decode gzip: %v", err)
	}
	return b
}

// A logBuffer is a log that tests can read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
