package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/pull"
	"github.com/dedupd/dedupd/upstream"
)

// pulled gets a path as a client does, and checks what it gets.
func (s *server) pulled(f *fixture, file []byte) *narinfo.NarInfo {
	s.t.Helper()
	info := s.narInfo(f)
	if a := s.want(200, "GET", "/"+info.URL, nil); !bytes.Equal(a.body, file) {
		s.t.Errorf("got %d bytes of other contents than %d", len(a.body), len(file))
	}
	return info
}

// TestPullSignatures takes paths only under a signature of the upstream's own key.
func TestPullSignatures(t *testing.T) {
	o, other := newOrigin(t), newOrigin(t)
	signed, unsigned, foreign, forged := newFixture(t, 1, 1000), newFixture(t, 2, 1000), newFixture(t, 3, 1000), newFixture(t, 4, 1000)
	for _, f := range []*fixture{signed, unsigned, foreign, forged} {
		info := o.put(f, fileName(f.nar, ""), "none", f.nar)
		switch f {
		case unsigned:
			info.Sigs = nil
		case foreign:
			info.Sigs = nil
			info.Sign(storeDir, other.key)
		case forged:
			info.NarSize++
		}
		o.files[f.narInfoURL()[1:]] = []byte(info.Text(storeDir))
	}
	s := startWith(t, o.upstreams(t))
	s.pulled(signed, signed.nar)
	for _, f := range []*fixture{unsigned, foreign, forged} {
		s.want(404, "GET", f.narInfoURL(), nil)
		s.want(404, "HEAD", f.narInfoURL(), nil)
		s.nothingStored(f)
	}
	s.waitStored(signed.path.HashPart())
	if n := strings.Count(s.log.String(), "without a good signature"); n != 3 {
		t.Errorf("the log tells of %d bad signatures", n)
	}
	trusting := startWith(t, o.upstreams(t, func(u *pull.Upstream) { u.Keys = nil }))
	trusting.pulled(unsigned, unsigned.nar)
}

// TestPullOrder asks upstreams one after another.
func TestPullOrder(t *testing.T) {
	first, second := newOrigin(t), newOrigin(t)
	both, only, none := newFixture(t, 1, 1000), newFixture(t, 2, 1000), newFixture(t, 3, 1000)
	file, url := zstdEncode(t, both.nar), fileName(zstdEncode(t, both.nar), ".zst")
	first.put(both, url, "zstd", file)
	second.put(both, fileName(both.nar, ""), "none", both.nar)
	second.put(only, fileName(only.nar, ""), "none", only.nar)
	ups := first.upstreams(t)
	ups.Upstreams = append(ups.Upstreams, second.upstreams(t).Upstreams...)
	s := startWith(t, ups)
	s.pulled(both, file)
	s.pulled(only, only.nar)
	for range 3 {
		s.want(404, "GET", none.narInfoURL(), nil)
	}
	for name, want := range map[string]int{both.narInfoURL(): 1, only.narInfoURL(): 1, none.narInfoURL(): 1} {
		if n := first.count(name[1:]); n != want {
			t.Errorf("first upstream was asked %d times for %s, want %d", n, name, want)
		}
	}
	if n := second.count(both.narInfoURL()[1:]); n != 0 {
		t.Errorf("second upstream was asked for what the first one has")
	}

	// What only the second has is still there when the first one is not; what nobody has
	// is not known to be absent.
	first.Close()
	gone := newFixture(t, 4, 1000)
	third := newFixture(t, 5, 1000)
	second.put(third, fileName(third.nar, ""), "none", third.nar)
	s.pulled(third, third.nar)
	a := s.want(503, "GET", gone.narInfoURL(), nil)
	if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Retry-After") == "" {
		t.Errorf("got header %v", a.Header)
	}
	for range 5 {
		s.want(503, "GET", newFixture(t, 6, 1000).narInfoURL(), nil)
	}
	if n := strings.Count(s.log.String(), "upstream does not answer"); n != 1 {
		t.Errorf("the log says %d times that the upstream does not answer", n)
	}
	ups.Upstreams[0].AbsentWhenUnreachable = true
	s = startWith(t, ups)
	s.want(404, "GET", gone.narInfoURL(), nil)
}

