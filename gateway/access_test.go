package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
)

// A vault is a token file, and what the server makes of it.
type vault struct {
	t      testing.TB
	file   string
	tokens *access.Tokens
}

// newVault returns a vault with tokens.
func newVault(t testing.TB, tokens ...access.Token) (*vault, []string) {
	t.Helper()
	v := &vault{t: t, file: filepath.Join(t.TempDir(), "tokens.json")}
	var texts []string
	for _, token := range tokens {
		texts = append(texts, v.create(token))
	}
	var err error
	if v.tokens, err = access.Open(v.file, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return v, texts
}

func (v *vault) create(token access.Token) string {
	v.t.Helper()
	text, err := access.Create(v.file, &token)
	if err != nil {
		v.t.Fatal(err)
	}
	return text
}

// private has everyone need a token, on this machine, too.
func (v *vault) private(c *gateway.Config) {
	c.Access = &access.Policy{Tokens: v.tokens, Log: c.Log}
}

// public has everyone read.
func (v *vault) public(c *gateway.Config) {
	v.private(c)
	c.Access.Anyone = access.Read
}

func bearer(token string) string { return "Authorization: Bearer " + token }

// TestAccess goes through who asks, what for, and how.
func TestAccess(t *testing.T) {
	v, texts := newVault(t,
		access.Token{Name: "reader", Rights: access.Read},
		access.Token{Name: "writer", Rights: access.Read | access.Write},
		access.Token{Name: "uploader", Rights: access.Write},
		access.Token{Name: "admin", Rights: access.Admin},
		access.Token{Name: "expired", Rights: access.Read | access.Write | access.Admin, Expires: time.Now()},
	)
	who := map[string][]string{
		"nobody": nil, "reader": {bearer(texts[0])}, "writer": {bearer(texts[1])}, "uploader": {bearer(texts[2])}, "admin": {bearer(texts[3])},
		"expired": {bearer(texts[4])}, "unknown": {bearer("dedupd_x")}, "twice": {bearer(texts[0]), bearer(texts[1])},
	}
	// The status for GET, HEAD, PUT, POST and DELETE of anything; 0 is any but 401 and 403.
	type statuses [5]int
	private := map[string]statuses{
		"nobody": {401, 401, 401, 401, 401}, "reader": {0, 0, 403, 0, 0}, "writer": {}, "uploader": {403, 403, 0, 403, 403}, "admin": {403, 403, 403, 403, 403},
		"expired": {401, 401, 401, 401, 401}, "unknown": {401, 401, 401, 401, 401}, "twice": {401, 401, 401, 401, 401},
	}
	public := map[string]statuses{
		"nobody": {0, 0, 401, 0, 0}, "reader": {0, 0, 403, 0, 0}, "writer": {}, "uploader": {}, "admin": {0, 0, 403, 0, 0},
		"expired": {0, 0, 401, 0, 0}, "unknown": {0, 0, 401, 0, 0}, "twice": {0, 0, 401, 0, 0},
	}
	f := newFixture(t, 1, 10_000)
	for _, tt := range []struct {
		name   string
		policy func(*gateway.Config)
		want   map[string]statuses
	}{{"private", v.private, private}, {"public", v.public, public}} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, tt.policy)
			name := fileName(f.nar, "")
			s.want(200, "PUT", "/"+name, f.nar, who["writer"]...)
			s.want(200, "PUT", f.narInfoURL(), []byte(f.info(name, "none").Text(storeDir)), who["writer"]...)
			paths := []string{
				f.narInfoURL(), "/" + name, "/nix-cache-info", "/" + f.path.HashPart() + ".ls", f.plainURL(), "/api/v1/missing", "/",
				"/" + strings.Repeat("0", 32) + ".narinfo", "/nar/absent.nar", "/log/absent", "/nowhere/at/all", "/../etc/passwd",
				"/debuginfo/x.debug", "/realisations/x.doi", "/build-trace-v2/x/out.doi", "/" + strings.Repeat("x", 5000),
			}
			for name, headers := range who {
				for i, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE"} {
					var first *answer
					for _, path := range paths {
						a := s.do(method, path, nil, headers...)
						want := tt.want[name][i]
						refused := a.StatusCode == 401 || a.StatusCode == 403
						if a.StatusCode != want && (want != 0 || refused) {
							t.Errorf("%s: %s %.100s: got %v, want %d", name, method, path, a, want)
						}
						if refused {
							if first == nil {
								first = a
							}
							sameAnswer(t, fmt.Sprintf("%s: %s %.100s", name, method, path), a, first)
						}
						if (a.Header.Get("Www-Authenticate") == `Basic realm="dedupd"`) != (a.StatusCode == 401) {
							t.Errorf("%s: %s %.100s: got %d and headers %v", name, method, path, a.StatusCode, a.Header)
						}
						if strings.HasPrefix(a.Header.Get("Cache-Control"), "public") && tt.name == "private" {
							t.Errorf("%s: %s %.100s is for everyone: %v", name, method, path, a.Header)
						}
					}
				}
			}
			for _, text := range texts {
				if secret := text[len("dedupd_")+9:]; strings.Contains(s.log.String(), secret) {
					t.Errorf("a token is in the log")
				}
			}
			for _, want := range []string{"by=token:writer", "credentials were refused"} {
				if !strings.Contains(s.log.String(), want) {
					t.Errorf("the log does not have %q", want)
				}
			}
		})
	}
}

