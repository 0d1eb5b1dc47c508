package bucket_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/buckettest"
	"github.com/dedupd/dedupd/bucket/s3test"
)

func TestS3Conformance(t *testing.T) {
	for _, kind := range s3test.Servers {
		t.Run(kind, func(t *testing.T) {
			s := s3test.Start(t, kind)
			n := 0
			buckettest.Run(t, func(t *testing.T) bucket.Bucket {
				n++
				return openS3(t, s.NewBucket(t, fmt.Sprintf("bucket-%d", n)))
			})
		})
	}
}

func openS3(t testing.TB, url string) *bucket.S3 {
	t.Helper()
	b, err := bucket.OpenS3(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestS3Faults does something to each request of each operation, which must not notice.
func TestS3Faults(t *testing.T) {
	s := s3test.Start(t, "versitygw")
	s.NewBucket(t, "bucket")
	proxy := s3test.NewProxy(t, s.Endpoint)
	b := openS3(t, s.URL("bucket", proxy.URL)+"&timeout=300ms")
	data := buckettest.Bytes(1, 300_000)
	n := 0
	for _, f := range s3test.Transient {
		t.Run(f.Name, func(t *testing.T) {
			for k := int64(1); k <= 2; k++ {
				n++
				key := fmt.Sprintf("w/%d", n)
				inject := func() { proxy.At(k, f) }
				inject()
				// A Put that has arrived although its answer was lost finds its own object.
				err := b.Put(t.Context(), key, bytes.NewReader(data), int64(len(data)))
				if err != nil && !(errors.Is(err, bucket.ErrExists) && f.Arrives()) {
					t.Errorf("Put, request %d: %v", k, err)
				}
				inject()
				got := make([]byte, len(data))
				if err := b.ReadAt(t.Context(), key, got, 0); err != nil || !bytes.Equal(got, data) {
					t.Errorf("ReadAt, request %d: %v, or other bytes", k, err)
				}
				inject()
				var stream bytes.Buffer
				if err := b.Read(t.Context(), key, 5, int64(len(data))-9, &stream); err != nil || !bytes.Equal(stream.Bytes(), data[5:len(data)-4]) {
					t.Errorf("Read, request %d: %v, or other bytes", k, err)
				}
				inject()
				if info, err := b.Stat(t.Context(), key); err != nil || info.Size != int64(len(data)) {
					t.Errorf("Stat, request %d: %v, %v", k, info, err)
				}
				inject()
				if _, err := b.Stat(t.Context(), "absent"); !errors.Is(err, bucket.ErrNotFound) {
					t.Errorf("Stat of what is absent, request %d: %v", k, err)
				}
				inject()
				seen := 0
				if err := b.List(t.Context(), "w/", "", func(bucket.Info) error { seen++; return nil }); err != nil || seen != n {
					t.Errorf("List, request %d: %d objects, %v, want %d", k, seen, err, n)
				}
			}
		})
	}
	if got := b.Requests(); got.Failed == 0 || got.Put < uint64(n) || got.Sent < uint64(n*len(data)) || got.Received < uint64(n*len(data)) {
		t.Errorf("got %+v for %d objects", got, n)
	}
}

// TestS3Unreachable checks that what cannot be reached never looks absent.
func TestS3Unreachable(t *testing.T) {
	s := s3test.Start(t, "versitygw")
	s.NewBucket(t, "bucket")
	proxy := s3test.NewProxy(t, s.Endpoint)
	b := openS3(t, s.URL("bucket", proxy.URL))
	if _, err := bucket.OpenS3(t.Context(), s.URL("another", s.Endpoint)); err == nil || errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("a bucket that is not there: got %v", err)
	}
	for _, f := range []*s3test.Fault{s3test.Revoked, {Before: s3test.Status(http.StatusNotImplemented, "NotImplemented")}} {
		proxy.Set(func(int64, *http.Request) *s3test.Fault { return f })
		for _, op := range []func() error{
			func() error { _, err := b.Stat(t.Context(), "w/p"); return err },
			func() error { return b.ReadAt(t.Context(), "w/p", make([]byte, 1), 0) },
			func() error { return b.Read(t.Context(), "w/p", 0, 1, io.Discard) },
			func() error { return b.Put(t.Context(), "w/p", strings.NewReader("x"), 1) },
			func() error { return b.List(t.Context(), "", "", func(bucket.Info) error { return nil }) },
		} {
			if err := op(); err == nil || errors.Is(err, bucket.ErrNotFound) || errors.Is(err, bucket.ErrExists) || errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v, want another error", err)
			}
		}
	}
}

