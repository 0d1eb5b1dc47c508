package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dedupd/dedupd/narinfo"
)

// nginxInFront starts nginx as docs/operations.md tells to set it up, but without TLS,
// in front of a server.
func nginxInFront(t *testing.T, server *process) (url string) {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // Debian has it where only root looks
	needs(t, "nginx")
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```nginx\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatal("docs/operations.md has no configuration of nginx")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	site := regexp.MustCompile(`(?m)^ *ssl_.*\n`).ReplaceAllString(string(block[1]), "")
	site = strings.NewReplacer("listen 443 ssl", "listen "+addr, "http://127.0.0.1:8080", server.url).Replace(site)
	dir, user := t.TempDir(), ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	config := fmt.Sprintf("daemon off; %s\npid %[2]s/pid; error_log %[2]s/error;\nevents {}\nhttp {\naccess_log off;\n", user, dir)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		config += fmt.Sprintf("%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config+site+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nginx", "-c", file, "-e", filepath.Join(dir, "error"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var out buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if b, _ := os.ReadFile(filepath.Join(dir, "error")); t.Failed() {
			t.Logf("nginx: %s\n%s", &out, b)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return "http://" + addr
		} else if time.Now().After(deadline) {
			t.Fatalf("nginx does not start: %v\n%s", err, &out)
		}
	}
}

// TestBehindNginx uploads a NAR through nginx that is larger than anything that it might
// buffer, and downloads it, whole and from where it was interrupted.
func TestBehindNginx(t *testing.T) {
	dir := t.TempDir()
	where := []string{"--state", dir + "/state"}
	token, err := dedupd(t, "", append([]string{"token", "create", "--name", "ci", "--rights", "read,write"}, where...)...)
	if err != nil {
		t.Fatal(err)
	}
	token = regexp.MustCompile(`dedupd_\w+`).FindString(token)
	server := startServer(t, append(where, "--bucket", "file://"+dir+"/bucket", "--key-files", "none", "--loopback-write=false", "--max-file", "1MiB")...)
	url := nginxInFront(t, server)
	request := func(method, path, token string, body []byte, headers ...string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequest(method, url+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.SetBasicAuth("nix", token)
		}
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("%s %s: read body: %v", method, path, err)
		}
		return resp, b
	}
	want := func(status int, method, path, token string, body []byte, headers ...string) []byte {
		t.Helper()
		resp, b := request(method, path, token, body, headers...)
		if resp.StatusCode != status {
			t.Errorf("%s %s: got %s %.200s, want %d", method, path, resp.Status, b, status)
		}
		return b
	}
	nar, err := killNAR(rand.New(rand.NewPCG(1, 2)), 60<<20)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(nar)
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(hash[:20]) + "-large")
	if err != nil {
		t.Fatal(err)
	}
	name := "/nar/" + narinfo.EncodeNix32(hash[:]) + ".nar"
	info := &narinfo.NarInfo{StorePath: path, URL: name[1:], Compression: "none", NarHash: hash, NarSize: uint64(len(nar))}
	want(401, "PUT", name, "", nar[:1000])
	want(401, "PUT", name, token[:len(token)-1]+"0", nar[:1000])
	want(200, "PUT", name, token, nar, "Expect: 100-continue")
	want(200, "PUT", "/"+path.HashPart()+".narinfo", token, []byte(info.Text("/nix/store")))
	want(413, "PUT", "/log/large", token, make([]byte, 2<<20))

	text := want(200, "GET", "/"+path.HashPart()+".narinfo", "", nil)
	served, err := narinfo.Parse(text, "/nix/store")
	if err != nil {
		t.Fatal(err)
	}
	if got := want(200, "GET", name, "", nil); !bytes.Equal(got, nar) {
		t.Errorf("got %d bytes, not those of the upload", len(got))
	}
	resp, whole := request("GET", "/"+served.URL, "", nil)
	for header, value := range map[string]string{"Accept-Ranges": "bytes", "Content-Length": fmt.Sprint(served.FileSize), "Content-Encoding": ""} {
		if got := resp.Header.Get(header); got != value {
			t.Errorf("%s: got %q, want %q", header, got, value)
		}
	}
	rest := want(206, "GET", "/"+served.URL, "", nil, fmt.Sprintf("Range: bytes=%d-", len(whole)/3))
	if !bytes.Equal(rest, whole[len(whole)/3:]) {
		t.Errorf("the rest has %d bytes, want the last %d", len(rest), len(whole)-len(whole)/3)
	}
	want(404, "GET", "/"+strings.Repeat("0", 32)+".narinfo", "", nil)
}

// TestReady asks a server and then nobody.
func TestReady(t *testing.T) {
	dir := t.TempDir()
	where := []string{"--state", dir + "/state", "--bucket", "file://" + dir + "/bucket"}
	server := startServer(t, append(where, "--key-files", "none")...)
	for _, args := range [][]string{nil, {"--write"}} {
		if out, err := dedupd(t, "", append(append([]string{"ready"}, where...), args...)...); err != nil {
			t.Errorf("ready %q: %v %s", args, err, out)
		}
	}
	server.stop()
	if _, err := dedupd(t, "", append([]string{"ready"}, where...)...); err == nil {
		t.Error("ready though there is no server")
	}
}