// sameAnswer checks that nothing tells two answers apart.
func sameAnswer(t *testing.T, what string, a, b *answer) {
	t.Helper()
	got, want := maps.Clone(a.Header), maps.Clone(b.Header)
	delete(got, "Date")
	delete(want, "Date")
	if a.StatusCode != b.StatusCode || !maps.EqualFunc(got, want, slices.Equal[[]string]) || !bytes.Equal(a.body, b.body) {
		t.Errorf("%s: got %v %v, but another URL gets %v %v", what, a, got, b, want)
	}
}

// A counter counts what is read of a body.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// TestRefusedIsNotRead sends bodies without the right to.
func TestRefusedIsNotRead(t *testing.T) {
	v, texts := newVault(t, access.Token{Name: "reader", Rights: access.Read})
	s := start(t, v.private)
	for _, headers := range []string{"", bearer(texts[0]) + "\r\n", "Authorization: Basic eDp4\r\n"} {
		want := "HTTP/1.1 401"
		if strings.Contains(headers, texts[0]) {
			want = "HTTP/1.1 403"
		}
		for _, path := range []string{"/nar/x.nar", "/log/x", "/" + strings.Repeat("0", 32) + ".narinfo", "/nix-cache-info", "/nowhere/x/y"} {
			_, r := s.dial("PUT " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n" + headers + "\r\n")
			answer, err := io.ReadAll(r)
			if err != nil || !strings.HasPrefix(string(answer), want) || strings.Count(string(answer), "HTTP/1.1") != 1 {
				t.Errorf("PUT %s that waits: got %q (%v), want %s and the end of the connection", path, answer, err, want)
			}
			// A client that does not wait: what follows must not be taken for a request.
			_, r = s.dial("PUT " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n" + headers + "\r\nGET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n")
			answer, err = io.ReadAll(r)
			if err != nil || !strings.HasPrefix(string(answer), want) || strings.Count(string(answer), "HTTP/1.1") != 1 {
				t.Errorf("PUT %s: got %q (%v), want %s and the end of the connection", path, answer, err, want)
			}
			body := &counter{r: strings.NewReader("x")}
			w := httptest.NewRecorder()
			s.gateway.ServeHTTP(w, httptest.NewRequest("PUT", path, body))
			if w.Code != 401 || body.n != 0 {
				t.Errorf("PUT %s: got %d, and %d bytes were read", path, w.Code, body.n)
			}
		}
	}
}

// TestRevoked revokes the token of a client that goes on, and makes one while the server runs.
func TestRevoked(t *testing.T) {
	v, texts := newVault(t, access.Token{Name: "ci", Rights: access.Read | access.Write})
	s := start(t, v.private)
	s.want(200, "PUT", "/log/x", []byte("x"), bearer(texts[0]))
	second := v.create(access.Token{Name: "second", Rights: access.Read})
	s.eventually(200, second)
	if _, err := access.Revoke(v.file, "ci"); err != nil {
		t.Fatal(err)
	}
	s.eventually(401, texts[0])
	s.want(401, "PUT", "/log/y", []byte("y"), bearer(texts[0]))
	s.want(200, "GET", "/log/x", nil, bearer(second))
}

// eventually asks until the answer has a status.
func (s *server) eventually(status int, token string) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		a := s.do("GET", "/nix-cache-info", nil, bearer(token))
		if a.StatusCode == status {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("got %v for 30 s, want %d", a, status)
		}
	}
}

// named returns f with another name.
func (f *fixture) named(t *testing.T, name string) *fixture {
	t.Helper()
	g := *f
	var err error
	if g.path, err = narinfo.ParseBaseName(f.path.HashPart() + "-" + name); err != nil {
		t.Fatal(err)
	}
	return &g
}

