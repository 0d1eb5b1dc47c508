package bucket_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

// A fault is what a proxy does to one request.
type fault struct {
	name string
	// before answers instead of the server; after does when the server has answered.
	before, after func(w http.ResponseWriter)
	// body changes the body of the answer.
	body func([]byte) []byte
}

func reset(http.ResponseWriter) { panic(http.ErrAbortHandler) }

func status(code int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { w.WriteHeader(code) }
}

var faults = []fault{
	{name: "reset before", before: reset},
	{name: "reset after", after: reset},
	{name: "500 before", before: status(500)},
	{name: "500 after", after: status(500)},
	{name: "503", before: status(503)},
	{name: "429", before: status(429)},
	{name: "truncated", body: func(b []byte) []byte { return b[:len(b)/2] }},
}

// A faultyProxy does something to the k-th request that goes through it.
type faultyProxy struct {
	*httptest.Server
	fault atomic.Pointer[fault]
	k     atomic.Int64
}

func newFaultyProxy(t *testing.T, target string) *faultyProxy {
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &faultyProxy{}
	forward := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { panic(http.ErrAbortHandler) },
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := p.fault.Load()
		if p.k.Add(-1) != 0 || f == nil {
			forward.ServeHTTP(w, r)
			return
		}
		if f.before != nil {
			f.before(w)
			return
		}
		rec := httptest.NewRecorder()
		forward.ServeHTTP(rec, r)
		if f.after != nil {
			f.after(w)
			return
		}
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(rec.Code)
		if r.Method != http.MethodHead {
			w.Write(f.body(rec.Body.Bytes()))
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(p.Close)
	return p
}

// TestS3Faults does something to each request of each operation, which must not notice.
func TestS3Faults(t *testing.T) {
	s := s3test.Start(t, "versitygw")
	s.NewBucket(t, "bucket")
	proxy := newFaultyProxy(t, s.Endpoint)
	b := openS3(t, s.URL("bucket", proxy.URL))
	data := buckettest.Bytes(1, 300_000)
	n := 0
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			for k := int64(1); k <= 2; k++ {
				n++
				key := fmt.Sprintf("w/%d", n)
				inject := func() { proxy.fault.Store(&f); proxy.k.Store(k) }
				inject()
				// A Put that has arrived although its answer was lost finds its own object.
				err := b.Put(t.Context(), key, bytes.NewReader(data), int64(len(data)))
				if err != nil && !(errors.Is(err, bucket.ErrExists) && (f.after != nil || f.body != nil)) {
					t.Errorf("Put, request %d: %v", k, err)
				}
				inject()
				got := make([]byte, len(data))
				if err := b.ReadAt(t.Context(), key, got, 0); err != nil || !bytes.Equal(got, data) {
					t.Errorf("ReadAt, request %d: %v, or other bytes", k, err)
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
	if got := b.Requests(); got.Failed == 0 || got.Put < uint64(n) {
		t.Errorf("got %+v for %d objects", got, n)
	}
}

// TestS3Unreachable checks that what cannot be reached never looks absent.
func TestS3Unreachable(t *testing.T) {
	s := s3test.Start(t, "versitygw")
	s.NewBucket(t, "bucket")
	proxy := newFaultyProxy(t, s.Endpoint)
	b := openS3(t, s.URL("bucket", proxy.URL))
	if _, err := bucket.OpenS3(t.Context(), s.URL("another", s.Endpoint)); err == nil || errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("a bucket that is not there: got %v", err)
	}
	for _, answer := range []func(http.ResponseWriter){status(http.StatusForbidden), status(http.StatusNotImplemented)} {
		proxy.fault.Store(&fault{before: answer})
		for _, op := range []func() error{
			func() error { _, err := b.Stat(t.Context(), "w/p"); return err },
			func() error { return b.ReadAt(t.Context(), "w/p", make([]byte, 1), 0) },
			func() error { return b.Put(t.Context(), "w/p", strings.NewReader("x"), 1) },
			func() error { return b.List(t.Context(), "", "", func(bucket.Info) error { return nil }) },
		} {
			proxy.k.Store(1)
			if err := op(); err == nil || errors.Is(err, bucket.ErrNotFound) || errors.Is(err, bucket.ErrExists) || errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v, want another error", err)
			}
		}
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
