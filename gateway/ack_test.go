package gateway_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
)

// TestAckBucket uploads to a bucket that cannot be written at first. What is followed by
// a narinfo is answered at once; narinfos and logs are refused after a while, for good,
// and taken when the bucket has them: nothing is lost then with the state directory.
func TestAckBucket(t *testing.T) {
	dir := t.TempDir()
	s := startPulling(t, dir, chunkstore.Limits{}, nil, func(c *gateway.Config) { c.AckTimeout = 100 * time.Millisecond })
	packs := filepath.Join(dir, "bucket", "packs")
	if err := os.WriteFile(packs, nil, 0o600); err != nil { // where a directory has to be
		t.Fatal(err)
	}
	f := newFixture(t, 1, 200_000)
	name := fileName(f.nar, "")
	info := []byte(f.info(name, "none").Text(storeDir))
	s.want(200, "PUT", "/"+name, f.nar)
	s.want(200, "PUT", "/"+f.path.HashPart()+".ls", []byte("{}"))
	s.want(200, "PUT", "/debuginfo/1234567890123456789012345678901234567890.debug", []byte("{}"))
	for _, put := range []struct {
		path string
		body []byte
	}{
		{f.narInfoURL(), info},
		{f.narInfoURL(), info}, // it is known by now, and not in the bucket all the same
		{"/log/x", []byte("log")},
		{"/realisations/sha256:" + strings.Repeat("0", 64) + "!out.doi", []byte("{}")},
	} {
		if a := s.want(424, "PUT", put.path, put.body); !strings.Contains(string(a.body), "not in the bucket yet") {
			t.Errorf("PUT %s: the client is told %q", put.path, a.body)
		}
	}
	s.want(200, "GET", f.narInfoURL(), nil)
	if err := os.Remove(packs); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if a := s.do("PUT", f.narInfoURL(), info); a.StatusCode == 200 {
			break
		} else if a.StatusCode != 424 || time.Since(start) > time.Minute {
			t.Fatalf("got %d for %v", a.StatusCode, time.Since(start))
		}
	}
	copied := t.TempDir()
	if err := os.CopyFS(filepath.Join(copied, "bucket"), os.DirFS(filepath.Join(dir, "bucket"))); err != nil {
		t.Fatal(err)
	}
	other := startPulling(t, copied, chunkstore.Limits{}, nil)
	other.want(200, "GET", f.narInfoURL(), nil)
	other.checkBody("/"+name, f.nar)
	other.want(200, "GET", "/log/x", nil)
}
