package gateway_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
)

// TestMatrix does everything that Nix does with a cache, with each version of Nix.
func TestMatrix(t *testing.T) {
	for _, tt := range []struct {
		what string
		test func(*testing.T)
	}{
		{"upload, listing, download, substitution", testNixCopies},
		{"substitution in a build", testNixBuilds},
		{"interrupted download", testNixResumes},
		{"interrupted download by an old name", testNixOldNames},
		{"upload to a writer, download from a follower", testNixFollows},
		{"refused upload", testNixRetries},
		{"private, TLS", testNixPrivate},
		{"signatures", testNixSignatures},
		{"key rotation", testNixRotation},
		{"logs", testNixLogs},
		{"listings and files", testNixReads},
		{"content encodings", testNixCodings},
		{"CA realisations", testNixRealisations},
		{"pull-through", testNixPulls},
		{"local store", testNixLocalStore},
		{"S3 that fails", testNixOnFaultyS3},
	} {
		t.Run(tt.what, tt.test)
	}
}

// trustedKey makes a signing key, and returns the options that have clients trust it.
func trustedKey(t *testing.T) (key narinfo.PrivateKey, trusted []string) {
	key = newKey(t, "matrix-1")
	return key, []string{"--option", "trusted-public-keys", key.Public().String()}
}

// building returns the options with which Nix builds in a store of its own, without a
// daemon.
func (c *client) building() []string {
	options := []string{"--option", "sandbox-paths", "/bin /lib /lib64 /usr"}
	if c.command != nil { // 2.8 would run it
		options = append(options, "--option", "build-hook", "")
	}
	return options
}

// write writes a file for the client, and returns its name.
func (c *client) write(name, text string) string {
	c.t.Helper()
	file := filepath.Join(c.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return file
}

// testNixBuilds has a builder upload a dependency, and another build what needs it.
func testNixBuilds(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		key, trusted := trustedKey(t)
		s := start(t, func(c *gateway.Config) { c.Keys = []narinfo.PrivateKey{key} })
		expr := nix.write("build.nix", `rec {
  make = name: script: derivation {
    inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ];
  };
  dependency = make "dependency" "echo built here >$out";
  top = make "top" "read -r line <${dependency}; echo top of: $line >$out";
}`)
		build := func(home, attribute string, more ...string) string {
			t.Helper()
			args := append([]string{"nix-build", "--store", nix.store(home), expr, "-A", attribute, "--no-out-link"}, nix.building()...)
			return nix.run(home, append(args, more...)...)
		}
		lines := strings.Fields(build("builder", "dependency"))
		dependency := lines[len(lines)-1]
		nix.run("builder", "nix", "copy", "--no-check-sigs", "--from", nix.store("builder"), "--to", s.url, dependency)
		out := build("other", "top", append(trusted, "--option", "substitute", "true", "--option", "substituters", s.url)...)
		if !strings.Contains(out, "copying path '"+dependency) || strings.Contains(out, "-dependency.drv'") {
			t.Errorf("the dependency was not substituted:\n%s", out)
		}
		lines = strings.Fields(out)
		top, err := os.ReadFile(nix.store("other") + lines[len(lines)-1])
		if err != nil || string(top) != "top of: built here\n" {
			t.Errorf("got %q (%v)", top, err)
		}
	})
}

