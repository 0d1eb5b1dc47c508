package gateway_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/gateway"
)

func TestFiles(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.MaxFile = 100_000 })
	hash := strings.Repeat("0", 32)
	drv := hash + "-hello-2.12?x=1+2.drv"
	long := bytes.Repeat([]byte("line of a log\n"), 5000)
	for _, tt := range []struct{ url, typ string }{
		{"/" + hash + ".ls", "application/json"},
		{"/log/" + strings.ReplaceAll(drv, "?", "%3F"), "text/plain; charset=utf-8"},
		{"/realisations/sha256:" + strings.Repeat("a", 64) + "!out.doi", "application/json"},
		{"/realisations/sha256:" + strings.Repeat("a", 64) + "%21lib.doi", "application/json"},
		{"/build-trace-v2/" + hash + "-x.drv/out.doi", "application/json"},
		{"/debuginfo/" + strings.Repeat("a", 40) + ".debug", "application/json"},
		{"/debuginfo/" + strings.Repeat("a", 40), "application/json"},
	} {
		s.want(404, "HEAD", tt.url, nil)
		a := s.want(404, "GET", tt.url, nil)
		if a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("404 has headers %v", a.Header)
		}
		s.want(413, "PUT", tt.url, make([]byte, 100_001))
		s.want(413, "PUT", tt.url, zstdEncode(t, make([]byte, 100_001)), "Content-Encoding: zstd")
		s.want(404, "HEAD", tt.url, nil)
		s.want(200, "PUT", tt.url, zstdEncode(t, long), "Content-Encoding: zstd")
		s.want(200, "PUT", tt.url, long)
		s.want(200, "PUT", tt.url, []byte("another")) // the first stays
		a = s.want(200, "GET", tt.url, nil)
		if !bytes.Equal(a.body, long) || a.Header.Get("Content-Type") != tt.typ || a.Header.Get("Content-Encoding") != "" {
			t.Errorf("GET %s: got %d bytes, headers %v", tt.url, len(a.body), a.Header)
		}
		if a := s.want(206, "GET", tt.url, nil, "Range: bytes=3-9"); !bytes.Equal(a.body, long[3:10]) {
			t.Errorf("GET %s: got range %q", tt.url, a.body)
		}
	}
	s.want(200, "PUT", "/debuginfo/empty", nil)
	if a := s.want(200, "GET", "/debuginfo/empty", nil); len(a.body) != 0 {
		t.Errorf("got %q, want nothing", a.body)
	}
	for _, url := range []string{
		"/log/", "/log/.x", "/log/a/b", "/log/..%2fx", "/debuginfo/../x", "/realisations/x", "/build-trace-v2/x.doi",
		"/build-trace-v2/a/b/c.doi", "/log/" + strings.Repeat("a", 256), "/other/x", "/x.ls", "//log/x",
	} {
		s.want(404, "PUT", url, long)
		s.want(404, "GET", url, nil)
	}
}

func TestListing(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 1<<20)
	url := "/" + f.path.HashPart() + ".ls"
	s.want(404, "GET", url, nil)
	s.upload(f)
	a := s.want(200, "GET", url, nil)
	var got struct {
		Version int
		Root    struct {
			Entries map[string]struct {
				Type, Target    string
				Size, NarOffset int
				Executable      bool
			}
		}
	}
	if err := json.Unmarshal(a.body, &got); err != nil {
		t.Fatalf("listing %q: %v", a.body, err)
	}
	e := got.Root.Entries
	if got.Version != 1 || e["big"].Size != 1<<20 || e["link"].Target != "big" || !e["tool"].Executable {
		t.Errorf("got listing %s", a.body)
	}
	off := e["tool"].NarOffset
	if tool := f.nar[off : off+e["tool"].Size]; !bytes.Equal(tool, f.nar[e["big"].NarOffset:][:700]) {
		t.Errorf("narOffset %d leads to other contents", off)
	}
	if a := s.want(206, "GET", url, nil, "Range: bytes=1-6"); string(a.body) != `"root"` {
		t.Errorf("got range %q of a listing", a.body)
	}
	s.want(200, "PUT", url, []byte(`{"version":1}`))
	if a := s.want(200, "GET", url, nil); string(a.body) != `{"version":1}` {
		t.Errorf("got listing %q, want the one that was uploaded", a.body)
	}
}
