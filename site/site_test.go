package site_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/site"
)

const storeDir = "/nix/store"

// A cache is a gateway with pages to a fresh store.
type cache struct {
	t     testing.TB
	url   string
	pages *site.Site
	run   func() // counts what is there
}

const publicKey = "example-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// start starts a cache, of which nothing is counted yet. policy nil means the gateway's
// default.
func start(t testing.TB, policy *access.Policy, change ...func(*site.Config)) *cache {
	t.Helper()
	dir := t.TempDir()
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	store, err := chunkstore.Open(t.Context(), chunkstore.Options{State: filepath.Join(dir, "state"), Bucket: b, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cfg := site.Config{Store: store, State: filepath.Join(dir, "state"), Keys: []string{publicKey}, Log: log}
	for _, c := range change {
		c(&cfg)
	}
	pages := site.New(cfg)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running errgroup.Group
	srv := httptest.NewServer(gateway.New(store, gateway.Config{Access: policy, Site: pages, Log: log}))
	t.Cleanup(func() {
		srv.Close()
		cancel()
		if err := running.Wait(); err != nil {
			t.Errorf("run: %v", err)
		}
		if err := store.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return &cache{t, srv.URL, pages, func() { running.Go(func() error { return pages.Run(ctx) }) }}
}

// count counts what was uploaded so far, and waits for that.
func (c *cache) count() {
	c.t.Helper()
	c.run()
	for {
		_, page, _ := c.get("/")
		if !strings.Contains(page, "being counted") {
			return
		}
	}
}

// get returns the page at path, and its status.
func (c *cache) get(path string, headers ...string) (int, string, http.Header) {
	c.t.Helper()
	return c.do("GET", path, nil, headers...)
}

func (c *cache) do(method, path string, body []byte, headers ...string) (int, string, http.Header) {
	c.t.Helper()
	req, err := http.NewRequest(method, c.url+path, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

// upload uploads a path with a name, of about size bytes, that refers to others.
func (c *cache) upload(name string, size int, refs ...narinfo.StorePath) narinfo.StorePath {
	c.t.Helper()
	var buf bytes.Buffer
	w := nar.NewWriter(&buf)
	contents := strings.Repeat(name+"\n", size/(len(name)+1)+1)
	if err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(contents))}); err != nil {
		c.t.Fatal(err)
	}
	io.WriteString(w, contents)
	if err := w.Close(); err != nil {
		c.t.Fatal(err)
	}
	hash := sha256.Sum256(buf.Bytes())
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(hash[:20]) + "-" + name)
	if err != nil {
		c.t.Fatal(err)
	}
	file := "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar"
	info := &narinfo.NarInfo{StorePath: path, URL: file, Compression: "none", NarHash: hash, NarSize: uint64(buf.Len()), References: refs}
	for _, put := range []struct {
		path string
		body []byte
	}{{"/" + file, buf.Bytes()}, {"/" + path.HashPart() + ".narinfo", []byte(info.Text(storeDir))}} {
		if status, text, _ := c.do("PUT", put.path, put.body); status != 200 {
			c.t.Fatalf("PUT %s: %d %s", put.path, status, text)
		}
	}
	return path
}

var tags = regexp.MustCompile(`<[^>]*>`)

// text returns a page without its tags and runs of white space.
func text(page string) string {
	_, page, _ = strings.Cut(page, "<body>")
	return strings.Join(strings.Fields(tags.ReplaceAllString(page, " ")), " ")
}

func wantText(t *testing.T, page string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text(page), w) {
			t.Errorf("the page does not say %q:\n%s", w, text(page))
		}
	}
}

// TestHome looks at the first page of an empty cache.
func TestHome(t *testing.T) {
	c := start(t, nil)
	_, page, _ := c.get("/")
	wantText(t, page, "This is being counted")
	c.count()
	status, page, header := c.get("/")
	if status != 200 {
		t.Fatalf("got %d", status)
	}
	wantText(t, page, "Nothing yet",
		"extra-substituters = "+c.url+" extra-trusted-public-keys = "+publicKey, "nix copy --to "+c.url, "dedupd push --to "+c.url)
	if policy := header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") {
		t.Errorf("got policy %q", policy)
	}
	if strings.Contains(page, "ZgotmplZ") || strings.Contains(page, "<script") || strings.Contains(page, " style=") {
		t.Errorf("the page has what its policy forbids:\n%s", page)
	}
	if status, page, _ := c.do("HEAD", "/", nil); status != 200 || page != "" {
		t.Errorf("HEAD: got %d and %d bytes", status, len(page))
	}
	if status, _, header := c.do("POST", "/", nil); status != 405 || header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: got %d, Allow %q", status, header.Get("Allow"))
	}
}

func TestURL(t *testing.T) {
	c := start(t, nil)
	_, page, _ := c.get("/", "X-Forwarded-Proto: https")
	wantText(t, page, "nix copy --to https://"+strings.TrimPrefix(c.url, "http://"))
	c = start(t, nil, func(cfg *site.Config) { cfg.URL = "https://cache.example/" })
	_, page, _ = c.get("/")
	wantText(t, page, "extra-substituters = https://cache.example extra")
}