// TestPullSlowClient reads from a file that others have got long ago.
func TestPullSlowClient(t *testing.T) {
	o := newOrigin(t)
	f := newFixture(t, 1, 2_000_000)
	name := fileName(f.nar, "")
	o.put(f, name, "none", f.nar)
	half := make(chan struct{})
	o.on("nar/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(f.nar)))
		w.Write(f.nar[:len(f.nar)/2])
		http.NewResponseController(w).Flush()
		<-half
		w.Write(f.nar[len(f.nar)/2:])
	})
	s := startWith(t, o.upstreams(t))
	s.narInfo(f)
	slow, err := s.client.Get(s.url + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Body.Close()
	head := make([]byte, 1000) // what the upstream has sent comes through before the rest is there
	if _, err := io.ReadFull(slow.Body, head); err != nil || !bytes.Equal(head, f.nar[:1000]) {
		t.Errorf("first bytes: %v", err)
	}
	if a := s.want(206, "GET", "/"+name, nil, "Range: bytes=1000-1999"); !bytes.Equal(a.body, f.nar[1000:2000]) {
		t.Error("got another range")
	}
	close(half)
	s.pulled(f, f.nar)
	s.waitStored(f.path.HashPart())
	rest, err := io.ReadAll(slow.Body)
	if err != nil || !bytes.Equal(rest, f.nar[1000:]) {
		t.Errorf("slow client got %d bytes: %v", len(rest), err)
	}
	if n := o.count(name); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
}

// TestPullWithoutClients goes on when the client has left.
func TestPullWithoutClients(t *testing.T) {
	o := newOrigin(t)
	f := newFixture(t, 1, 500_000)
	name := fileName(f.nar, "")
	o.put(f, name, "none", f.nar)
	left := make(chan struct{})
	o.on("nar/", func(w http.ResponseWriter, r *http.Request) {
		w.Write(f.nar[:1000])
		http.NewResponseController(w).Flush()
		<-left
		w.Write(f.nar[1000:])
	})
	s := startWith(t, o.upstreams(t))
	s.narInfo(f)
	resp, err := s.client.Get(s.url + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	close(left)
	s.waitStored(f.path.HashPart())
}

// TestPullHead tells of a NAR what its narinfo says, and nobody is asked for it.
func TestPullHead(t *testing.T) {
	o := newOrigin(t)
	f := newFixture(t, 1, 100_000)
	file := zstdEncode(t, f.nar)
	name := fileName(file, ".zst")
	o.put(f, name, "zstd", file)
	s := startWith(t, o.upstreams(t))
	s.want(404, "HEAD", "/"+name, nil) // else its upload would be skipped
	s.want(200, "HEAD", f.narInfoURL(), nil)
	if a := s.want(200, "HEAD", "/"+name, nil); a.ContentLength != int64(len(file)) {
		t.Errorf("got Content-Length %d, want %d", a.ContentLength, len(file))
	}
	if n := o.count(name); n != 0 {
		t.Errorf("upstream was asked %d times for the NAR", n)
	}
	// Now its upload is skipped, and another path has the same NAR.
	other := *f
	other.path = newFixture(t, 2, 1000).path
	s.want(200, "PUT", other.narInfoURL(), []byte(other.info(name, "zstd").Text(storeDir)))
	s.waitStored(other.path.HashPart())
	s.waitStored(f.path.HashPart())
}

// TestPullSharedNAR stores the narinfo of a path whose NAR is there already.
func TestPullSharedNAR(t *testing.T) {
	o := newOrigin(t)
	f := newFixture(t, 1, 100_000)
	o.put(f, fileName(f.nar, ""), "none", f.nar)
	s := startWith(t, o.upstreams(t))
	other := *f
	other.path = newFixture(t, 2, 1000).path
	s.upload(&other)
	if info := s.narInfo(f); info.Compression != "zstd" || len(info.Sigs) != 1 {
		t.Errorf("got narinfo %s", info.Text(storeDir))
	}
	s.waitStored(f.path.HashPart())
}

// TestPullPassing lets NARs through that are not stored: because they should not be, or
// because there is no room.
func TestPullPassing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits chunkstore.Limits
		keep   bool
	}{
		{"keep is off", chunkstore.Limits{}, false},
		{"disk is full", chunkstore.Limits{MinFree: 1 << 60}, true},
		{"too large", chunkstore.Limits{MaxNAR: 100_000}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOrigin(t)
			f := newFixture(t, 1, 1_000_000)
			file := zstdEncode(t, f.nar)
			name := fileName(file, ".zst")
			o.put(f, name, "zstd", file)
			s := startPulling(t, t.TempDir(), tt.limits, o.upstreams(t, func(u *pull.Upstream) { u.Keep = tt.keep }))
			s.pulled(f, file)
			if a := s.want(206, "GET", "/"+name, nil, "Range: bytes=1000-"); !bytes.Equal(a.body, file[1000:]) {
				t.Error("got another range")
			}
			s.stop()
			s.nothingStored(f)
		})
	}
}

