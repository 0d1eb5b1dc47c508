package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
)

// A client is one version of Nix, with a home and local stores of its own.
type client struct {
	t       *testing.T
	command []string // what goes before a program's name
	dir     string
}

// forEachNix runs test with every version of Nix: the one in the path, and those in
// DEDUPD_NIX_DIR, which are wrappers whose first argument is the name of the program.
func forEachNix(t *testing.T, test func(t *testing.T, nix *client)) {
	dir := os.Getenv("DEDUPD_NIX_DIR")
	for _, v := range []struct {
		name    string
		command []string
	}{
		{"path", nil},
		{"trixie", []string{filepath.Join(dir, "nix-trixie")}},
		{"forky", []string{filepath.Join(dir, "nix-forky")}},
	} {
		t.Run(v.name, func(t *testing.T) {
			first := append(v.command, "nix")[0]
			if dir == "" && v.command != nil {
				missing(t, "DEDUPD_NIX_DIR")
			}
			if _, err := exec.LookPath(first); err != nil {
				missing(t, first)
			}
			nix := &client{t: t, command: v.command, dir: t.TempDir()}
			conf := "sandbox = false\nbuild-users-group =\nexperimental-features = nix-command flakes\n" +
				"substitute = false\nsubstituters =\nfsync-metadata = false\ntrusted-public-keys = " + nixosKey + "\n"
			if err := os.WriteFile(filepath.Join(nix.dir, "nix.conf"), []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			test(t, nix)
		})
	}
}

// store returns the directory of one of the client's stores.
func (c *client) store(name string) string { return filepath.Join(c.dir, "stores", name) }

// try runs a program with the home of that name, and returns all its output.
func (c *client) try(home string, args ...string) (string, error) {
	args = append(c.command[:len(c.command):len(c.command)], args...)
	cmd := exec.CommandContext(c.t.Context(), args[0], args[1:]...)
	home = filepath.Join(c.dir, home)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME="+filepath.Join(home, ".cache"), "XDG_CONFIG_HOME="+filepath.Join(home, ".config"),
		"XDG_STATE_HOME="+filepath.Join(home, ".state"), "XDG_DATA_HOME="+filepath.Join(home, ".local"), "NIX_CONF_DIR="+c.dir, "NIX_REMOTE=")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// run is try for what must succeed.
func (c *client) run(home string, args ...string) string {
	c.t.Helper()
	out, err := c.try(home, args...)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Paths of the real caches whose closures are there: each has a reference of its own.
var realPaths = []string{
	"/nix/store/xim9l8hym4iga6d4azam4m0k0p1nw2rm-libidn2-2.3.0",
	"/nix/store/g4gk96z9i98hyyf2j4mzn8vvws6gb7i3-libidn2-2.3.0",
	"/nix/store/hn0qr5sk0bvvnjyg6r3yrkwbyl0gn953-libidn2-2.3.0",
	"/nix/store/xjjdyb66g3cxd5880zspazsp5f16lbxz-libidn2-2.3.1",
}

// realStore returns a store of the client that has realPaths.
func (c *client) realStore() string {
	c.t.Helper()
	for _, dir := range realCaches(c.t) {
		if strings.Contains(dir, "lpenz") {
			abs, err := filepath.Abs(dir)
			if err != nil {
				c.t.Fatal(err)
			}
			c.run("source", append([]string{"nix", "copy", "--from", "file://" + abs, "--to", c.store("source")}, realPaths...)...)
			return c.store("source")
		}
	}
	missing(c.t, "the cache of lpenz")
	return ""
}

// testNixCopies uploads with Nix in every compression that Nix has a name for, and downloads.
func testNixCopies(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		s := start(t)
		source := nix.realStore()
		// Nix takes its time over brotli: it gets a path that is small, and has no signature.
		small := strings.TrimSpace(nix.run("source", "nix-store", "--store", source, "--add", "nix_test.go"))
		paths := append(realPaths[:len(realPaths):len(realPaths)], small)
		for i, comp := range []string{"xz", "zstd", "none", "gzip", "br"} {
			nix.run("writer", "nix", "copy", "--from", source, "--to", s.url+"?write-nar-listing=1&compression="+comp, paths[i])
		}
		all := func(home string, args ...string) { nix.run(home, append(args, paths...)...) }
		// Again: the clients find everything there, one by its memory, one by asking.
		before := len(s.log.String())
		all("writer", "nix", "copy", "--from", source, "--to", s.url)
		all("second", "nix", "copy", "--from", source, "--to", s.url)
		if log := s.log.String()[before:]; strings.Contains(log, "method=PUT") {
			t.Errorf("clients have uploaded again:\n%s", log)
		}

		// The writer remembers the URLs under which it has uploaded, in their compressions.
		before = len(s.log.String())
		all("writer", "nix", "copy", "--from", s.url, "--to", nix.store("writer"))
		if log := s.log.String()[before:]; strings.Contains(log, ".narinfo") || strings.Count(log, "path=/nar/") != 2*len(realPaths)+1 {
			t.Errorf("the client that has uploaded did not use the old names:\n%s", log)
		}
		all("reader", "nix", "copy", "--from", s.url, "--to", nix.store("reader"))
		all("substituter", "nix-store", "--store", nix.store("substituted"), "--option", "substitute", "true", "--option", "substituters", s.url, "-r")
		for _, store := range []string{nix.store("writer"), nix.store("reader"), nix.store("substituted"), s.url} {
			all("reader", "nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", store)
		}
		if log := s.log.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			t.Errorf("log:\n%s", log)
		}
		hash := strings.TrimPrefix(realPaths[0], storeDir+"/")[:narinfo.HashPartLen]
		if a := s.want(200, "GET", "/"+hash+".ls", nil); !bytes.Contains(a.body, []byte(`"narOffset"`)) || !strings.Contains(s.log.String(), "method=PUT path=/"+hash+".ls") {
			t.Errorf("got listing %s", a.body)
		}
	})
}