// testNixRetries refuses each upload of a NAR once that waits until its body is asked for,
// as a server that is being stopped does. New versions of curl wait with large ones only.
func testNixRetries(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		s := start(t)
		var refused, taken atomic.Int32
		var seen sync.Map
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			nar := r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/nar/")
			if _, again := seen.LoadOrStore(r.Method+r.URL.Path, true); nar && !again && r.Header.Get("Expect") != "" {
				refused.Add(1)
				w.Header().Set("Connection", "close")
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			req, err := http.NewRequestWithContext(r.Context(), r.Method, s.url+r.URL.Path, r.Body)
			if err != nil {
				panic(err)
			}
			req.Header, req.ContentLength = r.Header.Clone(), r.ContentLength
			resp, err := s.client.Do(req)
			if err != nil {
				panic(err)
			}
			defer resp.Body.Close()
			if nar && resp.StatusCode == http.StatusOK {
				taken.Add(1)
			}
			for name, values := range resp.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(resp.StatusCode)
			io.Copy(w, resp.Body)
		}))
		defer proxy.Close()
		nix.run("writer", "nix", "copy", "--from", nix.realStore(), "--to", proxy.URL+"?compression=none", realPaths[0])
		if refused.Load() == 0 || taken.Load() != 2 {
			t.Errorf("%d uploads were refused and %d taken, want some and 2", refused.Load(), taken.Load())
		}
		nix.run("reader", "nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", s.url, realPaths[0])
	})
}

// testNixSignatures downloads paths that are not signed, signed by the client that
// uploads, and signed by the cache.
func testNixSignatures(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		key, trusted := trustedKey(t)
		source := nix.store("source")
		expr := nix.write("paths.nix", `derivation {
  name = "path"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo >$out" ];
}`)
		lines := strings.Fields(nix.run("source", append([]string{"nix-build", "--store", source, expr, "--no-out-link"}, nix.building()...)...))
		path := lines[len(lines)-1]
		for _, tt := range []struct {
			name, params string
			keys         []narinfo.PrivateKey
			signed       bool
		}{
			{"unsigned", "", nil, false},
			{"client", "?secret-key=" + nix.write("secret", key.Secret()), nil, true},
			{"cache", "", []narinfo.PrivateKey{key}, true},
		} {
			s := start(t, func(c *gateway.Config) { c.Keys = tt.keys })
			nix.run("writer-"+tt.name, "nix", "copy", "--no-check-sigs", "--from", source, "--to", s.url+tt.params, path)
			get := func(home string, more ...string) error {
				args := []string{"nix", "copy", "--option", "require-sigs", "true", "--from", s.url, "--to", nix.store(home), path}
				_, err := nix.try(home, append(args, more...)...)
				return err
			}
			if err := get(tt.name+"-stranger", "--option", "trusted-public-keys", nixosKey); err == nil {
				t.Errorf("%s: taken by a client that does not trust the key", tt.name)
			}
			if err := get(tt.name, trusted...); (err == nil) != tt.signed {
				t.Errorf("%s: got %v from a client that trusts the key", tt.name, err)
			}
		}
	})
}

// testNixRealisations uploads what a content-addressed derivation has come to, and has
// another Nix find it there. Nix up to 2.34 keeps that in realisations/.
func testNixRealisations(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		key, trusted := trustedKey(t)
		s := start(t, func(c *gateway.Config) { c.Keys = []narinfo.PrivateKey{key} })
		expr := nix.write("ca.nix", `derivation {
  name = "ca"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo content >$out" ];
  __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
}`)
		feature := append([]string{"--option", "experimental-features", "nix-command ca-derivations", "-f", expr}, nix.building()...)
		secret := nix.write("secret", key.Secret())
		nix.run("builder", append([]string{"nix", "copy", "--no-check-sigs", "--store", nix.store("builder"), "--to", s.url + "?secret-key=" + secret}, feature...)...)
		if !strings.Contains(s.log.String(), "method=PUT path=/realisations/") {
			t.Errorf("nothing was uploaded to realisations/:\n%s", s.log)
		}
		args := append([]string{"nix", "build", "-L", "--no-link", "--store", nix.store("reader"), "--option", "substitute", "true", "--option", "substituters", s.url, "--option", "max-jobs", "0"}, feature...)
		nix.run("reader", append(args, trusted...)...)
		if !strings.Contains(s.log.String(), "method=GET path=/realisations/") || !strings.Contains(s.log.String(), "method=GET path=/nar/") {
			t.Errorf("nothing was downloaded:\n%s", s.log)
		}
	})
}
