package main

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/access/accesstest"
)

// TestUnixSocket serves on a socket, which is as good as this machine, with curl as the
// client.
func TestUnixSocket(t *testing.T) {
	needs(t, "curl")
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	socket := filepath.Join(t.TempDir(), "socket")
	if l, err := net.Listen("unix", socket); err != nil { // of a server that was killed
		t.Fatal(err)
	} else {
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	p := startServer(t, "--listen", "127.0.0.1:0,unix:"+socket+"?mode=0600")
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v (%v), want mode 0600", info, err)
	}
	curl := func(want string, args ...string) {
		t.Helper()
		args = append([]string{"-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", socket, "http://x/log/x"}, args...)
		if out, err := exec.CommandContext(t.Context(), "curl", args...).Output(); err != nil || string(out) != want {
			t.Errorf("curl %q: got %s (%v), want %s", args, out, err, want)
		}
	}
	curl("200", "-T", "listen_test.go")
	curl("200")
	curl("403", "-T", "listen_test.go", "-H", "X-Forwarded-For: 192.0.2.1")
	if _, err := listenUnix(t.Context(), socket, 0o600); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second server on a socket: got %v", err)
	}
	p.stop()
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	if err := os.WriteFile(socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listenUnix(t.Context(), socket, 0o600); err == nil {
		l.Close()
		t.Error("a file was replaced by a socket")
	}
}

// TestSocketActivation passes two sockets as systemd does (sd_listen_fds(3)).
func TestSocketActivation(t *testing.T) {
	needs(t, "curl")
	if testing.Short() {
		t.Skip("builds the program")
	}
	dir := t.TempDir()
	binary, socket := filepath.Join(dir, "program"), filepath.Join(dir, "socket")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", `LISTEN_PID=$$ exec "$0" serve --listen systemd`, binary)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "XDG_DATA_HOME="+dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	log := &buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	for _, l := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), unix.(*net.UnixListener)} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	unix.(*net.UnixListener).SetUnlinkOnClose(false)
	closeAll([]net.Listener{tcp, unix}) // the server has them
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	// Who connects before the server is there waits for it.
	for _, args := range [][]string{{"http://" + tcp.Addr().String() + "/nix-cache-info"}, {"--unix-socket", socket, "http://x/nix-cache-info"}} {
		out, err := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "--max-time", "60"}, args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "StoreDir") {
			t.Errorf("curl %q: got %s (%v)\n%s", args, out, err, log)
		}
	}
	cancel()
	cmd.Wait() // says that ctx ended
	if !cmd.ProcessState.Success() {
		t.Errorf("the server: %v\n%s", cmd.ProcessState, log)
	}
}

// TestNginx has a proxy on this machine that was told nothing but where to pass things on
// to: what comes through it is not from here.
func TestNginx(t *testing.T) {
	needs(t, "nginx")
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	p := startServer(t)
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	conf := "daemon off; master_process off; user root; pid pid; error_log stderr; events {}\n" +
		"http { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n" +
		"server { listen " + addr + "; location / { proxy_pass " + p.url + "; } } }\n"
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "nginx", "-p", dir, "-c", "nginx.conf", "-e", "stderr")
	log := &buffer{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		cmd.Wait()
	}()
	behind := &process{url: "http://" + addr}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nginx does not listen: %s", log)
		}
	}
	if got := behind.ask(t, http.DefaultClient, "PUT", "/log/x", ""); got != 403 {
		t.Errorf("writing through nginx: got %d, want 403", got)
	}
	if got := behind.ask(t, http.DefaultClient, "GET", "/nix-cache-info", ""); got != 200 {
		t.Errorf("reading through nginx: got %d, want 200", got)
	}
}

func TestListenErrors(t *testing.T) {
	for _, addr := range []string{"systemd", "127.0.0.1", "unix:/does/not/exist/socket", "unix:" + strings.Repeat("/x", 200)} {
		if listeners, err := listen(t.Context(), List{"127.0.0.1:0", addr}); err == nil {
			closeAll(listeners)
			t.Errorf("%q is taken", addr)
		}
	}
}

// TestTLS has the server change its certificate, and keep it while the new one is not
// whole.
func TestTLS(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	ca, next := accesstest.NewAuthority(t), accesstest.NewAuthority(t)
	cert, key := ca.Issue(t, "server")
	p := startServer(t, "--tls-cert", cert, "--tls-key", key, "--client-ca", ca.File, "--client-rights", "read,write", "--loopback-write=false")
	client := func(trusts *accesstest.Authority, certs ...tls.Certificate) *http.Client {
		return &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: trusts.Pool, Certificates: certs},
		}}
	}
	if got := p.ask(t, client(ca), "PUT", "/log/x", ""); got != 401 {
		t.Errorf("without a certificate: got %d, want 401", got)
	}
	alice := ca.Certificate(t, "alice")
	if got := p.ask(t, client(ca, alice), "PUT", "/log/x", ""); got != 200 {
		t.Errorf("with a certificate: got %d, want 200", got)
	}
	old := &tls.Config{RootCAs: ca.Pool, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	if c, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), old); err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken")
	}

	newCert, newKey := next.Issue(t, "server")
	copyFile := func(from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s does not happen", what)
			}
		}
	}
	works := func(trusts *accesstest.Authority) bool {
		resp, err := client(trusts).Get(p.url + "/nix-cache-info")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	}
	copyFile(newCert, cert) // its key is still the old one
	eventually("the complaint", func() bool {
		if !works(ca) {
			t.Fatal("the old certificate does not work any more")
		}
		return strings.Contains(p.stderr.String(), "cannot be used")
	})
	copyFile(newKey, key)
	eventually("the change", func() bool { return works(next) })
}

func TestBadTLS(t *testing.T) {
	ca := accesstest.NewAuthority(t)
	cert, key := ca.Issue(t, "server")
	_, other := ca.Issue(t, "other")
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	for _, args := range [][]string{
		{"--tls-cert", "/does/not/exist", "--tls-key", key},
		{"--tls-cert", cert, "--tls-key", other},
		{"--tls-cert", cert, "--tls-key", key, "--client-ca", "/does/not/exist"},
		{"--tls-cert", cert, "--tls-key", key, "--client-ca", key},
	} {
		if _, err := dedupd(t, "", append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...); err == nil || !strings.Contains(err.Error(), "TLS") {
			t.Errorf("%q: got %v, want an error", args, err)
		}
	}
}