// TestPatterns has tokens for some store paths only.
func TestPatterns(t *testing.T) {
	v, texts := newVault(t,
		access.Token{Name: "all", Rights: access.Read | access.Write},
		access.Token{Name: "docs", Rights: access.Read | access.Write, Match: []string{"docs-*", "manual"}},
	)
	all, docs := bearer(texts[0]), bearer(texts[1])
	s := start(t, v.private)
	mine, other := newFixture(t, 1, 10_000).named(t, "docs-1"), newFixture(t, 2, 10_000).named(t, "secret-1")
	put := func(status int, f *fixture, auth string) {
		t.Helper()
		name := fileName(f.nar, "")
		s.want(200, "PUT", "/"+name, f.nar, auth)
		s.want(status, "PUT", f.narInfoURL(), []byte(f.info(name, "none").Text(storeDir)), auth)
	}
	put(403, other, docs)
	s.want(404, "GET", other.narInfoURL(), nil, all)
	put(200, mine, docs)
	put(200, other, all)
	link := treeNAR(t, [2]string{"/"}, [2]string{"link", "-> ../" + other.path.String() + "/big"}).named(t, "docs-2")
	put(200, link, docs)
	hash := strings.Repeat("0", 32)
	for _, tt := range []struct {
		path            string
		write, writeAll int // with docs and with all; 0 for not at all
		read            int // with docs
	}{
		{mine.narInfoURL(), 0, 0, 200},
		{other.narInfoURL(), 0, 0, 404},
		{"/" + hash + ".narinfo", 0, 0, 404},
		{"/" + mine.path.HashPart() + ".ls", 200, 0, 200},
		{"/" + other.path.HashPart() + ".ls", 200, 0, 404},
		{mine.plainURL(), 0, 0, 200},
		{"/serve/" + mine.path.String() + "/big", 0, 0, 200},
		{"/serve/" + other.path.String() + "/big", 0, 0, 404},
		{"/log/" + hash + "-docs-1.drv", 200, 200, 200},
		{"/log/" + hash + "-secret-1.drv", 403, 200, 404},
		{"/build-trace-v2/" + hash + "-manual.drv/out.doi", 200, 200, 200},
		{"/build-trace-v2/" + hash + "-secret.drv/out.doi", 403, 200, 404},
		{"/realisations/sha256:x!out.doi", 403, 200, 404},
		{"/debuginfo/x.debug", 403, 200, 404},
		{"/serve/" + mine.path.String() + "/big", 0, 0, 200},
		{"/serve/" + other.path.String() + "/big", 0, 0, 404},
		{"/serve/" + other.path.HashPart(), 0, 0, 404},
		{"/serve/" + link.path.String() + "/link", 0, 0, 404},
		{"/nix-cache-info", 0, 0, 200},
	} {
		if tt.write != 0 {
			s.want(tt.write, "PUT", tt.path, []byte("{}"), docs)
		}
		if tt.writeAll != 0 {
			s.want(tt.writeAll, "PUT", tt.path, []byte("{}"), all)
		}
		s.want(tt.read, "HEAD", tt.path, nil, docs)
		a := s.want(tt.read, "GET", tt.path, nil, docs)
		if tt.read == 404 {
			sameAnswer(t, tt.path, a, s.want(404, "GET", "/"+strings.Repeat("1", 32)+".narinfo", nil, docs))
		}
		if strings.HasSuffix(tt.path, ".ls") && tt.read == 200 && !bytes.Contains(a.body, []byte("narOffset")) {
			t.Errorf("%s: got %q, want the gateway's own", tt.path, a.body)
		}
	}
	a := s.want(200, "POST", "/api/v1/missing", []byte(mine.path.HashPart()+"\n"+other.path.HashPart()+"\n"), docs)
	if string(a.body) != other.path.HashPart()+"\n" {
		t.Errorf("missing: got %q, want the one that the token does not see", a.body)
	}
}

