package metrics_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/metrics"
	"github.com/dedupd/dedupd/prices"
)

type sentBucket struct {
	bucket.Bucket
	sent bucket.Requests
}

func (b *sentBucket) Requests() bucket.Requests { return b.sent }

func TestRequests(t *testing.T) {
	dir, err := bucket.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := metrics.New("test")
	b := &sentBucket{dir, bucket.Requests{Put: 100, List: 100, Get: 1000, Failed: 7, Sent: 8, Received: 9}}
	s, err := chunkstore.Open(t.Context(), chunkstore.Options{State: t.TempDir(), Bucket: m.Bucket(b)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	m.Requests(s, &prices.Provider{Writes: 5, Lists: 5, Reads: 0.5})
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`dedupd_bucket_requests_total{method="put"} 100`, `dedupd_bucket_requests_total{method="get"} 1000`, `dedupd_bucket_requests_total{method="delete"} 0`,
		"dedupd_bucket_failed_requests_total 7", "dedupd_bucket_sent_bytes_total 8", "dedupd_bucket_received_bytes_total 9", "dedupd_bucket_requests_dollars_total 0.0015",
	} {
		if !strings.Contains(w.Body.String(), "\n"+want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
}
