package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/narinfo"
)

const storeDir = "/nix/store"

// aNarInfo is the narinfo of a path with the hash part of 32 zeros, or what is put for it.
func aNarInfo(hashPart string) string {
	return "StorePath: /nix/store/" + hashPart + "-x\nURL: nar/x.nar\nCompression: none\n" +
		"NarHash: sha256:" + strings.Repeat("0", 52) + "\nNarSize: 1\nReferences: \n"
}

var zeros = strings.Repeat("0", 32)

// serve returns a cache that h answers for.
func serve(t *testing.T, h http.HandlerFunc, change ...func(*HTTPConfig)) *HTTP {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	cfg := HTTPConfig{URL: srv.URL + "/cache", StoreDir: storeDir, Timeout: time.Minute}
	for _, c := range change {
		c(&cfg)
	}
	c, err := NewHTTP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// answers answers requests one after another with these statuses, and 200 with a body
// when there are no more.
func answers(body string, statuses ...int) http.HandlerFunc {
	n := 0
	return func(w http.ResponseWriter, _ *http.Request) {
		if n++; n <= len(statuses) {
			w.WriteHeader(statuses[n-1])
			return
		}
		io.WriteString(w, body)
	}
}

func TestNarInfo(t *testing.T) {
	var status *StatusError
	isStatus := func(err error) bool { return errors.As(err, &status) }
	is := func(target error) func(error) bool {
		return func(err error) bool { return errors.Is(err, target) }
	}
	coded := func(coding string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if coding != "" {
				w.Header().Set("Content-Encoding", coding)
			}
			w.Write(body)
		}
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, aNarInfo(zeros))
	z.Close()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zstded := e.EncodeAll([]byte(aNarInfo(zeros)), nil)
	for _, tt := range []struct {
		name string
		h    http.HandlerFunc
		want func(error) bool // nil for no error
	}{
		{"there", answers(aNarInfo(zeros)), nil},
		{"after errors", answers(aNarInfo(zeros), 503, 500), nil},
		{"too many errors", answers(aNarInfo(zeros), 503, 500, 502), isStatus},
		{"404", answers("", 404), is(ErrNotFound)},
		{"410", answers("", 410), is(ErrNotFound)},
		{"403", answers("", 403), is(ErrNotFound)},
		{"401", answers(aNarInfo(zeros), 401), isStatus},
		{"204", answers(aNarInfo(zeros), 204), isStatus},
		{"gzip", coded("gzip", zipped.Bytes()), nil},
		{"zstd", coded("zstd", zstded), nil},
		{"zstd, header lost", coded("", zstded), nil},
		{"not gzip", coded("gzip", []byte(aNarInfo(zeros))), func(err error) bool { return err != nil && !errors.Is(err, ErrNotFound) }},
		{"page", answers("<html>"), func(err error) bool { return strings.Contains(err.Error(), "web page") }},
		{"page without a type", coded("", []byte("oops")), is(narinfo.ErrCorrupt)},
		{"another path", answers(aNarInfo(strings.Repeat("1", 32))), is(narinfo.ErrCorrupt)},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, is(narinfo.ErrCorrupt)},
		{"cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, aNarInfo(zeros))
		}, is(ErrUnreachable)},
		{"redirect to a file", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, is(ErrUnreachable)},
		{"redirects for ever", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, is(errElsewhere)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			info, err := serve(t, tt.h).NarInfo(t.Context(), zeros)
			switch {
			case tt.want == nil && (err != nil || info.StorePath.HashPart() != zeros):
				t.Errorf("got %v, error %v", info, err)
			case tt.want != nil && (err == nil || !tt.want(err)):
				t.Errorf("got %v, error %v", info, err)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	late := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, func(c *HTTPConfig) { c.Timeout = 20 * time.Millisecond })
	if _, err := late.NarInfo(t.Context(), zeros); !errors.Is(err, ErrUnreachable) || !errors.Is(err, errTimeout) {
		t.Errorf("no header: got error %v", err)
	}
	stuck := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "a")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, func(c *HTTPConfig) { c.IdleTimeout = 20 * time.Millisecond })
	body, _, err := stuck.NAR(t.Context(), &narinfo.NarInfo{URL: "nar/x"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); string(b) != "a" || !errors.Is(err, errTimeout) {
		t.Errorf("no more: got %q, error %v", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := late.NarInfo(ctx, zeros); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("canceled: got error %v", err)
	}
}

// TestHeaders looks at what a cache is told.
func TestHeaders(t *testing.T) {
	var got []*http.Request
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r)
		if r.URL.Path == "/cache/log/a b?c.drv" {
			http.Redirect(w, r, "http://localhost/elsewhere", http.StatusFound)
		}
	}, func(c *HTTPConfig) { c.User, c.Password, c.Via = "me", "secret", "1.1 own" })
	if strings.Contains(c.Name(), "secret") {
		t.Errorf("the name is %s", c.Name())
	}
	ctx := WithVia(t.Context(), "1.1 first", "1.1 second")
	c.File(ctx, "nix-cache-info")
	c.File(ctx, "log/a b?c.drv")
	user, password, _ := got[0].BasicAuth()
	if via := got[0].Header.Get("Via"); user != "me" || password != "secret" || via != "1.1 first, 1.1 second, 1.1 own" {
		t.Errorf("got user %s, password %s, Via %s", user, password, via)
	}
	if len(got) != 2 || got[1].URL.Path != "/cache/log/a b?c.drv" {
		t.Errorf("got requests %v; a redirect to this machine is not followed", got)
	}
	// Another host has no business with the password.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = append(got, r) }))
	defer other.Close()
	if body, _, err := c.NAR(ctx, &narinfo.NarInfo{URL: other.URL + "/x.nar"}, 0); err != nil {
		t.Error(err)
	} else {
		body.Close()
	}
	if r := got[len(got)-1]; r.URL.Path != "/x.nar" || r.Header.Get("Authorization") != "" {
		t.Errorf("another host got %v", r.Header)
	}
}

