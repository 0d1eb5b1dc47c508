package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/push"
)

// localNix is the Nix in the path, with a store of its own.
type localNix struct {
	t       *testing.T
	command []string // what goes before a program's name
	root    string
	conf    string // more of nix.conf
	stdin   string
}

func newLocalNix(t *testing.T) *localNix {
	t.Helper()
	if _, err := exec.LookPath("nix-store"); err != nil {
		missingPart(t, "nix-store")
	}
	return &localNix{t: t, root: filepath.Join(t.TempDir(), "store")}
}

// missingPart skips the test for want of a part, except in CI, where all are there.
func missingPart(t *testing.T, part string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", part)
	}
	t.Skipf("%s is missing", part)
}

// try runs a program of Nix, and returns what it prints, and what it says besides.
func (n *localNix) try(args ...string) (stdout, stderr string, err error) {
	n.t.Helper()
	args = append(n.command[:len(n.command):len(n.command)], args...)
	cmd := exec.CommandContext(n.t.Context(), args[0], args[1:]...)
	home := n.t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+home, "NIX_CONF_DIR="+home, "NIX_REMOTE=", "NIX_CONFIG=sandbox = false\nsandbox-paths = /bin /lib /lib64 /usr\n"+
		"build-users-group =\nsubstitute = false\nfsync-metadata = false\nexperimental-features = nix-command\n"+n.conf)
	var errs strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(n.stdin), &errs
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), errs.String(), err
}

func (n *localNix) run(args ...string) string {
	n.t.Helper()
	out, stderr, err := n.try(args...)
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return out
}

// expression builds a path whose contents are the text, and a reference.
func (n *localNix) expression(name, text, ref string) []string {
	return []string{"nix-build", "--store", n.root, "--no-out-link", "-E",
		`derivation { name = "` + name + `"; system = builtins.currentSystem; builder = "/bin/sh"; ref = builtins.storePath ` + ref + `;
		args = [ "-c" "echo ` + text + ` $ref >$out" ]; }`}
}

// TestPush pushes a closure with Nix's own store, and has Nix get it from the cache.
func TestPush(t *testing.T) {
	n := newLocalNix(t)
	lib := n.run("nix-store", "--store", n.root, "--add", "push_test.go")
	app := n.run(n.expression("app", "uses", lib)...)
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	s := startServer(t)
	pushTo := func(stdin string, args ...string) string {
		t.Helper()
		out, err := dedupd(t, stdin, append([]string{"push", "--to", s.url, "--root", n.root}, args...)...)
		if err != nil {
			t.Fatalf("push %q: %v\n%s", args, err, out)
		}
		return out
	}
	if got := strings.Fields(pushTo("", "--dry-run", app)); !slices.Equal(got, []string{lib, app}) {
		t.Errorf("dry run: got %q", got)
	}
	link := filepath.Join(dir, "result")
	if err := os.Symlink(app, link); err != nil {
		t.Fatal(err)
	}
	if out := pushTo("", link); !strings.HasPrefix(out, "2 paths uploaded, 0 were there") {
		t.Errorf("got %s", out)
	}
	if out := pushTo(lib+"\n\n"+app+"\n", "-"); out != "all of 2 paths are there\n" {
		t.Errorf("again: got %s", out)
	}
	var report push.Report
	if out := pushTo("", "--json", "--no-closure", app); json.Unmarshal([]byte(out), &report) != nil || report.Paths != 1 || report.Present != 1 {
		t.Errorf("JSON: got %s", out)
	}
	substituted := filepath.Join(t.TempDir(), "store")
	n.run("nix-store", "--store", substituted, "--option", "substitute", "true", "--option", "substituters", s.url, "--option", "trusted-public-keys", s.key, "-r", app)
	got, err := os.ReadFile(filepath.Join(substituted, app))
	if want := "uses " + lib + "\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestPushRefuses(t *testing.T) {
	n := newLocalNix(t)
	lib := n.run("nix-store", "--store", n.root, "--add", "push_test.go")
	token := filepath.Join(t.TempDir(), "token")
	for _, args := range [][]string{
		{lib}, {"--to", "http://127.0.0.1:1"}, {"--to", "127.0.0.1:1", lib}, {"--to", "http://127.0.0.1:1", "/etc/passwd"},
		{"--to", "http://127.0.0.1:1", "--jobs", "0", lib}, {"--to", "http://127.0.0.1:1", "--token-file", token, lib},
		{"--to", "http://127.0.0.1:1", "--netrc-file", token, lib},
		{"--to", "http://127.0.0.1:1", "/nix/store/" + strings.Repeat("0", 32) + "-nothing"},
	} {
		if out, err := dedupd(t, "", append([]string{"push", "--root", n.root}, args...)...); err == nil {
			t.Errorf("%q: was done: %s", args, out)
		}
	}
}

