package gateway_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/metrics"
)

// metric returns the value of a series, "" if there is none.
func (s *server) metric(series string) string {
	s.t.Helper()
	for line := range strings.Lines(string(s.want(200, "GET", "/metrics", nil).body)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func TestMetrics(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 300_000)
	s.upload(f)
	s.upload(f)
	s.want(200, "GET", f.narInfoURL(), nil)
	s.want(200, "GET", f.narInfoURL(), nil)
	s.want(404, "GET", "/"+strings.Repeat("1", 32)+".narinfo", nil)
	s.want(404, "HEAD", "/../etc/passwd", nil)
	s.want(405, "BREW", "/nix-cache-info", nil)
	s.want(405, "PUT", "/metrics", []byte("x"))
	for series, want := range map[string]string{
		`dedupd_http_requests_total{code="200",kind="narinfo",method="GET"}`:      "2",
		`dedupd_http_requests_total{code="200",kind="narinfo",method="PUT"}`:      "2",
		`dedupd_http_requests_total{code="404",kind="narinfo",method="GET"}`:      "1",
		`dedupd_http_requests_total{code="404",kind="none",method="HEAD"}`:        "1",
		`dedupd_http_requests_total{code="405",kind="cache-info",method="other"}`: "1",
		`dedupd_http_requests_total{code="405",kind="metrics",method="PUT"}`:      "1",
		`dedupd_http_request_seconds_count{kind="narinfo"}`:                       "5",
		`dedupd_http_received_bytes_total{kind="nar"}`:                            fmt.Sprint(2 * len(f.nar)),
		`dedupd_cache_hits_total{cache="narinfo"}`:                                "1",
		`dedupd_cache_misses_total{cache="narinfo"}`:                              "2",
		`dedupd_ingest_nars_total`:                                                "2",
		`dedupd_ingest_paths_total`:                                               "2",
		`dedupd_spool_packs`:                                                      "1",
		`dedupd_uploads_running`:                                                  "0",
		`dedupd_damaged_chunks_total`:                                             "0",
	} {
		if got := s.metric(series); got != want {
			t.Errorf("%s: got %q, want %q", series, got, want)
		}
	}
	fresh, known := s.metric("dedupd_ingest_new_chunk_bytes_total"), s.metric("dedupd_ingest_known_chunk_bytes_total")
	if fresh != known || fresh == "0" {
		t.Errorf("the second of two equal uploads has %q bytes of known chunks, the first %q of new ones", known, fresh)
	}
}

func TestMetricsOfTheBucket(t *testing.T) {
	b, err := bucket.Open(t.Context(), "file://"+filepath.Join(t.TempDir(), "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	m := metrics.New("1.2")
	b = m.Bucket(b)
	if err := b.Put(t.Context(), "a", strings.NewReader("12345"), 5); err != nil {
		t.Fatal(err)
	}
	b.ReadAt(t.Context(), "a", make([]byte, 3), 1)
	b.ReadAt(t.Context(), "absent", make([]byte, 3), 1)
	s := start(t, func(c *gateway.Config) { c.Metrics = m })
	for series, want := range map[string]string{
		`dedupd_bucket_bytes_total{operation="put"}`:                    "5",
		`dedupd_bucket_bytes_total{operation="read"}`:                   "3",
		`dedupd_bucket_errors_total{kind="not_found",operation="read"}`: "1",
		`dedupd_bucket_operation_seconds_count{operation="read"}`:       "2",
	} {
		if got := s.metric(series); got != want {
			t.Errorf("%s: got %q, want %q", series, got, want)
		}
	}
}

func TestHealth(t *testing.T) {
	s := start(t)
	s.want(200, "GET", "/healthz", nil)
	s.want(200, "HEAD", "/readyz", nil)
	if got, want := s.ready(200, "?write=1"), []string(nil); len(got) > 0 {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestReadyWithoutBucket takes the bucket away: uploads go on, reading does not.
func TestReadyWithoutBucket(t *testing.T) {
	s := start(t)
	s.damaged = true
	if err := os.RemoveAll(filepath.Join(s.dir, "bucket")); err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{"", "?write=1"} {
		if got := s.ready(503, query); len(got) != 1 || !strings.Contains(got[0], "bucket") {
			t.Errorf("%q: got %q, want one reason about the bucket", query, got)
		}
	}
	s.want(200, "GET", "/healthz", nil)
}

// ready returns the reasons of /readyz.
func (s *server) ready(status int, query string) []string {
	s.t.Helper()
	var got struct {
		Ready   bool
		Reasons []string
	}
	a := s.want(status, "GET", "/readyz"+query, nil)
	if err := json.Unmarshal(a.body, &got); err != nil || got.Ready != (status == 200) {
		s.t.Errorf("got %v (%v)", a, err)
	}
	return got.Reasons
}

func TestProfiles(t *testing.T) {
	s := start(t, func(c *gateway.Config) {
		c.Access = &access.Policy{Anyone: access.Read, Local: access.Write}
	})
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine", "/debug/pprof/cmdline"} {
		s.want(401, "GET", path, nil)
	}
	admin := start(t, func(c *gateway.Config) {
		c.Access = &access.Policy{Local: access.Admin}
	})
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline"} {
		admin.want(200, "GET", path, nil)
	}
	admin.want(404, "GET", "/debug/pprof/nothing", nil)
	admin.want(404, "GET", "/debug/other", nil)
}

// TestHealthOfPrivateCache: whoever watches over it needs no token, and is told nothing of it.
func TestHealthOfPrivateCache(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.Access = &access.Policy{} })
	s.damaged = true
	s.want(200, "GET", "/healthz", nil)
	s.want(200, "GET", "/readyz", nil)
	s.want(401, "GET", "/metrics", nil)

	s = start(t, func(c *gateway.Config) { c.Access = &access.Policy{} })
	s.damaged = true
	if err := os.RemoveAll(filepath.Join(s.dir, "bucket")); err != nil {
		t.Fatal(err)
	}
	if got := s.ready(503, ""); len(got) != 0 {
		t.Errorf("got reasons %q, want none", got)
	}
}

// TestReadyToWrite fills the disk, in a manner of speaking.
func TestReadyToWrite(t *testing.T) {
	s := startLimited(t, chunkstore.Limits{MinFree: 1 << 60})
	s.ready(200, "")
	if got := s.ready(503, "?write=1"); len(got) != 1 || !strings.Contains(got[0], "disk is full") {
		t.Errorf("got %q, want one reason about the disk", got)
	}
}

// TestAccessLog checks that a line says who asked for what, and not how they proved it.
func TestAccessLog(t *testing.T) {
	s := start(t)
	const secret = "dedupd-secret"
	s.want(404, "GET", "/"+strings.Repeat("1", 32)+".narinfo?token="+secret, nil, "Authorization: Bearer "+secret, "User-Agent: Nix/2.34")
	s.stop()
	log := s.log.String()
	for _, want := range []string{
		"msg=request method=GET path=/" + strings.Repeat("1", 32) + ".narinfo kind=narinfo status=404", "duration=",
		"remote=127.0.0.1:", "agent=Nix/2.34",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}
	if strings.Contains(log, secret) {
		t.Errorf("the log tells the secret:\n%s", log)
	}
	s = start(t, func(c *gateway.Config) { c.AccessLog = false })
	s.want(200, "GET", "/healthz", nil)
	if s.stop(); strings.Contains(s.log.String(), "msg=request") {
		t.Errorf("there is an access log, and should not be:\n%s", s.log)
	}
}
