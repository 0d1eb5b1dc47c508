package gateway_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

const acceptAll = "Accept-Encoding: deflate, gzip, br, zstd" // as Nix 2.34 has it

// A variety is a path with something of everything that is served, and where that is.
type variety struct {
	*fixture
	narInfo, listing, narListing, plain, frames, old, log, dir string
	logText                                                    []byte
}

// uploadVariety uploads a NAR of many files, with a narinfo of many references, and a log.
func (s *server) uploadVariety() *variety {
	s.t.Helper()
	tree := []*nar.Header{{Type: nar.Directory}}
	for i := range 100 {
		tree = append(tree, &nar.Header{Path: fmt.Sprintf("file%03d", i), Type: nar.Regular, Size: 5})
	}
	var buf bytes.Buffer
	w := nar.NewWriter(&buf)
	for _, h := range tree {
		if err := w.WriteHeader(h); err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintf(w, "%.*s", h.Size, h.Path)
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	v := &variety{fixture: fixtureOf(s.t, buf.Bytes())}
	v.old = "/nar/old-name.nar"
	s.want(200, "PUT", v.old, v.nar)
	info := v.info(v.old[1:], "none")
	for i := range 30 {
		ref, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-some-reference", i))
		if err != nil {
			s.t.Fatal(err)
		}
		info.References = append(info.References, ref)
	}
	s.want(200, "PUT", v.narInfoURL(), []byte(info.Text(storeDir)))
	hash := narinfo.EncodeNix32(v.hash[:])
	v.narInfo, v.listing, v.narListing = v.narInfoURL(), "/"+v.path.HashPart()+".ls", "/nar/"+hash+"/ls"
	v.plain, v.frames = v.plainURL(), "/"+s.narInfo(v.fixture).URL
	v.log, v.logText = "/log/"+strings.Repeat("0", 32)+"-x.drv", bytes.Repeat([]byte("a line of the log\n"), 1000)
	s.want(200, "PUT", v.log, v.logText)
	v.dir = "/serve/" + v.path.String() + "/"
	return v
}

// TestCodings gets everything in every coding, and as it is where that is what was asked for.
func TestCodings(t *testing.T) {
	s := start(t)
	v := s.uploadVariety()
	for _, tt := range []struct {
		what, url string
		gzip      bool
	}{
		{"narinfo", v.narInfo, true}, {"listing", v.listing, true}, {"listing of a NAR", v.narListing, true},
		{"NAR", v.plain, false}, {"NAR by its old name", v.old, false}, {"log", v.log, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			plain := s.want(200, "GET", tt.url, nil)
			if plain.Header["Content-Encoding"] != nil || plain.Header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("without Accept-Encoding: got headers %v", plain.Header)
			}
			etags := map[string]bool{plain.Header.Get("ETag"): true}
			for _, c := range []struct {
				accept, want string
				decode       func(testing.TB, []byte) []byte
			}{
				{"zstd", "zstd", zstdDecode}, {"gzip;q=0.5, zstd", "zstd", zstdDecode}, {"gzip", "gzip", gzipDecode},
				{"identity", "", nil}, {"br, *", "", nil},
			} {
				if c.want == "gzip" && !tt.gzip {
					c.want = ""
				}
				accept := "Accept-Encoding: " + c.accept
				a, head := s.want(200, "GET", tt.url, nil, accept), s.want(200, "HEAD", tt.url, nil, accept)
				for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Type", "Cache-Control", "Vary", "ETag", "Accept-Ranges"} {
					if get, head := a.Header.Get(name), head.Header.Get(name); get != head {
						t.Errorf("%s: GET has %s: %q, HEAD %q", c.accept, name, get, head)
					}
				}
				if a.Header.Get("Vary") != "Accept-Encoding" || a.Header.Get("Content-Encoding") != c.want {
					t.Errorf("%s: got headers %v, want Content-Encoding %q", c.accept, a.Header, c.want)
					continue
				}
				if c.want == "" {
					if !bytes.Equal(a.body, plain.body) || a.Header.Get("Accept-Ranges") != plain.Header.Get("Accept-Ranges") {
						t.Errorf("%s: got %d bytes, headers %v", c.accept, len(a.body), a.Header)
					}
					continue
				}
				if !bytes.Equal(c.decode(t, a.body), plain.body) || len(a.body) >= len(plain.body) || a.Header["Accept-Ranges"] != nil {
					t.Errorf("%s: got %d bytes, want fewer than %d, headers %v", c.accept, len(a.body), len(plain.body), a.Header)
				}
				if etag := a.Header.Get("ETag"); etag != "" {
					if c.accept == c.want && etags[etag] {
						t.Errorf("%s: two codings have the ETag %s", c.accept, etag)
					}
					etags[etag] = true
					s.want(304, "GET", tt.url, nil, accept, "If-None-Match: "+etag)
					s.want(200, "GET", tt.url, nil, "If-None-Match: "+etag)
				}
				// One that goes on where it was cut off counts bytes as they are.
				part := s.do("GET", tt.url, nil, accept, "Range: bytes=3-9")
				want := plain.body
				if part.StatusCode == 206 {
					want = want[3:10]
				}
				if !bytes.Equal(part.body, want) || part.Header["Content-Encoding"] != nil || part.Header.Get("Vary") == "" {
					t.Errorf("%s: a range is %v, headers %v", c.accept, part, part.Header)
				}
			}
		})
	}
	for _, url := range []string{v.frames, "/nix-cache-info", newFixture(t, 1, 10).narInfoURL()} {
		if a := s.do("GET", url, nil, acceptAll); a.Header["Content-Encoding"] != nil || a.Header["Vary"] != nil {
			t.Errorf("GET %s: got headers %v", url, a.Header)
		}
	}
}