// TestPostBuildHook has Nix upload what it builds.
func TestPostBuildHook(t *testing.T) {
	n := newLocalNix(t)
	// Nix 2.8.0 calls the hook without the paths.
	n.command = []string{filepath.Join(os.Getenv("DEDUPD_NIX_DIR"), "nix-trixie")}
	if _, err := exec.LookPath(n.command[0]); err != nil {
		missingPart(t, "DEDUPD_NIX_DIR")
	}
	hook, err := filepath.Abs("../../contrib/post-build-hook")
	if err != nil {
		t.Fatal(err)
	}
	lib := n.run("nix-store", "--store", n.root, "--add", "push_test.go")
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	s := startServer(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "push.conf")
	t.Setenv("DEDUPD_PUSH_CONF", conf)
	n.conf = "build-hook =\npost-build-hook = " + hook + "\n"
	build := func(name, settings string) (path, stderr string, err error) {
		text := fmt.Sprintf("DEDUPD=%s\nDEDUPD_PUSH_FLAGS='--root %s'\nexport %s=1\n%s\n", exe, n.root, asCommand, settings)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return n.try(n.expression(name, "built", lib)...)
	}
	app, stderr, err := build("app", "DEDUPD_TO="+s.url)
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	for _, p := range []string{lib, app} {
		s.get(t, "/"+filepath.Base(p)[:32]+".narinfo")
	}
	if _, stderr, err = build("unset", ""); err != nil || !strings.Contains(stderr, "DEDUPD_TO is not set") {
		t.Errorf("without a cache: got %v, %s", err, stderr)
	}
	s.stop()
	if _, stderr, err = build("lost", "DEDUPD_TO="+s.url); err != nil || !strings.Contains(stderr, "could not be uploaded") {
		t.Errorf("nobody there: got %v, %s", err, stderr)
	}
	if _, stderr, err = build("strict", "DEDUPD_PUSH_STRICT=1 DEDUPD_TO="+s.url); err == nil {
		t.Errorf("nobody there, strict: the build succeeded: %s", stderr)
	}
}

// TestPushToken pushes to a private cache, by a token and by netrc.
func TestPushToken(t *testing.T) {
	n := newLocalNix(t)
	lib := n.run("nix-store", "--store", n.root, "--add", "push_test.go")
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("NETRC", filepath.Join(dir, "nothing"))
	t.Setenv("HOME", dir)
	token := func(name, rights string) string {
		out, err := dedupd(t, "", "token", "create", "--name", name, "--rights", rights)
		if err != nil {
			t.Fatal(err)
		}
		token, _, _ := strings.Cut(out, "\n")
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	reader, writer := token("reader", "read"), token("writer", "read,write")
	s := startServer(t, "--public-read=false", "--loopback-write=false") // after the tokens, at which it looks once a second
	text, err := os.ReadFile(writer)
	if err != nil {
		t.Fatal(err)
	}
	netrc := filepath.Join(dir, "netrc")
	if err := os.WriteFile(netrc, []byte("machine 127.0.0.1 login ci password "+string(text)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		flags []string
		says  string // "" for success
	}{
		{nil, "401"}, {[]string{"--token-file", reader}, "403"}, {[]string{"--netrc-file", netrc}, ""}, {[]string{"--token-file", writer}, ""},
	} {
		_, err := dedupd(t, "", append([]string{"push", "--to", s.url, "--root", n.root, lib}, test.flags...)...)
		if (err == nil) != (test.says == "") || err != nil && (!strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), strings.TrimSpace(string(text)))) {
			t.Errorf("%q: got %v, want %q", test.flags, err, test.says)
		}
	}
}
