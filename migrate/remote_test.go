package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// TestAsk has another one import, all and by list.
func TestAsk(t *testing.T) {
	c := newCache(t)
	first, second := c.add(compression.XZ), c.add(compression.XZ)
	gone := c.add(compression.XZ)
	if err := os.Remove(filepath.Join(c.dir, gone.URL)); err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	server := httptest.NewServer(Handler(s, func(_ context.Context, text json.RawMessage) (upstream.Source, error) {
		var dir string
		if err := json.Unmarshal(text, &dir); err != nil || dir != c.dir {
			return nil, fmt.Errorf("bad source %s", text)
		}
		return upstream.NewDir(dir, chunkstore.DefaultStoreDir), nil
	}, nil, nil))
	defer server.Close()

	var skipped []Skip
	opts := Options{
		Skipped: func(s Skip) { skipped = append(skipped, s) }, Match: "package-*", Keys: []narinfo.PublicKey{},
		Paths: func(_ context.Context, fn func(string) error) error { return fn(first.StorePath.HashPart()) },
	}
	report, err := Ask(t.Context(), http.DefaultClient, server.URL, c.dir, opts, func(Counts) {})
	if err != nil || report.Imported != 1 || len(skipped) != 0 {
		t.Errorf("got %+v, %v, %v", report, skipped, err)
	}
	c.check(s, first)
	opts.Paths = nil
	report, err = Ask(t.Context(), http.DefaultClient, server.URL, c.dir, opts, func(Counts) {})
	if err != nil || report.Imported != 1 || report.Present != 1 || len(skipped) != 1 || skipped[0].Reason != NoNAR {
		t.Errorf("got %+v, %v, %v", report, skipped, err)
	}
	c.check(s, second)

	if _, err := Ask(t.Context(), http.DefaultClient, server.URL, "elsewhere", opts, nil); err == nil {
		t.Error("a source that the server does not open: no error")
	}
	broken := errors.New("no more paths")
	opts.Paths = func(context.Context, func(string) error) error { return broken }
	if _, err := Ask(t.Context(), http.DefaultClient, server.URL, c.dir, opts, func(Counts) {}); err == nil {
		t.Error("a list that fails: no error")
	}
}
