package gateway_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixstore"
	"github.com/dedupd/dedupd/pull"
)

// A localStore is one of Nix's, with a path that was added, and one that was built of it.
type localStore struct {
	root     string
	lib, app narinfo.StorePath
	key      narinfo.PrivateKey
}

func newLocalStore(nix *client) *localStore {
	t := nix.t
	t.Helper()
	l := &localStore{root: nix.store("local")}
	parse := func(out string) narinfo.StorePath {
		lines := strings.Fields(out)
		p, err := narinfo.ParseStorePath(storeDir, lines[len(lines)-1])
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	l.lib = parse(nix.run("local", "nix-store", "--store", l.root, "--add", "local_test.go"))
	args := []string{"nix-build", "--store", l.root, "--no-out-link", "--option", "sandbox-paths", "/bin /lib /lib64 /usr", "-E",
		`derivation { name = "app"; system = builtins.currentSystem; builder = "/bin/sh"; lib = builtins.storePath ` + l.lib.Path(storeDir) + `;
		args = [ "-c" "/bin/mkdir -p $out/bin && echo $lib $out >$out/bin/app && /bin/chmod +x $out/bin/app && /bin/ln -s bin/app $out/link && echo this is the log" ]; }`}
	if nix.command != nil {
		args = append(args, "--option", "build-hook", "") // which 2.8 would run
	}
	l.app = parse(nix.run("local", args...))
	var err error
	if l.key, err = narinfo.GenerateKey("local-1"); err != nil {
		t.Fatal(err)
	}
	return l
}

// upstreams are the settings with which a gateway serves the store.
func (l *localStore) upstreams(t *testing.T, change ...func(*pull.Upstream)) *pull.Config {
	t.Helper()
	source, err := nixstore.Open(t.Context(), nixstore.Options{Root: l.root, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	u := pull.Upstream{Source: source, Local: true, Sign: []narinfo.PrivateKey{l.key}}
	for _, c := range change {
		c(&u)
	}
	return &pull.Config{Upstreams: []pull.Upstream{u}}
}

// file returns the real path of a store path.
func (l *localStore) file(p narinfo.StorePath) string { return filepath.Join(l.root, p.Path(storeDir)) }

// localInfo returns the narinfo of a path as it is served.
func (s *server) localInfo(p narinfo.StorePath) *narinfo.NarInfo {
	s.t.Helper()
	info, err := narinfo.Parse(s.want(200, "GET", "/"+p.HashPart()+".narinfo", nil).body, storeDir)
	if err != nil {
		s.t.Fatal(err)
	}
	return info
}

// testNixLocalStore has each Nix get paths, logs and listings out of a store of its own.
func testNixLocalStore(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		l := newLocalStore(nix)
		s := startWith(t, l.upstreams(t))
		app := l.app.Path(storeDir)
		trusted := []string{"--option", "trusted-public-keys", l.key.Public().String()}
		nix.run("reader", append([]string{"nix-store", "--store", nix.store("substituted"), "--option", "substitute", "true", "--option", "substituters", s.url, "-r", app}, trusted...)...)
		nix.run("copier", append([]string{"nix", "copy", "--from", s.url, "--to", nix.store("copied"), app}, trusted...)...)
		proxy := newCuttingProxy(t, s)
		nix.run("resumer", append([]string{"nix", "copy", "--from", proxy.URL, "--to", nix.store("resumed"), app}, trusted...)...)
		proxy.want(2)
		for _, store := range []string{"substituted", "copied", "resumed"} {
			nix.run("reader", append([]string{"nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", nix.store(store), app}, trusted...)...)
		}
		for _, p := range []narinfo.StorePath{l.lib, l.app} {
			want, err := exec.CommandContext(t.Context(), "nix-store", "--dump", l.file(p)).Output()
			if err != nil {
				t.Fatal(err)
			}
			info := s.localInfo(p)
			s.checkBody("/"+info.URL, want)
			if has, err := s.store.HasPath(t.Context(), p.HashPart()); has || err != nil {
				t.Errorf("%s was stored: %v, %v", p, has, err)
			}
		}
		drv := s.localInfo(l.app).Deriver.String()
		if a := s.want(200, "GET", "/log/"+drv, nil); string(a.body) != "this is the log\n" {
			t.Errorf("got log %q", a.body)
		}
		if nix.command != nil { // 2.8 wants the derivation itself
			if out := nix.run("reader", "nix", "log", "--store", s.url, storeDir+"/"+drv); !strings.Contains(out, "this is the log") {
				t.Errorf("nix log prints %q", out)
			}
		}
		if a := s.want(200, "GET", "/"+l.app.HashPart()+".ls", nil); !bytes.Contains(a.body, []byte(`"target":"bin/app"`)) {
			t.Errorf("got listing %s", a.body)
		}
		if out := nix.run("reader", "nix", "store", "ls", "--store", s.url, "-R", app); !strings.Contains(out, "bin/app") {
			t.Errorf("nix store ls prints %q", out)
		}
	})
}

// oneNix returns the Nix in the path.
func oneNix(t *testing.T) *client {
	t.Helper()
	if _, err := exec.LookPath("nix"); err != nil {
		missing(t, "nix")
	}
	nix := &client{t: t, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(nix.dir, "nix.conf"), []byte("sandbox = false\nbuild-users-group =\nsubstitute = false\nfsync-metadata = false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return nix
}

// TestLocalStoreHeaders looks at what clients rely on: lengths, ranges, and that a path is
// there as soon as Nix has it, and a restart later, and until it is gone.
func TestLocalStoreHeaders(t *testing.T) {
	nix := oneNix(t)
	l := newLocalStore(nix)
	s := startWith(t, l.upstreams(t))
	info := s.localInfo(l.app)
	if _, ok := info.Verify(storeDir, []narinfo.PublicKey{l.key.Public()}); !ok || !strings.Contains(s.log.String(), `msg="narinfo signed"`) {
		t.Errorf("not signed, or not logged: %v", info.Sigs)
	}
	s.stop()
	s = startWith(t, l.upstreams(t))
	a := s.want(200, "HEAD", "/"+info.URL, nil)
	b := s.want(200, "GET", "/"+info.URL, nil)
	for _, name := range []string{"Content-Length", "Etag", "Accept-Ranges", "Cache-Control"} {
		if a.Header.Get(name) == "" || a.Header.Get(name) != b.Header.Get(name) {
			t.Errorf("%s: HEAD has %q, GET %q", name, a.Header.Get(name), b.Header.Get(name))
		}
	}
	if got := a.Header.Get("Cache-Control"); !strings.Contains(got, "immutable") {
		t.Errorf("got Cache-Control %q", got)
	}
	if c := s.want(206, "GET", "/"+info.URL, nil, "Range: bytes=100-"); !bytes.Equal(c.body, b.body[100:]) || c.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("a range, which is not verified: got %d bytes, headers %v", len(c.body), c.Header)
	}
	s.want(404, "GET", "/"+strings.Repeat("0", 32)+".narinfo", nil)
	for _, path := range []string{
		"/nar/" + l.app.HashPart() + ".nar", "/nar/" + strings.Replace(info.URL[4:], "-", "-1", 1), "/" + strings.Replace(info.URL, l.app.HashPart(), l.lib.HashPart(), 1),
		"/log/" + l.app.String(), "/log/" + strings.Repeat("0", 32) + "-x.drv", "/nar/" + strings.Repeat("0", 52) + ".nar",
	} {
		s.want(404, "GET", path, nil)
		s.want(404, "HEAD", path, nil)
	}

	// Absent, and a moment later there.
	file := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(file, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	elsewhere := strings.TrimSpace(nix.run("elsewhere", "nix-store", "--store", nix.store("elsewhere"), "--add", file))
	hashPart := strings.TrimPrefix(elsewhere, storeDir+"/")[:narinfo.HashPartLen]
	s.want(404, "GET", "/"+hashPart+".narinfo", nil)
	nix.run("local", "nix-store", "--store", l.root, "--add", file)
	s.want(200, "GET", "/"+hashPart+".narinfo", nil)
}

// TestLocalStoreDamage has a path whose files are not what Nix knows: its NAR must never
// end as if it were whole, and then the path is absent.
func TestLocalStoreDamage(t *testing.T) {
	l := newLocalStore(oneNix(t))
	s := startWith(t, l.upstreams(t))
	info := s.localInfo(l.lib)
	if err := os.Chmod(l.file(l.lib), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(l.file(l.lib), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("X"), 10); err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Get(s.url + "/" + info.URL)
	if err == nil {
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if resp.StatusCode == http.StatusOK && err == nil {
			t.Errorf("got %d bytes that look whole", len(body))
		}
	}
	s.want(404, "GET", "/"+info.URL, nil)
	if got := s.do("GET", "/"+l.app.HashPart()+".narinfo", nil).StatusCode; got != 200 {
		t.Errorf("another path: got %d", got)
	}
}

// TestLocalStoreKept has paths stored as they are asked for.
func TestLocalStoreKept(t *testing.T) {
	l := newLocalStore(oneNix(t))
	s := startWith(t, l.upstreams(t, func(u *pull.Upstream) { u.Keep = true }))
	for _, p := range []narinfo.StorePath{l.lib, l.app} {
		info := s.localInfo(p)
		first := s.want(200, "GET", "/"+info.URL, nil).body
		if err := s.pull.Ingest(t.Context(), strings.TrimPrefix(info.URL, "nar/")); err != nil {
			t.Error(err)
		}
		if has, err := s.store.HasPath(t.Context(), p.HashPart()); !has || err != nil {
			t.Errorf("%s was not stored: %v", p, err)
		}
		s.checkBody("/"+info.URL, first)
	}
}
