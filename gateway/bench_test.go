package gateway_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/dedupd/dedupd/gateway"
)

// A discarder is a http.ResponseWriter that allocates nothing.
type discarder struct{ header http.Header }

func (d *discarder) Header() http.Header         { return d.header }
func (d *discarder) WriteHeader(int)             {}
func (d *discarder) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkNarInfo gets a narinfo that is in the cache, without the cost of HTTP itself.
func BenchmarkNarInfo(b *testing.B) {
	s := start(b, func(c *gateway.Config) { c.AccessLog = false })
	small, large := newFixture(b, 1, 1000), s.uploadVariety()
	s.upload(small)
	for _, bb := range []struct{ name, url, accept string }{
		{"small", small.narInfoURL(), ""}, {"small/nix-2.34", small.narInfoURL(), "deflate, gzip, br, zstd"},
		{"large", large.narInfo, ""}, {"large/nix-2.34", large.narInfo, "deflate, gzip, br, zstd"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			r := httptest.NewRequest("GET", bb.url, nil)
			r.Header.Set("User-Agent", "curl/8.11 Nix/2.34.8")
			if bb.accept != "" {
				r.Header.Set("Accept-Encoding", bb.accept)
			}
			w := &discarder{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				s.gateway.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkMissing asks for 100,000 paths at once over HTTP: of a thousand that are there, and
// of others.
func BenchmarkMissing(b *testing.B) {
	s := start(b, func(c *gateway.Config) { c.AccessLog = false })
	var here []string
	for i := range 1000 {
		f := treeNAR(b, [2]string{"", fmt.Sprint(i)})
		s.upload(f)
		here = append(here, f.path.HashPart())
	}
	ask := func(name string, hash func(i int) string, missing int) {
		var q gateway.MissingRequest
		for i := range gateway.MaxMissing {
			q.Hashes = append(q.Hashes, hash(i))
		}
		body, err := json.Marshal(q)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var got gateway.MissingReply
				if err := json.Unmarshal(s.want(200, "POST", "/"+gateway.MissingURL, body).body, &got); err != nil || len(got.Missing) != missing {
					b.Fatalf("%d paths are missing (%v), want %d", len(got.Missing), err, missing)
				}
			}
		})
	}
	ask("here", func(i int) string { return here[i%len(here)] }, 0)
	ask("missing", func(i int) string { return fmt.Sprintf("%032d", i) }, gateway.MaxMissing)
}
