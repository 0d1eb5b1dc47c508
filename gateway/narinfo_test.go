package gateway_test

import (
	"strings"
	"testing"

	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
)

func TestNarInfoIsChecked(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.MaxNarInfo = 10_000 })
	f, other := newFixture(t, 1, 1000), newFixture(t, 2, 2000)
	name := fileName(f.nar, "")
	s.want(200, "PUT", "/"+name, f.nar)
	s.want(200, "PUT", "/"+fileName(other.nar, ""), other.nar)
	s.want(200, "PUT", "/"+f.path.HashPart()+".ls", []byte("{}"))

	good := f.info(name, "none")
	text := good.Text(storeDir)
	change := func(old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in the narinfo", old)
		}
		return strings.Replace(text, old, new, 1)
	}
	for _, tt := range []struct {
		what, text string
		status     int
		says       string
	}{
		{"empty", "", 400, "corrupt"},
		{"no last line feed", strings.TrimSuffix(text, "\n"), 400, "corrupt"},
		{"another store", change("/nix/store/", "/gnu/store/"), 400, "/nix/store"},
		{"another path", strings.Replace(text, f.path.String(), other.path.String(), 1), 400, other.path.HashPart()},
		{"traversal in the path", change("-test", "-../../etc"), 400, "corrupt"},
		{"missing NAR", change(name, "nar/missing.nar"), 400, "PUT it before"},
		{"NAR of another path", change(name, fileName(other.nar, "")), 400, "NarHash"},
		{"wrong hash", change(narinfo.EncodeNix32(f.hash[:])+"\nNarSize", narinfo.EncodeNix32(other.hash[:])+"\nNarSize"), 400, "NarHash"},
		{"wrong size", change("NarSize: ", "NarSize: 1"), 400, "NarSize"},
		{"wrong compression", change("Compression: none", "Compression: xz"), 400, "Compression"},
		{"no compression", change("Compression: none\n", ""), 400, "bzip2"},
		{"traversal in the URL", change(name, "nar/../"+name), 400, "URL"},
		{"hidden traversal in the URL", change(name, "nar/%2e%2e/"+name), 400, "URL"},
		{"URL of another server", change(name, "http://example.org/"+name), 400, "not in this cache"},
		{"URL without a scheme", change(name, "//example.org/"+name), 400, "not in this cache"},
		{"file URL", change(name, "file:///"+name), 400, "URL"},
		{"URL with a query", change(name, name+"?x"), 400, "URL"},
		{"URL of a listing", change(name, f.path.HashPart()+".ls"), 400, "URL"},
		{"oversize", text + "X: " + strings.Repeat("x", 10_000) + "\n", 413, "10000"},
	} {
		a := s.want(tt.status, "PUT", f.narInfoURL(), []byte(tt.text))
		if !strings.Contains(string(a.body), tt.says) {
			t.Errorf("%s: got message %q, want %q in it", tt.what, a.body, tt.says)
		}
		if a := s.want(404, "GET", f.narInfoURL(), nil); a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("404 has headers %v", a.Header)
		}
	}
	for _, path := range []string{"/x.narinfo", "/" + strings.Repeat("e", 32) + ".narinfo", "/a/" + f.narInfoURL()} {
		s.want(404, "PUT", path, []byte(text))
	}
	for _, url := range []string{name, "/" + name, s.url + "/" + name, "//" + s.host + "/" + name, strings.TrimPrefix(f.plainURL(), "/")} {
		s.want(200, "PUT", f.narInfoURL(), []byte(change(name, url)))
	}
	s.want(200, "GET", f.narInfoURL(), nil)
	// As it is served, as when a client adds a signature.
	s.want(200, "PUT", f.narInfoURL(), s.want(200, "GET", f.narInfoURL(), nil).body)
}

func TestNarInfoEncodings(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.MaxNarInfo = 10_000 })
	f := newFixture(t, 1, 1000)
	name := fileName(f.nar, "")
	s.want(200, "PUT", "/"+name, f.nar)
	text := []byte(f.info(name, "none").Text(storeDir))
	s.want(200, "PUT", f.narInfoURL(), gzipEncode(t, text), "Content-Encoding: gzip")
	s.want(200, "PUT", f.narInfoURL(), zstdEncode(t, text), "Content-Encoding: zstd")
	s.want(200, "PUT", f.narInfoURL(), text, "Content-Encoding: identity")
	s.want(415, "PUT", f.narInfoURL(), text, "Content-Encoding: bzip2")
	s.want(415, "PUT", f.narInfoURL(), text, "Content-Encoding: gzip, br")
	s.want(400, "PUT", f.narInfoURL(), text, "Content-Encoding: gzip")
	bomb := append(text[:len(text):len(text)], "X: "+strings.Repeat("x", 1<<20)+"\n"...)
	s.want(413, "PUT", f.narInfoURL(), zstdEncode(t, bomb), "Content-Encoding: zstd")
}

// TestSigning signs what is PUT, keeps what signatures there were, and shows what a PUT
// changed at once.
func TestSigning(t *testing.T) {
	ours, err := narinfo.GenerateKey("ours-1")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := narinfo.GenerateKey("theirs-1")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, func(c *gateway.Config) { c.Keys = []narinfo.PrivateKey{ours} })
	f := newFixture(t, 1, 1000)
	s.upload(f)
	verify := func(key narinfo.PrivateKey, want bool) {
		t.Helper()
		if _, got := s.narInfo(f).Verify(storeDir, []narinfo.PublicKey{key.Public()}); got != want {
			t.Errorf("signed by %s: got %v, want %v", key.Name, got, want)
		}
	}
	verify(ours, true)
	verify(theirs, false)
	signed := s.narInfo(f)
	signed.Sign(storeDir, theirs)
	s.want(200, "PUT", f.narInfoURL(), []byte(signed.Text(storeDir)))
	verify(ours, true)
	verify(theirs, true)
	if log := s.log.String(); !strings.Contains(log, `msg="narinfo signed" path=`+f.path.String()+` key=ours-1`) {
		t.Error("the log does not say what was signed")
	}
}

func TestCacheInfo(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.Priority = 17 })
	a := s.want(200, "GET", "/nix-cache-info", nil)
	if got, want := string(a.body), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 17\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := a.Header.Get("Content-Type"); got != "text/x-nix-cache-info" {
		t.Errorf("got Content-Type %q", got)
	}
	s.want(200, "HEAD", "/nix-cache-info", nil)
	s.want(200, "PUT", "/nix-cache-info", []byte("StoreDir: /nix/store\n"))
	s.want(400, "PUT", "/nix-cache-info", []byte("StoreDir: /gnu/store\n"))
	s.want(405, "DELETE", "/nix-cache-info", nil)
	s.want(405, "POST", "/nix-cache-info", nil)
	s.want(404, "GET", "/", nil)
}