// TestTokenLimits has a token for one upload at a time, of not too much.
func TestTokenLimits(t *testing.T) {
	v, texts := newVault(t,
		access.Token{Name: "small", Rights: access.Read | access.Write, MaxNAR: 50_000, MaxUploads: 1, Rate: 1 << 30},
		access.Token{Name: "large", Rights: access.Read | access.Write},
	)
	small, large := bearer(texts[0]), bearer(texts[1])
	s := start(t, v.private)
	f, g := newFixture(t, 1, 300_000), newFixture(t, 2, 10_000)
	s.want(413, "PUT", "/"+fileName(f.nar, ""), f.nar, small)
	zst := zstdEncode(t, newFixture(t, 3, 20_000).nar)
	bomb := zstdEncode(t, zeroNAR(t, 1<<20))
	s.want(413, "PUT", "/"+fileName(bomb, ".zst"), bomb, small)
	s.want(200, "PUT", "/"+fileName(zst, ".zst"), zst, small)
	s.want(200, "PUT", "/"+fileName(f.nar, ""), f.nar, large)

	// One upload runs; the next is not told to go on until it is done.
	head := func(f *fixture, auth string) string {
		return strings.Replace(putHead(fileName(f.nar, ""), len(f.nar)), "\r\n\r\n", "\r\n"+auth+"\r\n\r\n", 1)
	}
	first, fr := s.dial(head(g, small))
	if line, err := fr.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatalf("got %q (%v), want 100", line, err)
	}
	h := newFixture(t, 4, 10_000)
	second, sr := s.dial(head(h, small))
	second.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if line, err := sr.ReadString('\n'); err == nil {
		t.Errorf("a second upload was answered %q", line)
	}
	second.SetReadDeadline(time.Now().Add(30 * time.Second))
	s.want(200, "PUT", "/"+fileName(newFixture(t, 5, 10_000).nar, ""), newFixture(t, 5, 10_000).nar, large)
	first.Write(g.nar)
	fr.ReadString('\n') // the end of 100
	if line, err := fr.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Errorf("got %q (%v), want 200", line, err)
	}
	if line, err := sr.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Errorf("the upload that has waited got %q (%v), want 100", line, err)
	}
	second.Write(h.nar)
	sr.ReadString('\n')
	if line, err := sr.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Errorf("got %q (%v), want 200", line, err)
	}
}

// TestTrustedKeys uploads what has, and what does not have, the signature of a trusted key.
func TestTrustedKeys(t *testing.T) {
	trusted, stranger := newKey(t, "builder-1"), newKey(t, "stranger-1")
	impostor := newKey(t, "builder-1")
	own := newKey(t, "cache-1")
	s := start(t, func(c *gateway.Config) {
		c.TrustedKeys, c.Keys = []narinfo.PublicKey{newKey(t, "other-1").Public(), trusted.Public()}, []narinfo.PrivateKey{own}
	})
	f := newFixture(t, 1, 10_000)
	name := fileName(f.nar, "")
	s.want(200, "PUT", "/"+name, f.nar)
	info := f.info(name, "none")
	info.CA = "fixed:r:sha256:" + narinfo.EncodeNix32(f.hash[:])
	put := func(status int) *answer {
		t.Helper()
		return s.want(status, "PUT", f.narInfoURL(), []byte(info.Text(storeDir)))
	}
	if a := put(403); !strings.Contains(string(a.body), "builder-1") {
		t.Errorf("got %q, want the names of the keys", a.body)
	}
	info.Sign(storeDir, stranger)
	info.Sign(storeDir, impostor)
	info.Sign(storeDir, own) // that it has signed this before does not matter
	put(403)
	s.want(404, "GET", f.narInfoURL(), nil)
	info.Sign(storeDir, trusted)
	put(200)
	if _, ok := s.narInfo(f).Verify(storeDir, []narinfo.PublicKey{own.Public()}); !ok {
		t.Error("what was accepted is not signed")
	}
}

