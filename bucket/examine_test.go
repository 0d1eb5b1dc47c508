package bucket_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/lifecycle"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
)

// examine returns the findings about a bucket, by the names of the checks.
func examine(t *testing.T, url string) (found map[string]bucket.Finding, b bucket.Bucket, ok bool) {
	t.Helper()
	found = map[string]bucket.Finding{}
	b, ok = bucket.Examine(t.Context(), url, func(f bucket.Finding) {
		found[f.Check] = f
		if (f.Advice == "") != (f.Status == bucket.StatusOK) {
			t.Errorf("advice and status do not go together: %+v", f)
		}
	})
	return found, b, ok
}

func TestExamineS3(t *testing.T) {
	for _, kind := range s3test.Servers {
		t.Run(kind, func(t *testing.T) {
			url := s3test.Start(t, kind).NewBucket(t, "bucket")
			found, b, ok := examine(t, url)
			if !ok || b == nil {
				t.Errorf("got %+v", found)
			}
			for _, check := range []string{"dns", "tcp", "clock", "credentials", "list", "put", "create-only", "checksums", "get", "range", "head", "list after write", "latency", "upload", "download", "delete", "versioning", "lifecycle"} {
				if f := found[check]; f.Status != bucket.StatusOK {
					t.Errorf("%s: got %+v, want it to be ok", check, f)
				}
			}
			if found["tls"].Status != bucket.StatusWarn {
				t.Errorf("nothing is said about plain HTTP: %+v", found["tls"])
			}
			b.List(t.Context(), "", "", func(i bucket.Info) error {
				t.Errorf("%s is left", i.Key)
				return nil
			})
		})
	}
}

// A rule that deletes objects is one's own affair only where it is about the bucket's prefix.
func TestExamineRules(t *testing.T) {
	server := s3test.Start(t, "minio")
	url := server.NewBucket(t, "bucket")
	for prefix, want := range map[string]bucket.Status{
		"": bucket.StatusFail, s3test.Prefix + "/packs/": bucket.StatusFail, "some/": bucket.StatusFail, "elsewhere/": bucket.StatusOK,
	} {
		rules := lifecycle.NewConfiguration()
		rules.Rules = []lifecycle.Rule{{ID: "old", Status: "Enabled", RuleFilter: lifecycle.Filter{Prefix: prefix}, Expiration: lifecycle.Expiration{Days: 30}}}
		if err := server.Client(t).SetBucketLifecycle(t.Context(), "bucket", rules); err != nil {
			t.Fatal(err)
		}
		if found, _, ok := examine(t, url); found["lifecycle"].Status != want || ok != (want == bucket.StatusOK) {
			t.Errorf("below %q: got %+v, want %s", prefix, found["lifecycle"], want)
		}
	}
}

// What is wrong is found, and nothing is said of what was not tried.
func TestExamineBadS3(t *testing.T) {
	server := s3test.Start(t, "versitygw")
	server.NewBucket(t, "bucket")
	proxy := s3test.NewProxy(t, server.Endpoint)
	url := server.URL("bucket", proxy.URL)
	for _, c := range []struct {
		name, url, check, says string
		fault                  func(int64, *http.Request) *s3test.Fault
	}{
		{name: "settings", url: "s3://bucket?regoin=x", check: "url", says: "regoin"},
		{name: "scheme", url: "ftp://bucket", check: "url", says: "ftp"},
		{name: "port", url: server.URL("bucket", "http://127.0.0.1:1"), check: "tcp", says: "refused"},
		{name: "https", url: server.URL("bucket", "https://"+strings.TrimPrefix(server.Endpoint, "http://")), check: "tls", says: "tls"},
		{name: "bucket", url: server.URL("another", server.Endpoint), check: "list", says: "bucket"},
		{name: "key", check: "list", says: "as the test wants it", fault: func(int64, *http.Request) *s3test.Fault { return s3test.Revoked }},
		{name: "may not write", check: "put", says: "as the test wants it", fault: func(_ int64, r *http.Request) *s3test.Fault {
			if r.Method == http.MethodPut {
				return s3test.Revoked
			}
			return nil
		}},
		{name: "damages", check: "get", says: "other bytes", fault: func(_ int64, r *http.Request) *s3test.Fault {
			if r.Header.Get("Range") == "" {
				return nil
			}
			return s3test.WrongBytes
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			proxy.Set(c.fault)
			at := c.url
			if at == "" {
				at = url
			}
			found, _, ok := examine(t, at)
			if f := found[c.check]; ok || f.Status != bucket.StatusFail || !strings.Contains(strings.ToLower(f.Found), c.says) {
				t.Errorf("got %+v of %v, want a failure with %q", f, found, c.says)
			}
		})
	}
	t.Run("clock", func(t *testing.T) {
		proxy.Set(func(_ int64, r *http.Request) *s3test.Fault {
			if r.URL.Path != "/" {
				return nil
			}
			return &s3test.Fault{Before: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", time.Now().Add(-10*time.Minute).UTC().Format(http.TimeFormat))
			}}
		})
		if found, _, ok := examine(t, url); !ok || found["clock"].Status != bucket.StatusWarn {
			t.Errorf("got %+v, want a warning", found["clock"])
		}
	})
}

func TestExamineDir(t *testing.T) {
	empty, used := t.TempDir(), t.TempDir()
	openDir(t, used)
	for _, c := range []struct {
		path   string
		ok, is bool
	}{{empty, true, false}, {used, true, true}, {filepath.Join(empty, "absent"), false, false}} {
		found, b, ok := examine(t, "file://"+c.path)
		if ok != c.ok || (b != nil) != c.is {
			t.Errorf("%s: got %v, %v with %+v", c.path, b, ok, found)
		}
		if c.ok && (found["create-only"].Status != bucket.StatusOK || found["read"].Status != bucket.StatusOK) {
			t.Errorf("%s: got %+v", c.path, found)
		}
	}
	if files, err := os.ReadDir(empty); err != nil || len(files) > 0 {
		t.Errorf("%v is left (%v)", files, err)
	}
	if files, err := os.ReadDir(filepath.Join(used, ".tmp")); err != nil || len(files) > 0 {
		t.Errorf("%v is left (%v)", files, err)
	}
}