// TestPullBzip2 lets a compression through that the store does not have, and looks at it.
func TestPullBzip2(t *testing.T) {
	bzip2, err := exec.LookPath("bzip2")
	if err != nil {
		missing(t, "bzip2")
	}
	for _, broken := range []bool{false, true} {
		o := newOrigin(t)
		f := newFixture(t, 1, 300_000)
		cmd := exec.Command(bzip2, "-c")
		cmd.Stdin = bytes.NewReader(f.nar)
		file, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		name := fileName(file, ".bz2")
		o.put(f, name, "bzip2", file)
		if broken {
			bad := bytes.Clone(file)
			bad[len(bad)/2] ^= 1
			o.files[name] = bad
		}
		s := startWith(t, o.upstreams(t))
		s.narInfo(f)
		status, body, err := s.get("/" + name)
		if whole := status == 200 && err == nil && bytes.Equal(body, file); whole == broken {
			t.Errorf("broken %v: got %d, %d bytes (%v)", broken, status, len(body), err)
		}
		s.stop()
		s.nothingStored(f)
	}
}

// TestPullFiles passes small files through, and keeps logs.
func TestPullFiles(t *testing.T) {
	o := newOrigin(t)
	f := newFixture(t, 1, 1000)
	log, doi, ls := "log/"+f.path.String()+".drv", "realisations/sha256:"+strings.Repeat("0", 64)+"!out.doi", f.path.HashPart()+".ls"
	o.files[log] = zstdEncode(t, []byte("built\n"))
	o.files[doi], o.files[ls] = []byte("{}"), []byte(`{"version":1}`)
	s := startWith(t, o.upstreams(t), func(c *gateway.Config) { c.MaxFile = 1 << 20 })
	for range 2 {
		for name, want := range map[string]string{log: "built\n", doi: "{}", ls: `{"version":1}`} {
			if a := s.want(200, "GET", "/"+name, nil); string(a.body) != want {
				t.Errorf("%s: got %q, want %q", name, a.body, want)
			}
		}
	}
	if n, m := o.count(log), o.count(ls); n != 1 || m != 2 {
		t.Errorf("upstream was asked %d times for a log and %d times for a listing", n, m)
	}
	s.want(404, "GET", "/log/"+f.path.String()+"-other.drv", nil)
	o.files["log/"+f.path.String()+"-long.drv"] = make([]byte, 2<<20)
	if status, body, err := s.get("/log/" + f.path.String() + "-long.drv"); status == 200 && err == nil {
		t.Errorf("got a log of %d bytes", len(body))
	}
}