func newKey(t *testing.T, name string) narinfo.PrivateKey {
	t.Helper()
	k, err := narinfo.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestRotation serves what a former key has signed, and what only seems so.
func TestRotation(t *testing.T) {
	former, present, second, forger := newKey(t, "cache-1"), newKey(t, "cache-2"), newKey(t, "cache-3"), newKey(t, "cache-1")
	s := start(t) // without keys: what is uploaded stays as it is
	sign := map[string]func(*narinfo.NarInfo){
		"former":   func(n *narinfo.NarInfo) { n.Sign(storeDir, former) },
		"unsigned": func(*narinfo.NarInfo) {},
		"forged":   func(n *narinfo.NarInfo) { n.Sign(storeDir, forger) },
		"copied":   func(n *narinfo.NarInfo) { n.Sigs = append(n.Sigs, former.Sign("1;another fingerprint")) },
		"present":  func(n *narinfo.NarInfo) { n.Sign(storeDir, present) },
		"stranger": func(n *narinfo.NarInfo) { n.Sign(storeDir, newKey(t, "stranger-1")) },
	}
	fixtures := make(map[string]*fixture)
	for name, sign := range sign {
		f := newFixture(t, uint64(len(fixtures)), 5000)
		fixtures[name] = f
		file := fileName(f.nar, "")
		s.want(200, "PUT", "/"+file, f.nar)
		info := f.info(file, "none")
		sign(info)
		s.want(200, "PUT", f.narInfoURL(), []byte(info.Text(storeDir)))
	}
	g := gateway.New(s.store, gateway.Config{
		Keys: []narinfo.PrivateKey{present, second}, VerifyKeys: []narinfo.PublicKey{former.Public()}, Log: slog.New(slog.DiscardHandler),
	})
	for name, f := range fixtures {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest("GET", f.narInfoURL(), nil))
		info, err := narinfo.Parse(w.Body.Bytes(), storeDir)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, key := range []narinfo.PrivateKey{present, second} {
			_, signed := info.Verify(storeDir, []narinfo.PublicKey{key.Public()})
			if want := name == "former" || name == "present"; signed != want {
				t.Errorf("%s: signed by %s: got %v, want %v; Sigs %v", name, key.Name, signed, want, info.Sigs)
			}
		}
		if _, kept := info.Verify(storeDir, []narinfo.PublicKey{former.Public()}); name == "former" && !kept {
			t.Errorf("the former key's signature is gone: %v", info.Sigs)
		}
	}
}

// testNixRotation uploads with one key, and has clients that trust it, or its successor
// only, get the path while the successor signs.
func testNixRotation(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		former, present := newKey(t, "cache-1"), newKey(t, "cache-2")
		s := start(t, func(c *gateway.Config) { c.Keys = []narinfo.PrivateKey{former} })
		path := realPaths[0] // has a signature by a key that nobody trusts here
		nix.run("writer", "nix", "copy", "--from", nix.realStore(), "--to", s.url, path)
		fetch := func(name string, cfg gateway.Config, trusts narinfo.PrivateKey) error {
			cfg.Log = slog.New(slog.DiscardHandler)
			next := httptest.NewServer(gateway.New(s.store, cfg))
			defer next.Close()
			_, err := nix.try(name, "nix-store", "--store", nix.store(name), "--option", "substitute", "true", "--option", "substituters", next.URL,
				"--option", "trusted-public-keys", trusts.Public().String(), "-r", path)
			return err
		}
		rotated := gateway.Config{Keys: []narinfo.PrivateKey{present}, VerifyKeys: []narinfo.PublicKey{former.Public()}}
		if err := fetch("former", rotated, former); err != nil {
			t.Errorf("a client that trusts the former key: %v", err)
		}
		if err := fetch("present", rotated, present); err != nil {
			t.Errorf("a client that trusts the present key: %v", err)
		}
		if err := fetch("careless", gateway.Config{Keys: rotated.Keys}, present); err == nil {
			t.Error("without verify-keys, what a stranger has signed is signed again")
		}
	})
}

// BenchmarkRefused asks a private cache without a right, for what is there and for what is
// not: neither the answer nor its time may tell.
func BenchmarkRefused(b *testing.B) {
	v, texts := newVault(b, access.Token{Name: "writer", Rights: access.Read | access.Write})
	s := start(b, v.private, func(c *gateway.Config) { c.AccessLog, c.Access.Log = false, nil })
	f := newFixture(b, 1, 1000)
	name := fileName(f.nar, "")
	s.want(200, "PUT", "/"+name, f.nar, bearer(texts[0]))
	s.want(200, "PUT", f.narInfoURL(), []byte(f.info(name, "none").Text(storeDir)), bearer(texts[0]))
	wrong := texts[0][:len(texts[0])-52] + strings.Repeat("0", 52)
	unknown := "dedupd_00000000" + wrong[len("dedupd_00000000"):]
	for _, who := range []struct{ name, token string }{{"nobody", ""}, {"wrong-secret", wrong}, {"unknown-token", unknown}} {
		for _, what := range []struct{ name, url string }{{"there", f.narInfoURL()}, {"absent", "/" + strings.Repeat("0", 32) + ".narinfo"}} {
			b.Run(who.name+"/"+what.name, func(b *testing.B) {
				r := httptest.NewRequest("HEAD", what.url, nil)
				if who.token != "" {
					r.Header.Set("Authorization", "Bearer "+who.token)
				}
				w := &discarder{http.Header{}}
				for b.Loop() {
					clear(w.header)
					s.gateway.ServeHTTP(w, r)
				}
			})
		}
	}
}
