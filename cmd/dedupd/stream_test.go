package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/migrate"
)

// forEachLocalNix runs test with every version of Nix.
func forEachLocalNix(t *testing.T, test func(t *testing.T, n *localNix)) {
	for _, version := range []string{"path", "trixie", "forky"} {
		t.Run(version, func(t *testing.T) {
			n := newLocalNix(t)
			if version != "path" {
				dir := os.Getenv("DEDUPD_NIX_DIR")
				if dir == "" {
					missingPart(t, "DEDUPD_NIX_DIR")
				}
				n.command, n.conf = []string{filepath.Join(dir, "nix-"+version)}, "build-hook =\n"
			}
			test(t, n)
		})
	}
}

// pathInfos returns what Nix knows of a closure, but for what a stream does not tell.
func (n *localNix) pathInfos(path string) any {
	n.t.Helper()
	var infos any
	if err := json.Unmarshal([]byte(n.run("nix", "path-info", "--store", n.root, "--json", "-r", path)), &infos); err != nil {
		n.t.Fatal(err)
	}
	forget(infos)
	return infos
}

func forget(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range []string{"registrationTime", "signatures", "ultimate", "ca"} {
			delete(v, key)
		}
		for _, e := range v {
			forget(e)
		}
	case []any:
		for _, e := range v {
			forget(e)
		}
	}
}

// TestStreams has each Nix export a closure, imports it, exports it, and has the Nix import it
// into another store.
func TestStreams(t *testing.T) {
	forEachLocalNix(t, func(t *testing.T, n *localNix) {
		t.Setenv("XDG_DATA_HOME", t.TempDir())
		lib := n.run("nix-store", "--store", n.root, "--add", "stream_test.go")
		app := n.run(n.expression("app", "uses $out", lib)...)
		stream := n.run("nix-store", "--store", n.root, "--export", lib, app)
		if out, err := dedupd(t, stream, "import", "-", "--sign"); err != nil || !strings.HasPrefix(out, "2 paths: 2 imported, 0 were there\n") {
			t.Fatalf("import: got %q, %v", out, err)
		}
		out, err := dedupd(t, "", "export", "-", "--closure-of", app)
		if err != nil || out != stream {
			t.Errorf("export: got %q, %v, want %q", out, err, stream)
		}
		if out, err := dedupd(t, "", "export", "-", app, lib); err != nil || out != stream {
			t.Errorf("export of both: got %q, %v, want %q", out, err, stream)
		}
		if out, err := dedupd(t, "", "export", "-", app); err != nil || len(out) >= len(stream) || !strings.Contains(out, "uses") {
			t.Errorf("export of one: got %q, %v", out, err)
		}
		other := &localNix{t: t, command: n.command, conf: n.conf, root: filepath.Join(t.TempDir(), "store"), stdin: out}
		other.run("nix-store", "--store", other.root, "--import")
		if got, want := other.pathInfos(app), n.pathInfos(app); !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		other.run("nix-store", "--store", other.root, "--verify", "--check-contents")

		// Clients take what the cache has signed.
		s := startServer(t)
		client := &localNix{t: t, command: n.command, conf: n.conf, root: filepath.Join(t.TempDir(), "store")}
		client.run("nix-store", "--store", client.root, "--option", "substitute", "true", "--option", "substituters", s.url, "--option", "trusted-public-keys", s.key, "-r", app)
	})
}

// TestStreamFlags reads streams beside a server, and refuses what has no sense.
func TestStreamFlags(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	text, err := os.ReadFile("../../nixexport/testdata/nix-2.26.export")
	if err != nil {
		t.Fatal(err)
	}
	stream := string(text)
	s := startServer(t)
	if out, err := dedupd(t, stream[:len(stream)-8], "import", "-", "--sign"); err == nil || !strings.HasPrefix(out, "2 paths: 2 imported") {
		t.Errorf("without an end: got %q, %v", out, err)
	}
	out, err := dedupd(t, stream, "import", "-", "--json")
	var report migrate.Report
	if jsonErr := json.Unmarshal([]byte(out), &report); err != nil || jsonErr != nil || report.Present != 2 {
		t.Errorf("again: got %q, %v", out, err)
	}
	if got := s.get(t, "/xc3mxy9akjgsxyhxa5czrk3218r6dyld.narinfo"); !strings.Contains(got, "Sig: ") {
		t.Errorf("a narinfo was not signed: %s", got)
	}
	s.stop()
	for _, args := range [][]string{
		{"import", "-", "--paths", "-"}, {"import", "-", "--closure-of", "x"}, {"import", "-", "--trusted-key", s.key}, {"import", "-", "--user", "x"},
		{"import", "-", "--since", "1h"}, {"export", "-", "--compression", "xz"}, {"export", "-", "--jobs", "2"},
		{"export", "-", "x"}, {"export", "-", "xc3mxy9akjgsxyhxa5czrk3218r6dyld", "--closure-of", "xc3mxy9akjgsxyhxa5czrk3218r6dyld"},
		{"export", "-", strings.Repeat("0", 32)},
	} {
		if out, err := dedupd(t, stream, args...); err == nil {
			t.Errorf("%q: got %q, want an error", args, out)
		}
	}
}

// TestImportNixStore imports the store of each Nix, a closure first and then everything, beside a
// server: what is damaged is left out.
func TestImportNixStore(t *testing.T) {
	forEachLocalNix(t, func(t *testing.T, n *localNix) {
		t.Setenv("XDG_DATA_HOME", t.TempDir())
		lib := n.run("nix-store", "--store", n.root, "--add", "stream_test.go")
		app := n.run(n.expression("app", "uses $out", lib)...)
		if out, err := dedupd(t, "", "import", "/nix/store", "--root", n.root, "--closure-of", app, "--sign"); err != nil || !strings.HasPrefix(out, "2 paths: 2 imported, 0 were there\n") {
			t.Fatalf("a closure: got %q, %v", out, err)
		}
		damaged := n.run(n.expression("damaged", "will change", lib)...)
		file := filepath.Join(n.root, damaged)
		if err := errors.Join(os.Remove(file), os.WriteFile(file, []byte("has changed\n"), 0o444)); err != nil {
			t.Fatal(err)
		}
		s := startServer(t)
		out, err := dedupd(t, "", "import", "/nix/store", "--root", n.root, "--json")
		var report migrate.Report
		if jsonErr := json.Unmarshal([]byte(out), &report); err == nil || jsonErr != nil || report.Present != 2 || report.Skipped[migrate.BadNAR] != 1 || report.Failed() != 1 || report.Files == 0 {
			t.Errorf("everything: got %s, %v", out, err)
		}
		client := &localNix{t: t, command: n.command, conf: n.conf, root: filepath.Join(t.TempDir(), "store")}
		client.run("nix-store", "--store", client.root, "--option", "substitute", "true", "--option", "substituters", s.url, "--option", "trusted-public-keys", s.key, "-r", app)
	})
}
