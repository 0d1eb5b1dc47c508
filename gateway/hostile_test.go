package gateway_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/access/accesstest"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
)

// dial opens a connection to the server, sends text, and returns it with a reader. It
// is closed when the test ends.
func (s *server) dial(text string) (*net.TCPConn, *bufio.Reader) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.host)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	return c.(*net.TCPConn), bufio.NewReader(c)
}

func TestOnlyLoopbackWrites(t *testing.T) {
	s := start(t)
	for _, remote := range []string{"192.0.2.1:1234", "[2001:db8::1]:1234", "", "@"} {
		r := httptest.NewRequest("PUT", "/log/x", strings.NewReader("x"))
		r.RemoteAddr = remote
		w := httptest.NewRecorder()
		s.gateway.ServeHTTP(w, r)
		if w.Code != 403 || !strings.Contains(w.Body.String(), "this machine only") {
			t.Errorf("PUT from %q: got %d %q, want 403", remote, w.Code, w.Body)
		}
	}
	for _, header := range []string{
		"X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "X-Real-IP: 127.0.0.1", "Via: 1.1 proxy",
		"Origin: http://example.org", "Sec-Fetch-Site: same-origin",
	} {
		s.want(403, "PUT", "/log/x", []byte("x"), header)
		s.want(404, "GET", "/log/x", nil, header)
	}
	r := httptest.NewRequest("PUT", "/log/x", strings.NewReader("x"))
	r.RemoteAddr = "[::1]:1234"
	w := httptest.NewRecorder()
	if s.gateway.ServeHTTP(w, r); w.Code != 200 {
		t.Errorf("PUT from ::1: got %d %q, want 200", w.Code, w.Body)
	}
}

// TestExpectContinue checks that a refused client has not sent its body.
func TestExpectContinue(t *testing.T) {
	s := start(t)
	const put = "PUT /nar/x.nar HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n"
	_, r := s.dial(put + "Via: x\r\n\r\n")
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 403") {
		t.Errorf("got %q (%v), want 403", line, err)
	}
	_, r = s.dial(strings.Replace(put, "/nar/", "/x/", 1) + "\r\n")
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 404") {
		t.Errorf("got %q (%v), want 404", line, err)
	}
	_, r = s.dial(strings.Replace(put, "/nar/", "/log/", 1) + "\r\n")
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 413") {
		t.Errorf("got %q (%v), want 413", line, err)
	}
	_, r = s.dial(put + "\r\n")
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Errorf("got %q (%v), want 100", line, err)
	}
}

// TestUploadsCutShort sends less than was announced, and then hangs up or says nothing
// any more.
func TestUploadsCutShort(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.IdleTimeout = 200 * time.Millisecond })
	f := newFixture(t, 1, 3_000_000)
	zst := zstdEncode(t, f.nar)
	for _, body := range [][]byte{f.nar, zst} {
		for _, n := range []int{0, 10, 2000, len(body) / 2, len(body) - 1} {
			for _, hangUp := range []bool{true, false} {
				c, r := s.dial(fmt.Sprintf("PUT /nar/x.nar HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:n]))
				if hangUp {
					c.CloseWrite()
				}
				line, err := r.ReadString('\n')
				if hangUp && !strings.HasPrefix(line, "HTTP/1.1 400") {
					t.Errorf("hung up after %d of %d bytes: got %q (%v), want 400", n, len(body), line, err)
				}
				if !hangUp && (line != "" || errors.Is(err, os.ErrDeadlineExceeded)) {
					t.Errorf("stalled after %d of %d bytes: got %q (%v), want to be dropped", n, len(body), line, err)
				}
			}
		}
	}
	s.want(404, "HEAD", "/nar/x.nar", nil)
	if _, err := s.store.Object(t.Context(), f.hash); !errors.Is(err, chunkstore.ErrNotFound) {
		t.Errorf("object: got %v, want ErrNotFound", err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "state", "staging")); err != nil || len(left) > 0 {
		t.Errorf("staging holds %v (%v), want nothing", left, err)
	}
	// The same in chunked encoding, which has an end of its own.
	c, r := s.dial(fmt.Sprintf("PUT /nar/x.nar HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", 2000, f.nar[:2000]))
	c.CloseWrite()
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 400") {
		t.Errorf("got %q (%v), want 400", line, err)
	}
}

// TestSlowIsNotStalled uploads with pauses that together are longer than the timeout.
func TestSlowIsNotStalled(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.IdleTimeout = 400 * time.Millisecond })
	f := newFixture(t, 1, 50_000)
	c, r := s.dial(fmt.Sprintf("PUT /nar/x.nar HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(f.nar)))
	for part := f.nar; len(part) > 0; part = part[min(len(part), 8000):] {
		time.Sleep(100 * time.Millisecond)
		if _, err := c.Write(part[:min(len(part), 8000)]); err != nil {
			t.Fatal(err)
		}
	}
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Errorf("got %q (%v), want 200", line, err)
	}
}

// TestStalledReader asks for a NAR and does not read it.
func TestStalledReader(t *testing.T) {
	f := newFixture(t, 1, 40<<20) // more than the kernel's buffers
	request := "GET " + f.plainURL() + " HTTP/1.1\r\nHost: x\r\n\r\n"
	idle := func(c *gateway.Config) { c.IdleTimeout = 300 * time.Millisecond }
	dropped := func(s *server) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(s.log.String(), "aborted=true"); {
			if time.Now().After(deadline) {
				t.Fatal("the client was not dropped")
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	s := start(t, idle)
	s.upload(f)
	s.dial(request)
	dropped(s)

	ca := accesstest.NewAuthority(t)
	s = startTLS(t, ca, chunkstore.Limits{}, idle)
	s.upload(f)
	c, err := tls.Dial("tcp", s.host, &tls.Config{RootCAs: ca.Pool})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	dropped(s)
}

// TestDamage damages every pack in the bucket, and gets what is in them: an error, or a
// connection that is cut, but no wrong byte and no short body.
func TestDamage(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 4<<20)
	s.upload(f)
	url := "/" + s.narInfo(f).URL
	want := s.want(200, "GET", url, nil).body
	s.want(200, "GET", f.narInfoURL(), nil)
	if err := s.store.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	damagePacks(t, filepath.Join(s.dir, "bucket"))
	for _, url := range []string{url, f.plainURL()} {
		resp, err := s.client.Get(s.url + url)
		if err != nil {
			continue // cut before the header
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK && err == nil {
			t.Errorf("GET %s: got 200 and %d bytes from a damaged pack", url, len(got))
		}
		if resp.StatusCode == 200 && url != f.plainURL() && string(got) != string(want[:len(got)]) {
			t.Errorf("GET %s: got wrong bytes", url)
		}
	}
	s.want(404, "GET", f.narInfoURL(), nil) // else nobody would upload it again
	if a := s.want(200, "POST", "/"+gateway.MissingURL, []byte(f.path.HashPart())); string(a.body) != f.path.HashPart()+"\n" {
		t.Errorf("missing: got %q, want the damaged path", a.body)
	}
	s.damaged = true
}

// damagePacks changes a byte in the second half of the frames of every pack.
func damagePacks(t *testing.T, bucket string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(bucket, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".") || filepath.Ext(path) == ".json" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) < 1<<20 {
			return err
		}
		n++
		os.Chmod(path, 0o600)
		b[len(b)*3/4] ^= 1
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil || n == 0 {
		t.Fatalf("damaged %d packs: %v", n, err)
	}
}
