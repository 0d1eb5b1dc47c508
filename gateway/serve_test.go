package gateway_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
)

// TestShutdown stops the server in the middle of an upload, which may finish.
func TestShutdown(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 1_000_000)
	half := len(f.nar) / 2
	c, r := s.dial(fmt.Sprintf("PUT /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", fileName(f.nar, ""), len(f.nar)))
	for _, want := range []string{"HTTP/1.1 100 Continue\r\n", "\r\n"} { // the request is running
		if line, err := r.ReadString('\n'); line != want {
			t.Fatalf("got %q (%v), want %q", line, err, want)
		}
	}
	if _, err := c.Write(f.nar[:half]); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		s.stop()
		close(stopped)
	}()
	// As soon as connections are refused the shutdown has begun.
	for {
		resp, err := http.Get(s.url + "/nix-cache-info")
		if err != nil {
			break
		}
		resp.Body.Close()
	}
	select {
	case <-stopped:
		t.Fatal("Serve returned before the upload was done")
	default:
	}
	if _, err := c.Write(f.nar[half:]); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Errorf("got %q (%v), want 200", line, err)
	}
	<-stopped
	if _, err := s.store.Object(t.Context(), f.hash); err != nil {
		t.Errorf("object: %v", err)
	}
}

// TestShutdownDeadline stops the server in the middle of an upload that does not end.
func TestShutdownDeadline(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.ShutdownTimeout = 100 * time.Millisecond })
	_, r := s.dial("PUT /nar/x.nar HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatalf("got %q (%v), want 100", line, err)
	}
	s.stop()
	if rest, _ := io.ReadAll(r); bytes.Contains(rest, []byte("200")) {
		t.Errorf("got %q", rest)
	}
}

// TestKeepAlive sends requests of all kinds over one connection.
func TestKeepAlive(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 300_000)
	s.upload(f)
	var text strings.Builder
	for range 3 {
		for _, url := range []string{f.narInfoURL(), f.plainURL(), "/nix-cache-info", "/missing", "/" + f.path.HashPart() + ".ls"} {
			for _, method := range []string{"GET", "HEAD"} {
				fmt.Fprintf(&text, "%s %s HTTP/1.1\r\nHost: x\r\n\r\n", method, url)
			}
		}
	}
	_, r := s.dial(text.String())
	for range 3 {
		for _, status := range []int{200, 200, 200, 404, 200} {
			for _, method := range []string{"GET", "HEAD"} {
				resp, err := http.ReadResponse(r, &http.Request{Method: method})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != status {
					t.Errorf("%s: got %s (%v), want %d", method, resp.Status, err, status)
				}
			}
		}
	}
}

func TestClosedStore(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 1000)
	s.upload(f)
	if err := s.store.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.damaged = true // cannot be checked any more
	if a := s.want(503, "PUT", "/log/x", []byte("x")); a.Header.Get("Retry-After") == "" {
		t.Errorf("503 has headers %v", a.Header)
	}
	if a := s.want(503, "GET", "/log/x", nil); a.Header.Get("Retry-After") == "" || strings.Contains(string(a.body), "log") {
		t.Errorf("got %v, headers %v", a, a.Header)
	}
}

func TestAdmin(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 100_000)
	s.upload(f)
	s.want(200, "GET", f.plainURL(), nil)
	s.want(206, "GET", "/"+s.narInfo(f).URL, nil, "Range: bytes=0-99")
	ask := func(url string, v any) {
		t.Helper()
		w := httptest.NewRecorder()
		s.gateway.AdminHandler().ServeHTTP(w, httptest.NewRequest("GET", url, nil))
		if err := json.Unmarshal(w.Body.Bytes(), v); w.Code != 200 || err != nil {
			t.Fatalf("GET %s: got %d %q", url, w.Code, w.Body)
		}
	}
	var stats gateway.Stats
	ask("/stats", &stats)
	if stats.Store.StorePaths != 1 || stats.Served.Bytes != int64(len(f.nar))+100 || stats.Served.NARBytes < int64(len(f.nar)) {
		t.Errorf("got %+v, %+v", stats.Store, stats.Served)
	}
	var text strings.Builder
	if err := stats.WriteText(&text); err != nil || !strings.Contains(text.String(), "were sent for") {
		t.Errorf("got text %q (%v)", &text, err)
	}
	var report chunkstore.CheckReport
	ask("/check?read-data=1", &report)
	if !report.OK() || !report.ReadData || report.StorePaths != 1 {
		t.Errorf("got %+v", report)
	}
}
