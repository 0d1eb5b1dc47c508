package push_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/push"
	"github.com/dedupd/dedupd/upstream"
)

const storeDir = "/nix/store"

// A source has NARs in memory.
type source struct {
	nars   map[narinfo.StorePath][]byte
	broken narinfo.StorePath // whose NAR ends with an error
}

func (s *source) Name() string { return "test" }
func (s *source) NarInfo(context.Context, string) (*narinfo.NarInfo, error) {
	return nil, upstream.ErrNotFound
}
func (s *source) File(context.Context, string) (io.ReadCloser, error) {
	return nil, upstream.ErrNotFound
}

var errBroken = errors.New("the NAR is broken")

func (s *source) NAR(ctx context.Context, info *narinfo.NarInfo, off int64) (io.ReadCloser, int64, error) {
	data := s.nars[info.StorePath]
	var r io.Reader = bytes.NewReader(data[off:])
	if info.StorePath == s.broken {
		r = io.MultiReader(io.LimitReader(r, int64(info.NarSize)/2), errReader{})
	}
	return io.NopCloser(ctxReader{ctx, r}), int64(len(data)), nil
}

// A ctxReader ends with its context, in small steps.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p[:min(len(p), 1000)])
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// chain returns a source with n paths, of which each refers to itself and to all before it.
func chain(t *testing.T, n int) (*source, []*narinfo.NarInfo) {
	t.Helper()
	s := &source{nars: map[narinfo.StorePath][]byte{}}
	var infos []*narinfo.NarInfo
	for i := range n {
		p, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-path-%d", i, i))
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		w := nar.NewWriter(&b)
		contents := strings.Repeat(fmt.Sprint(i, " "), 50_000)
		if err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(contents))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, contents)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		s.nars[p] = b.Bytes()
		info := &narinfo.NarInfo{StorePath: p, URL: "nar/whatever.nar", Compression: "none", NarHash: sha256.Sum256(b.Bytes()), NarSize: uint64(b.Len())}
		for _, before := range infos {
			info.References = append(info.References, before.StorePath)
		}
		info.References = append(info.References, p)
		infos = append(infos, info)
	}
	return s, infos
}

// A cache is a plain one: it has the files that were PUT. A narinfo is refused unless all
// that it is about is there.
type cache struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	log   []string // methods and names
	// fail answers a request with a status, 0 for as it should be.
	fail func(method, name string, nth int) int
	bulk bool
}

