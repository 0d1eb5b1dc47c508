//go:build unix

package nixstore_test

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixstore"
)

// missing skips the test for want of a part, except in CI, where all are there.
func missing(t *testing.T, part string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", part)
	}
	t.Skipf("%s is missing", part)
}

// A nix is one version of Nix with a store of its own.
type nix struct {
	t       *testing.T
	command []string // what goes before a program's name
	root    string   // of the store
}

// forEachNix runs test with every version of Nix: the one in the path, and those in
// DEDUPD_NIX_DIR, which are wrappers whose first argument is the name of the program.
func forEachNix(t *testing.T, test func(t *testing.T, n *nix)) {
	dir := os.Getenv("DEDUPD_NIX_DIR")
	for _, v := range []string{"path", "trixie", "forky"} {
		t.Run(v, func(t *testing.T) {
			n := &nix{t: t, root: filepath.Join(t.TempDir(), "store")}
			if v != "path" {
				if dir == "" {
					missing(t, "DEDUPD_NIX_DIR")
				}
				n.command = []string{filepath.Join(dir, "nix-"+v)}
			}
			if _, err := exec.LookPath(append(n.command, "nix-store")[0]); err != nil {
				missing(t, "Nix")
			}
			test(t, n)
		})
	}
}

// oneNix returns the Nix in the path.
func oneNix(t *testing.T) *nix {
	t.Helper()
	if _, err := exec.LookPath("nix-store"); err != nil {
		missing(t, "nix-store")
	}
	return &nix{t: t, root: filepath.Join(t.TempDir(), "store")}
}

// run runs a program of Nix, and returns what it prints.
func (n *nix) run(args ...string) string {
	n.t.Helper()
	args = append(n.command[:len(n.command):len(n.command)], args...)
	cmd := exec.CommandContext(n.t.Context(), args[0], args[1:]...)
	home := n.t.TempDir()
	config := "sandbox = false\nsandbox-paths = /bin /lib /lib64 /usr\nbuild-users-group =\nsubstitute = false\nfsync-metadata = false\nexperimental-features = nix-command\n"
	if n.command != nil {
		config += "build-hook =\n" // which 2.8 would run
	}
	cmd.Env = append(os.Environ(), "HOME="+home, "NIX_CONF_DIR="+home, "NIX_REMOTE=", "NIX_CONFIG="+config)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// store runs nix-store on n's store.
func (n *nix) store(args ...string) string {
	n.t.Helper()
	return n.run(append([]string{"nix-store", "--store", n.root}, args...)...)
}

// add adds a file or a directory of the test to the store.
func (n *nix) add(path string) narinfo.StorePath {
	n.t.Helper()
	return n.parse(n.store("--add", path))
}

func (n *nix) parse(path string) narinfo.StorePath {
	n.t.Helper()
	p, err := narinfo.ParseStorePath(nixstore.DefaultDir, path)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// build builds an expression, whose builder is sh with the script, which can see refs.
func (n *nix) build(name, script string, refs ...narinfo.StorePath) narinfo.StorePath {
	n.t.Helper()
	expr := `derivation { name = "` + name + `"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" ''` + script + `'' ]; refs = [`
	for _, ref := range refs {
		expr += " (builtins.storePath " + ref.Path("/nix/store") + ")"
	}
	return n.parse(n.run("nix-build", "--store", n.root, "--no-out-link", "-E", expr+" ]; }"))
}

// file returns the real path of a store path.
func (n *nix) file(p narinfo.StorePath) string { return filepath.Join(n.root, p.Path("/nix/store")) }

// open opens n's store as dedupd does.
func (n *nix) open() *nixstore.Store {
	n.t.Helper()
	s, err := nixstore.Open(n.t.Context(), nixstore.Options{Root: n.root, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			n.t.Error(err)
		}
	})
	return s
}

// dump returns the NAR of a file as Nix makes it.
func (n *nix) dump(path string) []byte {
	n.t.Helper()
	cmd := exec.CommandContext(n.t.Context(), "nix-store", "--dump", path)
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}
