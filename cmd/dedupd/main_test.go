package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/narinfo"
)

// A buffer is an output that tests can read while it is written.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// dedupd runs a command to its end.
func dedupd(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	var stdout, stderr buffer
	err := run(t.Context(), args, strings.NewReader(stdin), &stdout, &stderr)
	return stdout.String(), err
}

// A process is a server that runs.
type process struct {
	url    string
	key    string // its public key
	stderr *buffer
	stop   func()
}

var advice = regexp.MustCompile(`extra-substituters = (https?://\S+)\n(?:  extra-trusted-public-keys = (\S+)\n)?`)

// startServer runs "dedupd serve" on a free port until the test ends or stop is called.
func startServer(t *testing.T, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var stdout buffer
	p := &process{stderr: &buffer{}}
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...), strings.NewReader(""), &stdout, p.stderr)
	}()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("log of the server:\n%s", p.stderr)
		}
	})
	for {
		if m := advice.FindStringSubmatch(stdout.String()); m != nil {
			p.url, p.key = m[1], m[2]
			return p
		}
		select {
		case err := <-done:
			done <- nil
			t.Fatalf("serve: %v\n%s", err, p.stderr)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (p *process) put(t *testing.T, path, body string) {
	t.Helper()
	req, err := http.NewRequest("PUT", p.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("PUT %s: %s", path, resp.Status)
	}
}

func (p *process) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get(p.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("GET %s: %s, %v", path, resp.Status, err)
	}
	return string(text)
}

// TestServe starts a server on a fresh machine, uses it, and starts it again.
func TestServe(t *testing.T) {
	data := t.TempDir()
	t.Setenv("XDG_DATA_HOME", data)
	if out, err := dedupd(t, "", "stats"); err == nil {
		t.Errorf("stats without a store: got %q, want an error", out)
	}
	log := strings.Repeat("a line of a log\n", 1000)
	p := startServer(t)
	p.put(t, "/log/x.drv", log)
	if got, want := p.get(t, "/nix-cache-info"), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	info, err := os.Stat(filepath.Join(data, "dedupd", "key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	public, err := dedupd(t, "", "key", "public", filepath.Join(data, "dedupd", "key"))
	if err != nil || strings.TrimSpace(public) != p.key {
		t.Errorf("the server prints the key %q, its file has %q (%v)", p.key, public, err)
	}
	inspect := func() {
		t.Helper()
		out, err := dedupd(t, "", "stats", "--json")
		var stats struct {
			Store struct {
				Files int `json:"files"`
			} `json:"store"`
		}
		if jsonErr := json.Unmarshal([]byte(out), &stats); err != nil || jsonErr != nil || stats.Store.Files != 1 {
			t.Errorf("stats: got %s (%v)", out, err)
		}
		if out, err := dedupd(t, "", "stats"); err != nil || !strings.Contains(out, "other files") {
			t.Errorf("stats: got %s (%v)", out, err)
		}
		if out, err := dedupd(t, "", "check", "--read-data"); err != nil || !strings.Contains(out, "no problems") {
			t.Errorf("check: got %s (%v)", out, err)
		}
		if out, err := dedupd(t, "", "check", "--json"); err != nil || !strings.Contains(out, `"problem_count": 0`) {
			t.Errorf("check: got %s (%v)", out, err)
		}
	}
	inspect() // through the server
	socket, err := os.Stat(socketPath(filepath.Join(data, "dedupd", "state")))
	if err != nil || socket.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", socket, err)
	}
	if out, err := dedupd(t, "", "serve", "--listen", "127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second server: got %q, %v, want an error", out, err)
	}
	p.stop()
	inspect() // without it
	p = startServer(t, "--access-log=false")
	if got := p.get(t, "/log/x.drv"); got != log {
		t.Errorf("got %d bytes of a log after a restart, want %d", len(got), len(log))
	}
	if p.key != strings.TrimSpace(public) {
		t.Errorf("got key %s after a restart, want %s", p.key, public)
	}
	if strings.Contains(p.stderr.String(), "msg=request") {
		t.Error("there is an access log")
	}
}

// TestCheckFails damages a pack.
func TestCheckFails(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	bucket := filepath.Join(t.TempDir(), "bucket")
	args := []string{"--bucket", "file://" + bucket, "--state", filepath.Join(t.TempDir(), "state")}
	p := startServer(t, append(args, "--key-files", "none")...)
	if p.key != "" {
		t.Errorf("got key %s, want none", p.key)
	}
	random := make([]byte, 100_000)
	for i := range random {
		random[i] = byte(i * i >> 7)
	}
	p.put(t, "/log/x.drv", string(random))
	p.stop()
	if out, err := dedupd(t, "", append([]string{"check"}, args...)...); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	packs, err := filepath.Glob(filepath.Join(bucket, "*", "*", "*"))
	if more, _ := filepath.Glob(filepath.Join(bucket, "*", "*")); len(packs) == 0 {
		packs = more
	}
	if err != nil || len(packs) == 0 {
		t.Fatalf("packs: %v, %v", packs, err)
	}
	for _, pack := range packs {
		b, err := os.ReadFile(pack)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/3] ^= 1
		os.Chmod(pack, 0o600)
		if err := os.WriteFile(pack, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := dedupd(t, "", append([]string{"check", "--read-data"}, args...)...)
	if err == nil || !strings.Contains(err.Error(), "problem") {
		t.Errorf("check of a damaged pack: got error %v, and\n%s", err, out)
	}
	const absent = "1 files cannot be served until they are uploaded again:\n  log/x.drv\n"
	if _, err := dedupd(t, "", append([]string{"check", "--dry-run"}, args...)...); err == nil {
		t.Error("check --dry-run by itself is taken")
	}
	out, err = dedupd(t, "", append([]string{"check", "--repair", "--dry-run"}, args...)...)
	if err == nil || !strings.Contains(out, absent) {
		t.Errorf("check --repair --dry-run: got error %v, and\n%s", err, out)
	}
	p = startServer(t, append(args, "--key-files", "none")...)
	out, err = dedupd(t, "", append([]string{"check", "--repair"}, args...)...)
	if err != nil || !strings.Contains(out, absent) || !strings.Contains(out, "1 problems, 1 of them repaired") {
		t.Errorf("check --repair: got error %v, and\n%s", err, out)
	}
	p.stop()
	out, err = dedupd(t, "", append([]string{"check", "--read-data"}, args...)...)
	if err != nil || !strings.Contains(out, absent) || !strings.Contains(out, "no problems") {
		t.Errorf("check after a repair: got error %v, and\n%s", err, out)
	}
	p = startServer(t, append(args, "--key-files", "none")...)
	p.put(t, "/log/x.drv", string(random))
	if got := p.get(t, "/log/x.drv"); got != string(random) {
		t.Errorf("got %d other bytes of what was uploaded again", len(got))
	}
	p.stop()
	out, err = dedupd(t, "", append([]string{"check", "--repair"}, args...)...)
	if err != nil || strings.Contains(out, "cannot be served") || !strings.Contains(out, "no problems") {
		t.Errorf("check after another upload: got error %v, and\n%s", err, out)
	}
}

func TestKeys(t *testing.T) {
	secret, err := dedupd(t, "", "key", "generate", "--name", "cache.example.org-1")
	if err != nil {
		t.Fatal(err)
	}
	public, err := dedupd(t, secret, "key", "public")
	if err != nil {
		t.Fatal(err)
	}
	k, err := narinfo.ParsePublicKey(strings.TrimSpace(public))
	if err != nil || k.Name != "cache.example.org-1" {
		t.Errorf("got public key %q (%v)", public, err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	former := "old-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	out, err := dedupd(t, "", "key", "list", "--key-files", file, "--verify-keys", former)
	if want := "signs      " + strings.TrimSpace(public) + "\nhas signed " + former + "\n"; err != nil || out != want {
		t.Errorf("key list: got %q (%v), want %q", out, err, want)
	}
	if out, err := dedupd(t, "nonsense", "key", "public"); err == nil {
		t.Errorf("public half of nonsense: got %q", out)
	}
	if out, err := dedupd(t, "", "key", "generate", "--name", "a:b"); err == nil {
		t.Errorf("key with a bad name: got %q", out)
	}
}

func TestOtherCommands(t *testing.T) {
	if out, err := dedupd(t, "", "version"); err != nil || !strings.HasPrefix(out, "dedupd ") {
		t.Errorf("version: got %q (%v)", out, err)
	}
	if out, err := dedupd(t, "", "completion", "bash"); err != nil || !strings.Contains(out, "dedupd") {
		t.Errorf("completion: got %d bytes (%v)", len(out), err)
	}
	for _, args := range [][]string{{}, {"nonsense"}, {"serve", "x"}, {"serve", "--key-files", "/does/not/exist"}, {"serve", "--listen", "x"}} {
		t.Setenv("XDG_DATA_HOME", t.TempDir())
		if out, err := dedupd(t, "", args...); err == nil {
			t.Errorf("%q: got %q, want an error", args, out)
		}
	}
}