// A cuttingProxy cuts every connection to a server in the middle of a NAR, once.
type cuttingProxy struct {
	*httptest.Server
	t            *testing.T
	cut, resumed atomic.Int32
}

func newCuttingProxy(t *testing.T, s *server) *cuttingProxy {
	p := &cuttingProxy{t: t}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, s.url+r.URL.Path, nil)
		if err != nil {
			panic(err)
		}
		req.Header = r.Header.Clone()
		resp, err := s.client.Do(req)
		if err != nil {
			panic(err)
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		if r.Header.Get("Range") != "" {
			p.resumed.Add(1)
		} else if strings.HasPrefix(r.URL.Path, "/nar/") {
			p.cut.Add(1)
			io.CopyN(w, resp.Body, resp.ContentLength/2)
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		io.Copy(w, resp.Body)
	}))
	t.Cleanup(p.Close)
	return p
}

// want checks that n downloads were cut, and went on.
func (p *cuttingProxy) want(n int32) {
	p.t.Helper()
	if cut, resumed := p.cut.Load(), p.resumed.Load(); cut != n || resumed != n {
		p.t.Errorf("%d downloads were cut and %d resumed, want %d", cut, resumed, n)
	}
}

// testNixResumes has every connection cut in the middle of a NAR.
func testNixResumes(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		s := start(t)
		nix.run("writer", "nix", "copy", "--from", nix.realStore(), "--to", s.url+"?compression=zstd", realPaths[0])
		proxy := newCuttingProxy(t, s)
		nix.run("reader", "nix", "copy", "--from", proxy.URL, "--to", nix.store("reader"), realPaths[0])
		proxy.want(2)
		nix.run("reader", "nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", nix.store("reader"), realPaths[0])
	})
}

// testNixLogs copies a build log.
func testNixLogs(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		s := start(t)
		drv := strings.Repeat("0", 32) + "-hello.drv"
		for i, comp := range []string{"", "br", "zstd", "xz"} {
			drv = fmt.Sprint(i) + drv[1:]
			dir := filepath.Join(nix.store("source"), "nix", "var", "log", "nix", "drvs", drv[:2])
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			log := strings.Repeat("a line of the log of "+drv+"\n", 1000)
			if err := os.WriteFile(filepath.Join(dir, drv[2:]), []byte(log), 0o600); err != nil {
				t.Fatal(err)
			}
			nix.run("writer", "nix", "store", "copy-log", "--from", nix.store("source"), "--to", s.url+"?log-compression="+comp, storeDir+"/"+drv)
			if a := s.want(200, "GET", "/log/"+drv, nil); string(a.body) != log {
				t.Errorf("%q: got %d bytes of log, want %d", comp, len(a.body), len(log))
			}
			if nix.command == nil {
				continue // 2.8 wants the derivation itself to be there
			}
			if out := nix.run("reader", "nix", "log", "--store", s.url, storeDir+"/"+drv); !strings.Contains(out, log) {
				t.Errorf("%q: nix log prints %d bytes", comp, len(out))
			}
		}
	})
}