func TestRefuseLocal(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:80": true, "[::1]:80": true, "169.254.169.254:80": true, "0.0.0.0:80": true, "[fe80::1]:80": true,
		"10.0.0.1:80": false, "192.0.2.1:443": false, "[2001:db8::1]:443": false,
	} {
		if got := refuseLocal("tcp", addr, nil) != nil; got != want {
			t.Errorf("%s: refused %v, want %v", addr, got, want)
		}
	}
}

func TestCheckRedirect(t *testing.T) {
	request := func(url string) *http.Request { return httptest.NewRequest("GET", url, nil) }
	c := serve(t, http.NotFound)
	for _, tt := range []struct {
		from, to string
		refused  bool
	}{
		{"https://a/x", "https://b/x", false}, {"http://a/x", "https://b/x", false}, {"http://a/x", "http://b/x", false},
		{"https://a/x", "http://a/x", true},
	} {
		if err := c.checkRedirect(request(tt.to), []*http.Request{request(tt.from)}); (err != nil) != tt.refused {
			t.Errorf("from %s to %s: %v", tt.from, tt.to, err)
		}
	}
}

// TestNARURLs resolves URLs of narinfos as Nix does since 2.32.
func TestNARURLs(t *testing.T) {
	for url, want := range map[string]string{
		"nar/x.nar?hash=y": "/cache/nar/x.nar?hash=y", "x.nar": "/cache/x.nar", "/x.nar": "/x.nar", "../y/x.nar": "/y/x.nar",
		"file:///etc/passwd": "", "ftp://example.com/x": "", "http://": "", ":": "",
	} {
		got := ""
		c := serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r.URL.RequestURI() })
		body, _, err := c.NAR(t.Context(), &narinfo.NarInfo{URL: url}, 0)
		if err == nil {
			body.Close()
		}
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q (%v), want %q", url, got, err, want)
		}
	}
}

