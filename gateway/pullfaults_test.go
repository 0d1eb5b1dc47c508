package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/pull"
	"github.com/dedupd/dedupd/upstream"
)

// behind returns the upstreams with a proxy before o that has toxics, as toxiproxy's API
// takes them.
func (o *origin) behind(t *testing.T, toxics ...string) *pull.Config {
	t.Helper()
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	proxy := toxiproxy.NewProxy(api, "upstream", "127.0.0.1:0", o.Listener.Addr().String())
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	for _, toxic := range toxics {
		if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			t.Fatal(err)
		}
	}
	source, err := upstream.NewHTTP(upstream.HTTPConfig{
		URL: "http://" + proxy.Listen, StoreDir: storeDir, Timeout: time.Second, IdleTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return o.upstreams(t, func(u *pull.Upstream) { u.Source = source })
}

// heal ends what on began.
func (o *origin) heal() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.serve)
}

// get gets a URL, whose body may end with an error.
func (s *server) get(path string, headers ...string) (status int, body []byte, err error) {
	s.t.Helper()
	req, err := http.NewRequest("GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// nothingStored checks that nothing of a path is in the store.
func (s *server) nothingStored(f *fixture) {
	s.t.Helper()
	if _, err := s.store.NarInfo(s.t.Context(), f.path.HashPart()); !errors.Is(err, chunkstore.ErrNotFound) {
		s.t.Errorf("narinfo in the store: error %v", err)
	}
	if _, err := s.store.Object(s.t.Context(), f.hash); !errors.Is(err, chunkstore.ErrNotFound) {
		s.t.Errorf("NAR in the store: error %v", err)
	}
}

// TestPullFaults has everything happen to an upstream that happens to upstreams. The client
// gets the path, or an error that it can tell from a path.
func TestPullFaults(t *testing.T) {
	const size = 600_000
	noRanges := func(o *origin, file []byte) {
		o.on("nar/", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(file)))
			w.Write(file)
		})
	}
	chunked := func(b []byte) func(*origin, []byte) {
		return func(o *origin, file []byte) {
			o.on("nar/", func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).Flush()
				w.Write(bytes.Replace(b, []byte("FILE"), file, 1))
			})
		}
	}
	flipped := func(o *origin, file []byte) {
		bad := bytes.Clone(file)
		bad[len(bad)/2] ^= 1
		for name := range o.files {
			if strings.HasPrefix(name, "nar/") {
				o.files[name] = bad
			}
		}
	}
	for _, tt := range []struct {
		name    string
		toxics  []string
		change  func(*origin, []byte)
		narInfo int  // status
		heals   bool // the next try works, if nothing is wrong then
		nar     int  // status; 0 for a body that ends with an error
	}{
		{name: "latency", toxics: []string{`{"name":"a","type":"latency","attributes":{"latency":150,"jitter":50}}`}, narInfo: 200, nar: 200},
		{name: "dribble", toxics: []string{`{"name":"a","type":"slicer","attributes":{"average_size":8000,"size_variation":4000,"delay":2000}}`}, narInfo: 200, nar: 200},
		{name: "connections break, ranges", toxics: []string{`{"name":"a","type":"limit_data","attributes":{"bytes":120000}}`}, narInfo: 200, nar: 200},
		{name: "connections break, no ranges", toxics: []string{`{"name":"a","type":"limit_data","attributes":{"bytes":120000}}`}, change: noRanges, narInfo: 200},
		{name: "reset", toxics: []string{`{"name":"a","type":"reset_peer","attributes":{"timeout":0}}`}, narInfo: 503, nar: 503},
		{name: "silence", toxics: []string{`{"name":"a","type":"timeout","attributes":{"timeout":0}}`}, narInfo: 503, nar: 503},
		{name: "silence in the middle", change: func(o *origin, file []byte) {
			o.on("nar/", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(len(file)))
				w.Write(file[:len(file)/2])
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
		}, narInfo: 200, heals: true},
		{name: "500", change: func(o *origin, _ []byte) {
			o.on("", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "sorry", http.StatusInternalServerError) })
		}, narInfo: 503, nar: 503},
		{name: "500 of the NAR", change: func(o *origin, _ []byte) {
			o.on("nar/", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "sorry", http.StatusInternalServerError) })
		}, narInfo: 200, nar: 503, heals: true},
		{name: "NAR is gone", change: func(o *origin, _ []byte) {
			o.on("nar/", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "gone", http.StatusGone) })
		}, narInfo: 200, nar: 404},
		{name: "web page for the NAR", change: func(o *origin, _ []byte) {
			o.on("nar/", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html; charset=utf-8")
				io.WriteString(w, "<html>log in</html>")
			})
		}, narInfo: 200, nar: 503},
		{name: "wrong bytes", change: flipped, narInfo: 200},
		{name: "no length", change: chunked([]byte("FILE")), narInfo: 200, nar: 200},
		{name: "truncated, no length", change: func(o *origin, file []byte) { chunked(file[:len(file)/2])(o, nil) }, narInfo: 200},
		{name: "too long, no length", change: chunked([]byte("FILEand more")), narInfo: 200},
		{name: "another NAR", change: func(o *origin, _ []byte) {
			chunked(zstdEncode(t, newFixture(t, 99, size).nar))(o, nil)
		}, narInfo: 200},
		{name: "endless", change: func(o *origin, _ []byte) {
			o.on("nar/", func(w http.ResponseWriter, r *http.Request) {
				b := make([]byte, 1<<16)
				for r.Context().Err() == nil {
					for i := range b {
						b[i] = byte(rand.Uint32())
					}
					if _, err := w.Write(b); err != nil {
						return
					}
				}
			})
		}, narInfo: 200},
		{name: "web page for the narinfo", change: func(o *origin, _ []byte) {
			o.on("", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>log in</html>") })
		}, narInfo: 503, nar: 503},
		{name: "narinfo of another path", change: func(o *origin, file []byte) {
			other := newFixture(t, 98, 1000)
			text := []byte(o.put(other, fileName(other.nar, ""), "none", other.nar).Text(storeDir))
			o.on("", func(w http.ResponseWriter, r *http.Request) { w.Write(text) })
		}, narInfo: 503},
		{name: "forbidden", change: func(o *origin, _ []byte) {
			o.on("", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) })
		}, narInfo: 404, nar: 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			f := newFixture(t, 7, size)
			file := zstdEncode(t, f.nar)
			name := fileName(file, ".zst")
			o.put(f, name, "zstd", file)
			if tt.change != nil {
				tt.change(o, file)
			}
			s := startPulling(t, t.TempDir(), chunkstore.Limits{MaxNAR: 4 << 20}, o.behind(t, tt.toxics...))
			s.client.Transport.(*http.Transport).DisableKeepAlives = true

			status, body, err := s.get(f.narInfoURL())
			if status != tt.narInfo || err != nil {
				t.Errorf("narinfo: got %d %q (%v), want %d", status, body, err, tt.narInfo)
			}
			status, body, err = s.get("/" + name)
			switch {
			case tt.nar == 0 && status == 200 && err == nil:
				t.Errorf("NAR: got a complete body of %d bytes", len(body))
			case tt.nar != 0 && (status != tt.nar || err != nil):
				t.Errorf("NAR: got %d and %d bytes (%v), want %d", status, len(body), err, tt.nar)
			case tt.nar == 200 && !bytes.Equal(body, file):
				t.Errorf("NAR: got %d bytes of other contents", len(body))
			}
			if tt.heals {
				o.heal()
				if status, body, err := s.get("/" + name); status != 200 || err != nil || !bytes.Equal(body, file) {
					t.Errorf("NAR, when all is well again: got %d and %d bytes (%v)", status, len(body), err)
				}
			}
			if tt.nar == 200 || tt.heals {
				s.waitStored(f.path.HashPart())
			} else {
				s.stop()
				s.nothingStored(f)
			}
		})
	}
}
