package gateway_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/access/accesstest"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
)

// startTLS starts a server that takes connections with TLS only. Its client has no
// certificate, and speaks HTTP/2, over one connection.
func startTLS(t *testing.T, ca *accesstest.Authority, limits chunkstore.Limits, change ...func(*gateway.Config)) *server {
	t.Helper()
	s := startLimited(t, limits, append(change, func(c *gateway.Config) {
		c.TLS = &tls.Config{
			Certificates: []tls.Certificate{ca.Certificate(t, "server")}, NextProtos: []string{"h2", "http/1.1"},
			ClientCAs: ca.Pool, ClientAuth: tls.VerifyClientCertIfGiven,
		}
	})...)
	s.url = strings.Replace(s.url, "http:", "https:", 1)
	s.client = tlsClient(ca)
	t.Cleanup(s.client.CloseIdleConnections)
	return s
}

func tlsClient(ca *accesstest.Authority, certs ...tls.Certificate) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: ca.Pool, Certificates: certs}, ForceAttemptHTTP2: true, DisableCompression: true,
	}}
}

// TestTLS asks with both versions of HTTP, with and without a certificate.
func TestTLS(t *testing.T) {
	ca, other := accesstest.NewAuthority(t), accesstest.NewAuthority(t)
	s := startTLS(t, ca, chunkstore.Limits{}, func(c *gateway.Config) {
		c.Access = &access.Policy{Certificate: access.Read | access.Write, Log: c.Log}
	})
	without := s.client
	s.want(401, "GET", "/log/x", nil)
	endless, end := io.Pipe() // a body of which no byte is there
	defer end.Close()
	if resp, err := s.open("PUT", "/log/x", endless); err != nil || resp.StatusCode != 401 {
		t.Errorf("PUT without a right: got %v (%v), want 401 before the body", resp, err)
	}
	for _, proto := range []string{"HTTP/2.0", "HTTP/1.1"} {
		s.client = tlsClient(ca, ca.Certificate(t, "alice"))
		if proto == "HTTP/1.1" {
			s.client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
		}
		if a := s.want(200, "PUT", "/log/x", []byte("x")); a.Proto != proto {
			t.Errorf("got %s, want %s", a.Proto, proto)
		}
		s.want(200, "GET", "/log/x", nil)
		s.client.CloseIdleConnections()
	}
	if !strings.Contains(s.log.String(), "by=certificate:alice") {
		t.Error("the log does not say whose certificate it was")
	}
	s.client = tlsClient(ca, other.Certificate(t, "mallory"))
	if resp, err := s.client.Get(s.url + "/log/x"); err == nil && resp.StatusCode != 401 {
		t.Errorf("a certificate of another authority: got %s", resp.Status)
	}
	if resp, err := (&http.Client{Transport: &http.Transport{}}).Get("http://" + s.host + "/log/x"); err == nil && resp.StatusCode < 400 {
		t.Errorf("without TLS: got %s", resp.Status)
	}
	s.client = without
}

// open sends a request over s's one connection, and returns when its header is answered,
// or, for one with a body, at once.
func (s *server) open(method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequest(method, s.url+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.client.Do(req)
}

// TestStallHTTP2 has some streams of a connection stall, both ways, among others that do
// not.
func TestStallHTTP2(t *testing.T) {
	ca := accesstest.NewAuthority(t)
	const timeout = 2 * time.Second
	s := startTLS(t, ca, chunkstore.Limits{}, func(c *gateway.Config) { c.IdleTimeout = timeout })
	large := newFixture(t, 1, 12_000_000)
	s.upload(large)

	stalled, err := s.open("GET", large.plainURL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Body.Close()
	uploading := make(chan error, 1)
	pr, pw := io.Pipe()
	go func() {
		resp, err := s.open("PUT", "/nar/stalled.nar", pr)
		if err == nil {
			resp.Body.Close()
			err = errors.New(resp.Status)
		}
		uploading <- err
	}()
	if _, err := pw.Write(large.nar[:100_000]); err != nil {
		t.Fatal(err)
	}
	// The others go on, all the while and afterwards.
	for i := range 5 {
		f := newFixture(t, uint64(10+i), 200_000)
		s.upload(f)
		if a := s.want(200, "GET", f.plainURL(), nil); !bytes.Equal(a.body, f.nar) || a.Proto != "HTTP/2.0" {
			t.Errorf("%s: got %d bytes, want %d", a.Proto, len(a.body), len(f.nar))
		}
		time.Sleep(timeout / 3)
	}
	select {
	case err := <-uploading:
		t.Logf("upload: %v", err)
	case <-time.After(30 * time.Second):
		t.Error("an upload that stalls is not dropped")
	}
	pw.CloseWithError(errors.New("the test is over"))
	// What was sent before the stream was dropped may be here; the rest must not come.
	if n, err := io.Copy(io.Discard, stalled.Body); err == nil {
		t.Errorf("a download that stalls is not dropped: got %d bytes of %d", n, len(large.nar))
	}
	if n := strings.Count(s.log.String(), "aborted=true"); n != 2 {
		t.Errorf("%d requests were aborted, want 2", n)
	}
	s.want(404, "HEAD", "/nar/stalled.nar", nil)
}

// TestUploadsWaitHTTP2 has many uploads on one connection, of which one at a time is taken
// in. Those that wait have sent what they may; that must not starve the one that runs.
func TestUploadsWaitHTTP2(t *testing.T) {
	ca := accesstest.NewAuthority(t)
	s := startTLS(t, ca, chunkstore.Limits{MaxUploads: 1})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			f := newFixture(t, uint64(i), 3_000_000)
			resp, err := s.open("PUT", "/"+fileName(f.nar, ""), bytes.NewReader(f.nar))
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != 200 || resp.Proto != "HTTP/2.0" {
				t.Errorf("got %s %s", resp.Proto, resp.Status)
			}
		})
	}
	wg.Wait()
}