// TestCaching goes through the table in docs/protocol.md.
func TestCaching(t *testing.T) {
	for _, public := range []bool{true, false} {
		scope := map[bool]string{true: "public", false: "private"}[public]
		s := start(t, func(c *gateway.Config) {
			c.NarInfoMaxAge = 5 * time.Minute
			c.Access = &access.Policy{Anyone: access.Read, Local: access.Read | access.Write}
			if !public {
				c.Access.Anyone = 0
			}
		})
		v := s.uploadVariety()
		const otherLayout = "0000000000000000"
		for _, tt := range []struct {
			method, url string
			status      int
			cache, vary string
			ranges      bool
		}{
			{"GET", v.frames, 200, "max-age=31536000, immutable", "", true},
			{"GET", v.frames[:len(v.frames)-len("0000000000000000.nar.zst")] + otherLayout + ".nar.zst", 200, "max-age=60", "", false},
			{"GET", v.plain, 200, "max-age=31536000, immutable", "Accept-Encoding", true},
			{"GET", v.old, 200, "max-age=31536000, immutable", "Accept-Encoding", true},
			{"GET", v.narInfo, 200, "max-age=300", "Accept-Encoding", false},
			{"GET", v.listing, 200, "max-age=3600", "Accept-Encoding", true},
			{"GET", v.narListing, 200, "max-age=3600", "Accept-Encoding", true},
			{"GET", v.log, 200, "max-age=3600", "Accept-Encoding", true},
			{"GET", v.dir + "file001", 200, "max-age=3600", "", true},
			{"GET", v.dir, 200, "max-age=3600", "Accept, Accept-Encoding", true},
			{"GET", "/nix-cache-info", 200, "max-age=60", "", false},
			{"GET", "/" + strings.Repeat("0", 32) + ".narinfo", 404, "no-store", "", false},
			{"GET", "/nar/missing.nar", 404, "no-store", "", false},
			{"GET", "/nar/missing.nar/ls", 404, "no-store", "", false},
			{"GET", "/log/missing", 404, "no-store", "", false},
			{"GET", v.dir + "missing", 404, "no-store", "", false},
			{"GET", "/elsewhere", 404, "no-store", "", false},
			{"DELETE", v.narInfo, 405, "no-store", "", false},
			{"OPTIONS", "/nix-cache-info", 405, "no-store", "", false},
			{"PUT", v.narListing, 405, "no-store", "", false},
			{"GET", "/healthz", 200, "no-store", "", false},
			{"GET", "/readyz", 200, "no-store", "", false},
			{"GET", "/metrics", 200, "no-store", "Accept", false},
			{"POST", "/" + gateway.MissingURL, 200, "no-store", "", false},
		} {
			want := tt.cache
			if tt.status == 200 && want != "no-store" {
				want = scope + ", " + want
			}
			a := s.want(tt.status, tt.method, tt.url, nil)
			if got := a.Header.Get("Cache-Control"); got != want {
				t.Errorf("%s %s, %s: got Cache-Control %q, want %q", tt.method, tt.url, scope, got, want)
			}
			if got := a.Header.Get("Vary"); got != tt.vary {
				t.Errorf("%s %s: got Vary %q, want %q", tt.method, tt.url, got, tt.vary)
			}
			if got := a.Header.Get("Accept-Ranges") == "bytes"; got != tt.ranges {
				t.Errorf("%s %s: Accept-Ranges is there: %v, want %v", tt.method, tt.url, got, tt.ranges)
			}
			if allow := a.Header.Get("Allow"); (allow != "") != (tt.status == 405) {
				t.Errorf("%s %s: got Allow %q", tt.method, tt.url, allow)
			}
		}
	}
}
