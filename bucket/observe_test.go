package bucket_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/buckettest"
)

func TestObserved(t *testing.T) {
	buckettest.Run(t, func(t *testing.T) bucket.Bucket {
		return bucket.Observe(openDir(t, t.TempDir()), func(bucket.Operation) {})
	})
}

func TestObserve(t *testing.T) {
	var got []bucket.Operation
	b := bucket.Observe(openDir(t, t.TempDir()), func(op bucket.Operation) { got = append(got, op) })
	b.Put(t.Context(), "a", strings.NewReader("12345"), 5)
	b.ReadAt(t.Context(), "a", make([]byte, 2), 3)
	b.ReadAt(t.Context(), "b", make([]byte, 2), 3)
	b.Read(t.Context(), "a", 1, 4, io.Discard)
	b.Stat(t.Context(), "a")
	b.List(t.Context(), "", "", func(bucket.Info) error { return nil })
	b.Delete(t.Context(), "a")
	want := []bucket.Operation{
		{Name: "put", Bytes: 5}, {Name: "read", Bytes: 2}, {Name: "read", Err: bucket.ErrNotFound}, {Name: "read", Bytes: 4}, {Name: "stat"}, {Name: "list"}, {Name: "delete"},
	}
	if len(got) != len(want) {
		t.Fatalf("got %d operations, want %d", len(got), len(want))
	}
	for i, w := range want {
		if g := got[i]; g.Name != w.Name || g.Bytes != w.Bytes || !errors.Is(g.Err, w.Err) || g.Took <= 0 {
			t.Errorf("operation %d: got %+v, want %+v", i, g, w)
		}
	}
}

// What counts requests is found below wrappers.
func TestRequestsOf(t *testing.T) {
	quiet := func(bucket.Operation) {}
	if got, ok := bucket.RequestsOf(bucket.Observe(openDir(t, t.TempDir()), quiet)); ok {
		t.Errorf("a directory has sent %+v", got)
	}
	counted := bucket.Observe(bucket.Observe(counting{}, quiet), quiet)
	if got, ok := bucket.RequestsOf(counted); !ok || got.Put != 3 {
		t.Errorf("got %+v, %v, want 3 PUTs", got, ok)
	}
}

type counting struct{ bucket.Bucket }

func (counting) Requests() bucket.Requests { return bucket.Requests{Put: 3} }