// TestSlowedUploadHTTP2 uploads with a token whose limit has the server wait for longer
// than a client may between two reads.
func TestSlowedUploadHTTP2(t *testing.T) {
	const idle = 50 * time.Millisecond
	v, texts := newVault(t, access.Token{Name: "slow", Rights: access.Read | access.Write, Rate: 1 << 20})
	s := startTLS(t, accesstest.NewAuthority(t), chunkstore.Limits{}, v.private, func(c *gateway.Config) { c.IdleTimeout = idle })
	f := newFixture(t, 1, 3<<20)
	if a := s.want(200, "PUT", "/"+fileName(f.nar, ""), f.nar, bearer(texts[0])); a.ProtoMajor != 2 {
		t.Errorf("got %s, want HTTP/2", a.Proto)
	}
}

// testNixPrivate uploads to, and substitutes from, a private cache with TLS, with netrc and
// with a certificate.
func testNixPrivate(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		v, texts := newVault(t, access.Token{Name: "ci", Rights: access.Read | access.Write}, access.Token{Name: "user", Rights: access.Read})
		ca := accesstest.NewAuthority(t)
		s := startTLS(t, ca, chunkstore.Limits{}, v.private, func(c *gateway.Config) { c.Access.Certificate = access.Read })
		t.Setenv("NIX_SSL_CERT_FILE", ca.File)
		source := nix.realStore()
		netrc := func(token string) []string {
			t.Helper()
			file := filepath.Join(nix.dir, "my-netrc") // "netrc" is what everybody has by default
			text := fmt.Sprintf("machine 127.0.0.1 login anybody password %s\n", token)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{"--option", "netrc-file", file}
		}
		args := func(more []string, args ...string) []string { return append(args, append(more, realPaths[0])...) }
		for _, tt := range []struct{ name, token string }{{"nothing", ""}, {"wrong", "dedupd_wrong"}, {"reader", texts[1]}} {
			var auth []string
			if tt.token != "" {
				auth = netrc(tt.token)
			}
			if out, err := nix.try("writer-"+tt.name, args(auth, "nix", "copy", "--from", source, "--to", s.url)...); err == nil {
				t.Errorf("%s: uploading works:\n%s", tt.name, out)
			}
		}
		nix.run("writer", args(netrc(texts[0]), "nix", "copy", "--from", source, "--to", s.url)...)
		if out, err := nix.try("nobody", args(nil, "nix", "copy", "--from", s.url, "--to", nix.store("nobody"))...); err == nil {
			t.Errorf("downloading without a token works:\n%s", out)
		}
		auth := netrc(texts[1])
		nix.run("reader", args(auth, "nix", "copy", "--from", s.url, "--to", nix.store("reader"))...)
		nix.run("substituter", args(auth, "nix-store", "--store", nix.store("substituted"), "--option", "substitute", "true", "--option", "substituters", s.url, "-r")...)
		for _, store := range []string{"reader", "substituted"} {
			nix.run("reader", "nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", nix.store(store), realPaths[0])
		}
		if strings.HasSuffix(t.Name(), "forky") { // older ones have no client certificates
			cert, key := ca.Issue(t, "nix")
			nix.run("certified", "nix", "copy", "--from", s.url+"?tls-certificate="+cert+"&tls-private-key="+key, "--to", nix.store("certified"), realPaths[0])
			if !strings.Contains(s.log.String(), "by=certificate:nix") {
				t.Error("the log does not say whose certificate it was")
			}
		}
		if strings.Contains(s.log.String(), "level=ERROR") {
			t.Errorf("log:\n%s", s.log)
		}
	})
}