func newCache(t *testing.T) *cache {
	c := &cache{files: map[string][]byte{"nix-cache-info": []byte("StoreDir: /nix/store\n")}, fail: noFailure}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

// failWith sets what fails from now on.
func (c *cache) failWith(fail func(method, name string, nth int) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = fail
}

func noFailure(string, string, int) int { return 0 }

func (c *cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	c.mu.Lock()
	c.log = append(c.log, r.Method+" "+name)
	code := c.fail(r.Method, name, c.countLocked(r.Method+" "+name))
	c.mu.Unlock()
	if code != 0 {
		http.Error(w, "as told", code)
		return
	}
	switch {
	case r.Method == http.MethodPut:
		c.put(w, r, name)
	case r.Method == http.MethodPost && c.bulk && name == "api/v1/missing":
		c.missing(w, r)
	case r.Method == http.MethodPost:
		w.WriteHeader(http.StatusMethodNotAllowed)
	default:
		c.mu.Lock()
		data, ok := c.files[name]
		c.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(data)
	}
}

func (c *cache) countLocked(line string) (n int) {
	for _, l := range c.log {
		if l == line {
			n++
		}
	}
	return n
}

func (c *cache) count(prefix string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.log {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

func (c *cache) put(w http.ResponseWriter, r *http.Request, name string) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.HasSuffix(name, ".narinfo") {
		if err := c.check(data); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	c.files[name] = data
	w.WriteHeader(http.StatusCreated)
}

// check checks that what a narinfo is about is there. c.mu is held.
func (c *cache) check(text []byte) error {
	info, err := narinfo.Parse(text, storeDir)
	if err != nil {
		return err
	}
	file, ok := c.files[info.URL]
	if !ok {
		return fmt.Errorf("%s is not there", info.URL)
	}
	if sum := sha256.Sum256(file); !info.FileHash.IsZero() && (info.FileHash != narinfo.NewHash(narinfo.SHA256, sum[:]) || info.FileSize != uint64(len(file))) {
		return errors.New("FileHash or FileSize is wrong")
	}
	d, err := zstd.NewReader(bytes.NewReader(file))
	if err != nil {
		return err
	}
	defer d.Close()
	plain, err := io.ReadAll(d)
	if err != nil || sha256.Sum256(plain) != info.NarHash {
		return fmt.Errorf("another NAR: %v", err)
	}
	for _, ref := range info.References {
		if _, ok := c.files[ref.HashPart()+".narinfo"]; !ok && ref != info.StorePath {
			return fmt.Errorf("%s is not there", ref)
		}
	}
	return nil
}

func (c *cache) missing(w http.ResponseWriter, r *http.Request) {
	var request struct{ Hashes []string }
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	missing := []string{}
	for _, h := range request.Hashes {
		if _, ok := c.files[h+".narinfo"]; !ok {
			missing = append(missing, h)
		}
	}
	json.NewEncoder(w).Encode(map[string][]string{"missing": missing})
}

func (c *cache) push(ctx context.Context, s *source, infos []*narinfo.NarInfo, change ...func(*push.Options)) (*push.Report, error) {
	opts := push.Options{URL: c.URL, StoreDir: storeDir, Jobs: 4}
	for _, fn := range change {
		fn(&opts)
	}
	return push.Push(ctx, s, infos, opts, new(push.Progress))
}

// TestPush pushes to caches with and without the query for many paths, first a part.
func TestPush(t *testing.T) {
	for _, bulk := range []bool{false, true} {
		t.Run(fmt.Sprint("bulk=", bulk), func(t *testing.T) {
			c := newCache(t)
			c.bulk = bulk
			s, infos := chain(t, 12)
			for _, n := range []int{5, 12, 12} {
				before := c.count("PUT ")
				r, err := c.push(t.Context(), s, infos[:n])
				if err != nil || len(r.Failed) > 0 {
					t.Fatal(err, r)
				}
				if r.Paths != n || r.Present+r.Uploaded != n || r.Uploaded != len(r.Missing) || c.count("PUT ")-before != 2*r.Uploaded {
					t.Errorf("got %+v with %d requests", r, c.count("PUT ")-before)
				}
			}
			if got, want := c.count("POST"), 3; got != want {
				t.Errorf("got %d queries, want %d", got, want)
			}
			if got := c.count("HEAD 0"); bulk != (got == 0) {
				t.Errorf("got %d queries for single narinfos", got)
			}
		})
	}
}

func TestDryRun(t *testing.T) {
	c := newCache(t)
	s, infos := chain(t, 3)
	r, err := c.push(t.Context(), s, infos, func(o *push.Options) { o.DryRun = true })
	if err != nil || len(r.Missing) != 3 || r.Uploaded != 0 || c.count("PUT") != 0 {
		t.Errorf("got %+v, %v, %d uploads", r, err, c.count("PUT"))
	}
}

// TestFailures has the cache fail in ways that pass, that concern one path, and that
// concern all.
func TestFailures(t *testing.T) {
	_, infos := chain(t, 6)
	second := "nar/" + narinfo.EncodeNix32(infos[1].NarHash[:]) + ".nar.zst"
	for _, test := range []struct {
		name     string
		fail     func(method, name string, nth int) int
		broken   bool // NAR of infos[1]
		uploaded int
		failed   int
		fatal    bool
	}{
		{name: "once", uploaded: 6, fail: func(m, _ string, nth int) int {
			if m != "POST" && nth == 1 {
				return 503
			}
			return 0
		}},
		{name: "too large", uploaded: 1, failed: 5, fail: func(m, name string, _ int) int {
			if m == "PUT" && name == second {
				return 413
			}
			return 0
		}},
		{name: "narinfo refused", uploaded: 1, failed: 5, fail: func(m, name string, _ int) int {
			if m == "PUT" && name == infos[1].StorePath.HashPart()+".narinfo" {
				return 400
			}
			return 0
		}},
		{name: "last refused", uploaded: 5, failed: 1, fail: func(m, name string, _ int) int {
			if m == "PUT" && name == infos[5].StorePath.HashPart()+".narinfo" {
				return 409
			}
			return 0
		}},
		{name: "source", uploaded: 1, failed: 5, broken: true, fail: noFailure},
		{name: "no right to write", fatal: true, fail: func(m, _ string, _ int) int {
			if m == "PUT" {
				return 403
			}
			return 0
		}},
		{name: "no right at all", fatal: true, fail: func(string, string, int) int { return 401 }},
		{name: "no room", fatal: true, fail: func(m, _ string, _ int) int {
			if m == "PUT" {
				return 507
			}
			return 0
		}},
		{name: "redirect", uploaded: 0, failed: 6, fail: func(m, _ string, _ int) int {
			if m == "PUT" {
				return 302
			}
			return 0
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCache(t)
			c.failWith(test.fail)
			s, infos := chain(t, 6)
			if test.broken {
				s.broken = infos[1].StorePath
			}
			r, err := c.push(t.Context(), s, infos)
			if test.fatal {
				if err == nil {
					t.Errorf("got %+v, want an error", r)
				}
				return
			}
			if err != nil || r.Uploaded != test.uploaded || len(r.Failed) != test.failed {
				t.Errorf("got %+v, %v, want %d uploaded, %d failed", r, err, test.uploaded, test.failed)
			}
			if test.failed == 0 {
				return
			}
			// Once it is possible, the rest follows.
			c.failWith(noFailure)
			s.broken = narinfo.StorePath{}
			if r, err = c.push(t.Context(), s, infos); err != nil || r.Present != test.uploaded || r.Uploaded != test.failed {
				t.Errorf("again: got %+v, %v", r, err)
			}
		})
	}
}

// TestInterrupted stops pushes at different times. What is visible is whole, which the
// cache checks, and in the end all is there.
func TestInterrupted(t *testing.T) {
	c := newCache(t)
	s, infos := chain(t, 10)
	for n := range 10 {
		ctx, stop := context.WithCancel(t.Context())
		uploads := 0
		c.failWith(func(m, _ string, _ int) int {
			if m == "PUT" {
				if uploads++; uploads > n {
					stop()
				}
			}
			return 0
		})
		if _, err := c.push(ctx, s, infos); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		stop()
	}
	c.failWith(noFailure)
	if r, err := c.push(t.Context(), s, infos); err != nil || r.Present+r.Uploaded != 10 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestRefuses has URLs that are not those of a cache for this store.
func TestRefuses(t *testing.T) {
	c := newCache(t)
	s, infos := chain(t, 1)
	for _, url := range []string{"", "cache.example", "ftp://cache.example", "http://", "http://user:secret@cache.example", c.URL + "?compression=xz", "s3://bucket"} {
		_, err := c.push(t.Context(), s, infos, func(o *push.Options) { o.URL = url })
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v", url, err)
		}
	}
	if _, err := c.push(t.Context(), s, infos, func(o *push.Options) { o.StoreDir = "/gnu/store" }); err == nil {
		t.Error("a cache for another store directory was taken")
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	var waits []time.Duration
	_, err := c.push(t.Context(), s, infos, func(o *push.Options) {
		o.URL = gone.URL
		o.Retried = func(_ error, wait time.Duration) { waits = append(waits, wait) }
	})
	if err == nil || len(waits) != 2 || !slices.IsSorted(waits) {
		t.Errorf("nobody there: got %v after waiting %v", err, waits)
	}
}

// TestCredentials looks at what is sent of a token, and to whom.
func TestCredentials(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	c := newCache(t)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		mu.Lock()
		seen[user+":"+password] = true
		mu.Unlock()
		c.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	s, infos := chain(t, 2)
	_, err := c.push(t.Context(), s, infos, func(o *push.Options) { o.URL, o.User, o.Password = proxy.URL, "ci", "token" })
	if err != nil || len(seen) != 1 || !seen["ci:token"] {
		t.Errorf("got %v, credentials %v", err, seen)
	}
}