// TestS3Reader reads with rights for no more.
func TestS3Reader(t *testing.T) {
	s := s3test.Start(t, "versitygw")
	s.NewBucket(t, "bucket")
	if err := openS3(t, s.URL("bucket", s.Endpoint)).Put(t.Context(), "w/p", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	proxy := s3test.NewProxy(t, s.Endpoint)
	proxy.Set(func(_ int64, r *http.Request) *s3test.Fault {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return nil
		}
		return &s3test.Fault{Before: s3test.Status(http.StatusForbidden, "AccessDenied")}
	})
	at := s.URL("bucket", proxy.URL)
	if _, err := bucket.Open(t.Context(), at); err == nil {
		t.Error("Open: no error")
	}
	b, err := bucket.OpenReader(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1)
	if err := b.ReadAt(t.Context(), "w/p", p, 0); err != nil || string(p) != "x" {
		t.Errorf("got %q, %v", p, err)
	}
}

// TestS3Overwrites uses a server that ignores If-None-Match.
func TestS3Overwrites(t *testing.T) {
	var objects sync.Map
	deaf := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, there := objects.Load(r.URL.Path)
		switch {
		case r.Method == http.MethodPut:
			objects.Store(r.URL.Path, true)
		case r.Method == http.MethodGet:
			io.WriteString(w, `<ListBucketResult></ListBucketResult>`)
		case !there:
			w.WriteHeader(http.StatusNotFound)
		default:
			w.Header().Set("Last-Modified", "Fri, 20 Nov 2026 12:00:00 GMT")
		}
	}))
	defer deaf.Close()
	keys := filepath.Join(t.TempDir(), "keys")
	mustWrite(t, keys, "[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
	at := "s3://bucket?region=us-east-1&style=path&endpoint=" + deaf.URL + "&credentials=" + keys
	if _, err := bucket.OpenS3(t.Context(), at); err == nil || !strings.Contains(err.Error(), "overwrites=1") {
		t.Errorf("got %v, want a refusal", err)
	}
	b := openS3(t, at+"&overwrites=1")
	for i, want := range []error{nil, bucket.ErrExists} {
		if err := b.Put(t.Context(), "w/p", strings.NewReader("x"), 1); !errors.Is(err, want) {
			t.Errorf("Put %d: got %v, want %v", i, err, want)
		}
	}
}

func TestS3URL(t *testing.T) {
	for _, c := range []struct{ url, err string }{
		{"s3://", "has the form"},
		{"s3://b:80/", "has the form"},
		{"s3://key:secret@b", "no user"},
		{"s3://b/../c", "prefix"},
		{"s3://b?region=a&region=b", "region"},
		{"s3://b?regoin=a", "regoin"},
		{"s3://b?endpoint=ftp://x", "endpoint"},
		{"s3://b?endpoint=http://x/path", "endpoint"},
		{"s3://b?style=odd", "style"},
		{"s3://b?timeout=soon", "timeout"},
		{"s3://b?sse=aws:kms", "sse"},
		{"s3://b?sse-kms-key=x", "sse"},
		{"s3://b?ca=/does/not/exist", "certificates"},
	} {
		_, err := bucket.OpenS3(t.Context(), c.url)
		if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want an error with %q", c.url, err, c.err)
		}
	}
}