// TestResume breaks the connection again and again.
func TestResume(t *testing.T) {
	file := make([]byte, 100_000)
	for i := range file {
		file[i] = byte(i * i >> 3)
	}
	const part = 30_000
	for _, tt := range []struct {
		name   string
		ranges bool
		etags  []string // of one answer after another; "" for none
		size   int      // that the second answer has
		whole  bool     // it works
	}{
		{"ranges", true, []string{`"a"`, `"a"`, `"a"`, `"a"`}, len(file), true},
		{"no ETag", true, []string{"", "", "", ""}, len(file), true},
		{"weak ETag", true, []string{`W/"a"`, `W/"b"`, `W/"c"`, `W/"d"`}, len(file), true},
		{"no ranges", false, []string{`"a"`, `"a"`}, len(file), false},
		{"changed", true, []string{`"a"`, `"b"`}, len(file), false},
		{"changed without ETag", true, []string{"", ""}, len(file) + 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := 0
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if tt.etags[n] != "" {
					w.Header().Set("Etag", tt.etags[n])
				}
				n++
				off, size, status := 0, len(file), http.StatusOK
				if n > 1 {
					size = tt.size
					if got, want := r.Header.Get("Range"), fmt.Sprintf("bytes=%d-", part*(n-1)); got != want {
						t.Errorf("got Range %q, want %q", got, want)
					}
					if got := r.Header.Get("If-Range"); got != "" && got != `"a"` {
						t.Errorf("got If-Range %s", got)
					}
					off, status = part*(n-1), http.StatusPartialContent
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, size-1, size))
				}
				if tt.ranges {
					w.Header().Set("Accept-Ranges", "bytes")
				}
				w.Header().Set("Content-Length", fmt.Sprint(size-off))
				w.WriteHeader(status)
				w.Write(file[off:min(off+part, len(file))])
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
			body, size, err := c.NAR(t.Context(), &narinfo.NarInfo{URL: "nar/x"}, 0)
			if err != nil || size != int64(len(file)) {
				t.Fatalf("got %d bytes, error %v", size, err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			if whole := err == nil && bytes.Equal(got, file); whole != tt.whole || !bytes.HasPrefix(file, got) {
				t.Errorf("got %d bytes, error %v", len(got), err)
			}
		})
	}
}

// TestOffset opens a file in the middle, at servers with ranges and without.
func TestOffset(t *testing.T) {
	const file = "0123456789"
	for name, h := range map[string]http.HandlerFunc{
		"ranges": func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "x", time.Time{}, strings.NewReader(file))
		},
		"no ranges": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, file) },
	} {
		body, size, err := serve(t, h).NAR(t.Context(), &narinfo.NarInfo{URL: "nar/x"}, 4)
		if err != nil || size != int64(len(file)) {
			t.Fatalf("%s: got size %d, error %v", name, size, err)
		}
		if b, err := io.ReadAll(body); string(b) != file[4:] || err != nil {
			t.Errorf("%s: got %q, error %v", name, b, err)
		}
		body.Close()
	}
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]string{
		"bytes 5-9/10": "5 10 true", "bytes 0-0/*": "0 -1 true", "": "0 -1 false", "bytes */10": "0 -1 false", "bytes 5-9": "5 0 false",
		"items 5-9/10": "5 10 false", "bytes -5-9/10": "0 0 false", "bytes 5-9/-7": "5 -7 false",
	} {
		first, size, ok := parseContentRange(s)
		if got := fmt.Sprint(first, size, ok); got != want && (ok || strings.HasSuffix(want, "true")) {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
}

// TestLimit asks faster than it may, and gives up.
func TestLimit(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, aNarInfo(zeros)) })
	c.Limit(rate.NewLimiter(rate.Every(time.Hour), 2))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n := range 3 {
		if _, err := c.NarInfo(ctx, zeros); (err == nil) != (n < 2) {
			t.Errorf("request %d: %v", n, err)
		}
	}
}