// TestPullDirectory pulls from a file:// cache, and tells one that is not mounted from one
// that has nothing.
func TestPullDirectory(t *testing.T) {
	dir := t.TempDir()
	f := newFixture(t, 1, 100_000)
	write := func(name string, b []byte) {
		if err := os.WriteFile(dir+"/"+name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := startWith(t, &pull.Config{Upstreams: []pull.Upstream{{Source: upstream.NewDir(dir, storeDir), Keep: true}}})
	s.want(503, "GET", f.narInfoURL(), nil)
	write("nix-cache-info", []byte("StoreDir: /nix/store\n"))
	s = startWith(t, &pull.Config{Upstreams: []pull.Upstream{{Source: upstream.NewDir(dir, storeDir), Keep: true}}})
	s.want(404, "GET", f.narInfoURL(), nil)
	g := newFixture(t, 2, 100_000)
	write("x.nar", g.nar)
	write(g.narInfoURL()[1:], []byte(g.info("x.nar", "none").Text(storeDir)))
	s.pulled(g, g.nar)
	s.waitStored(g.path.HashPart())
	h := newFixture(t, 3, 100_000)
	write(h.narInfoURL()[1:], []byte(h.info("../x.nar", "none").Text(storeDir)))
	s.want(503, "GET", "/"+s.narInfo(h).URL, nil)
}

// TestPullLoop makes gateways each other's upstreams, and one its own.
func TestPullLoop(t *testing.T) {
	there, nowhere := newFixture(t, 1, 100_000), newFixture(t, 2, 1000)
	// The address of a server is known when it runs; until then a proxy of one line stands
	// for it.
	var servers [2]*server
	var urls [2]string
	for i := range urls {
		o := newOrigin(t)
		o.on("", func(w http.ResponseWriter, r *http.Request) { servers[i].gateway.ServeHTTP(w, r) })
		urls[i] = o.URL
	}
	for i := range servers {
		via := pull.NewVia()
		cfg := &pull.Config{Via: via}
		for _, url := range []string{urls[i], urls[1-i]} {
			source, err := upstream.NewHTTP(upstream.HTTPConfig{URL: url, StoreDir: storeDir, Via: via})
			if err != nil {
				t.Fatal(err)
			}
			cfg.Upstreams = append(cfg.Upstreams, pull.Upstream{Source: source, Keep: true})
		}
		servers[i] = startWith(t, cfg)
	}
	servers[0].upload(there)
	for _, s := range servers {
		info := s.narInfo(there)
		s.want(200, "GET", "/"+info.URL, nil)
		s.want(404, "GET", nowhere.narInfoURL(), nil)
		s.want(404, "GET", nowhere.plainURL(), nil)
	}
	servers[1].waitStored(there.path.HashPart())
}

// TestPullHeals pulls again what was damaged in the store.
func TestPullHeals(t *testing.T) {
	o := newOrigin(t)
	f := newFixture(t, 1, 4<<20)
	file := zstdEncode(t, f.nar)
	o.put(f, fileName(file, ".zst"), "zstd", file)
	upstreams := o.upstreams(t)
	upstreams.Cache = 1 // nothing stays but in the store
	s := startWith(t, upstreams)
	s.damaged = true
	s.pulled(f, file)
	s.waitStored(f.path.HashPart())
	if err := s.store.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	damagePacks(t, filepath.Join(s.dir, "bucket"))
	if status, body, err := s.get(f.plainURL()); status == 200 && err == nil {
		t.Errorf("got %d bytes from a damaged pack", len(body))
	}
	s.pulled(f, file)
	for range 1000 {
		if status, body, err := s.get(f.plainURL()); status == 200 && err == nil && bytes.Equal(body, f.nar) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the NAR is still damaged")
}