func TestPath(t *testing.T) {
	c := start(t, nil)
	libc := c.upload("glibc-2.40", 100_000)
	absent, err := narinfo.ParseBaseName(strings.Repeat("1", 32) + "-gone-1.0")
	if err != nil {
		t.Fatal(err)
	}
	hello := c.upload("hello-2.12.1", 300_000, libc, absent)
	status, page, _ := c.get("/path/" + hello.HashPart())
	if status != 200 {
		t.Fatalf("got %d", status)
	}
	wantText(t, page, storeDir+"/"+hello.String(), "300 kB", "glibc-2.40 "+libc.HashPart(), "gone-1.0 (not in this cache)", "references 2")
	if !strings.Contains(page, `href="/path/`+libc.HashPart()+`"`) || strings.Contains(page, `href="/path/`+absent.HashPart()) {
		t.Errorf("references are not linked as they should be:\n%s", page)
	}
	for _, link := range regexp.MustCompile(`href="(/[^"]*)"`).FindAllStringSubmatch(page, -1) {
		if status, _, _ := c.get(link[1]); status != 200 {
			t.Errorf("the link %s leads to %d", link[1], status)
		}
	}
	if status, page, _ := c.get("/path/" + absent.HashPart()); status != 404 || !strings.Contains(page, "Not in this cache") {
		t.Errorf("an absent path: got %d\n%s", status, page)
	}
	if status, _, _ := c.get("/path/nothing"); status != 404 {
		t.Errorf("no hash part: got %d", status)
	}
}

func TestSearchForPath(t *testing.T) {
	c := start(t, nil)
	path := c.upload("hello-2.12.1", 1000)
	for _, query := range []string{path.HashPart(), path.String(), storeDir + "/" + path.String(), " " + path.Path(storeDir) + "/bin/hello ", path.HashPart() + ".narinfo"} {
		status, _, header := c.get("/search?q=" + strings.ReplaceAll(query, " ", "+"))
		if want := "/path/" + path.HashPart(); status != 303 || header.Get("Location") != want {
			t.Errorf("%q: got %d to %q, want 303 to %q", query, status, header.Get("Location"), want)
		}
	}
	for query, want := range map[string]string{
		"":                                  "Look for a store path",
		"x":                                 "two characters",
		strings.Repeat("1", 32):             "not in the cache",
		"%3Cscript%3Ealert(1)%3C/script%3E": "&lt;script&gt;",
	} {
		if status, page, _ := c.get("/search?q=" + query); status != 200 || !strings.Contains(page, want) || strings.Contains(page, "<script") {
			t.Errorf("%q: got %d\n%s", query, status, text(page))
		}
	}
	for _, query := range []string{strings.Repeat("x", 301), "%ff"} {
		if status, _, _ := c.get("/search?q=" + query); status != 400 {
			t.Errorf("%.10q: got %d, want 400", query, status)
		}
	}
}

// TestPrivate checks that a private cache shows nothing without a token, and asks for one.
func TestPrivate(t *testing.T) {
	c := start(t, &access.Policy{Local: access.Write}, func(cfg *site.Config) { cfg.Private = true })
	path := c.upload("secret-1.0", 1000)
	for _, url := range []string{"/", "/search?q=secret", "/path/" + path.HashPart(), "/path/" + strings.Repeat("1", 32)} {
		status, page, header := c.get(url)
		if status != 401 || header.Get("Www-Authenticate") == "" || strings.Contains(page, "secret") {
			t.Errorf("%s: got %d, %v\n%s", url, status, header, page)
		}
	}
	// The test's client is on this machine.
	c = start(t, &access.Policy{Local: access.Read}, func(cfg *site.Config) { cfg.Private = true })
	_, page, _ := c.get("/")
	wantText(t, page, "Private: reading takes a token", "machine 127.0.0.1 login nix password TOKEN")
}

// TestPatterns checks that who may see some paths only sees these.
func TestPatterns(t *testing.T) {
	c := start(t, nil)
	theirs, mine := c.upload("theirs-1.0", 1000), c.upload("mine-1.0", 1000)
	c.count()
	who := &access.Identity{Rights: access.Read, Match: []string{"mine-*"}}
	for url, want := range map[string]int{
		"/path/" + mine.HashPart(): 200, "/path/" + theirs.HashPart(): 404,
		"/search?q=" + mine.HashPart(): 303, "/search?q=" + theirs.HashPart(): 200, "/search?q=1.0": 200, "/": 200,
	} {
		w := httptest.NewRecorder()
		if err := c.pages.Serve(w, httptest.NewRequest("GET", url, nil), who); err != nil || w.Code != want {
			t.Errorf("%s: got %d (%v), want %d", url, w.Code, err, want)
		}
		if strings.Contains(w.Body.String(), "theirs") {
			t.Errorf("%s: the page tells of a path that is not for this client:\n%s", url, text(w.Body.String()))
		}
	}
}

// TestCounted looks at what needs all of the index.
func TestCounted(t *testing.T) {
	c := start(t, nil)
	for _, name := range []string{"hello-2.10", "hello-2.12", "hello-2.12-man", "zlib-1.3", "glibc-2.40"} {
		c.upload(name, 200_000)
	}
	c.count()
	_, page, _ := c.get("/")
	wantText(t, page, "store paths 5", "unpacked 1 MB", "Largest packages", "hello 3 600 kB", "As a table", "Counted just now")
	if strings.Count(page, "<svg class=\"chart") != 2 {
		t.Errorf("there are not two drawings of the chart:\n%s", page)
	}
	for query, want := range map[string][]string{
		"hello":   {"3 store paths", "hello-2.10", "hello-2.12-man"},
		"HELLO-2": {"3 store paths"},
		"2.12":    {"2 store paths"},
		"nothing": {"No store path is called like that"},
		"c-2.40":  {"1 store path."},
	} {
		status, page, _ := c.get("/search?q=" + query)
		if status != 200 {
			t.Errorf("%s: got %d", query, status)
		}
		wantText(t, page, append(want, "Names as they were")...)
	}
}
