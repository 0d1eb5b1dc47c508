package chunkstore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket"
)

// A sentBucket says that it has sent something.
type sentBucket struct {
	bucket.Bucket
	sent bucket.Requests
}

func (b *sentBucket) Requests() bucket.Requests { return b.sent }

func TestLedger(t *testing.T) {
	state := t.TempDir()
	run := func(n uint64) RequestStats {
		t.Helper()
		b := &sentBucket{}
		l := openLedger(b, state, discard())
		b.sent = bucket.Requests{Put: n, Get: 2 * n, Failed: n, Sent: 1000 * n}
		l.save()
		return l.stats()
	}
	first := run(3)
	if got := run(4); got.Process.Put != 4 || got.Total != (bucket.Requests{Put: 7, Get: 14, Failed: 7, Sent: 7000}) || !got.Since.Equal(first.Since) {
		t.Errorf("got %+v after %+v", got, first)
	}
	if err := os.WriteFile(filepath.Join(state, ledgerFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(5); got.Total.Put != 5 {
		t.Errorf("after a file that is damaged: got %+v", got)
	}
	if files, err := os.ReadDir(state); err != nil || len(files) != 1 {
		t.Errorf("files %v are left (%v)", files, err)
	}
}

// Stats has the requests of a bucket that counts them, and of no other.
func TestStatsOfRequests(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	st, err := s.Stats(t.Context())
	if err != nil || st.Requests != nil {
		t.Fatalf("requests to a directory: %+v, %v", st.Requests, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir, func(o *Options) { o.Bucket = &sentBucket{o.Bucket, bucket.Requests{Put: 12, List: 3}} })
	if st, err = s.Stats(t.Context()); err != nil || st.Requests == nil || st.Requests.Total.Put != 12 {
		t.Fatalf("got %+v, %v", st.Requests, err)
	}
	var text strings.Builder
	if err := st.WriteText(&text); err != nil || !strings.Contains(text.String(), "12 PUT, 3 LIST") {
		t.Errorf("text: %v\n%s", err, text.String())
	}
}
