package gateway_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/pull"
	"github.com/dedupd/dedupd/upstream"
)

// testNixPulls has Nix get paths of a real cache through a gateway, in an empty store, from
// the store, and after a restart by the names that it remembers.
func testNixPulls(t *testing.T) {
	var cache string
	for _, dir := range realCaches(t) {
		if strings.Contains(dir, "lpenz") {
			cache = dir
		}
	}
	if cache == "" {
		missing(t, "the cache of lpenz")
	}
	key, err := narinfo.ParsePublicKey(nixosKey)
	if err != nil {
		t.Fatal(err)
	}
	forEachNix(t, func(t *testing.T, nix *client) {
		o := newOrigin(t)
		o.fromDirectory(t, cache)
		source, err := upstream.NewHTTP(upstream.HTTPConfig{URL: o.URL, StoreDir: storeDir})
		if err != nil {
			t.Fatal(err)
		}
		config := func() *pull.Config {
			return &pull.Config{Upstreams: []pull.Upstream{{Source: source, Keys: []narinfo.PublicKey{key}, Keep: true}}}
		}
		all := func(home string, args ...string) { nix.run(home, append(args, realPaths...)...) }
		s := startWith(t, config())
		all("first", "nix", "copy", "--from", s.url, "--to", nix.store("first"))
		all("second", "nix-store", "--store", nix.store("second"), "--option", "substitute", "true", "--option", "substituters", s.url, "-r")
		all("first", "nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", nix.store("first"))
		for name, n := range o.asked {
			if n > 1 {
				t.Errorf("upstream was asked %d times for %s", n, name)
			}
		}
		// What upstream has counts as present: nothing is uploaded.
		before := len(s.log.String())
		all("third", "nix", "copy", "--from", nix.store("first"), "--to", s.url)
		if log := s.log.String()[before:]; strings.Contains(log, "method=PUT") {
			t.Errorf("a client has uploaded what upstream has:\n%s", log)
		}
		if log := s.log.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
			t.Errorf("log:\n%s", log)
		}
		for name := range o.asked {
			if hashPart, ok := strings.CutSuffix(name, ".narinfo"); ok {
				s.waitStored(hashPart)
			}
		}
		s.close()

		// The gateway is another process at the same address, without the upstream.
		s2 := startAt(t, s.host, s.dir, chunkstore.Limits{}, nil)
		all("first", "nix", "copy", "--from", s2.url, "--to", nix.store("again"))
		if log := s2.log.String(); strings.Contains(log, ".narinfo") {
			t.Errorf("the client has asked for narinfos that it knows:\n%s", log)
		}
		all("fourth", "nix", "copy", "--from", s2.url, "--to", nix.store("fourth"))
	})
}

// fromDirectory serves the files of a cache.
func (o *origin) fromDirectory(t *testing.T, dir string) {
	t.Helper()
	for _, pattern := range []string{"*", "nar/*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
				continue
			}
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(dir, name)
			if err != nil {
				t.Fatal(err)
			}
			o.files[filepath.ToSlash(rel)] = b
		}
	}
}
