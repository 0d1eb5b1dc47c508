package migrate

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/upstream"
)

// A listed is a cache whose list is in an order of its own.
type listed struct {
	upstream.Source
	names []string
}

func (l *listed) List(_ context.Context, dir string, fn func(string, time.Time) error) error {
	if dir != "" {
		return nil
	}
	for _, name := range l.names {
		if err := fn(name, time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

func TestProgress(t *testing.T) {
	hash := func(c string) string { return strings.Repeat(c, 32) + ".narinfo" }
	for want, names := range map[float64][]string{
		0:           {hash("0")},
		1 / 32.0:    {"nix-cache-info", hash("0"), "1" + hash("0")[1:]},
		1 - 0x1p-20: {hash("0"), hash("g"), hash("z")},
		0.5:         {hash("0"), "h" + hash("0")[1:], "log"},
	} {
		var p Progress
		im := &importer{progress: &p}
		if err := im.listPaths(t.Context(), &listed{names: names}, func(string) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if got := p.Counts().Listed; got < want || got > want+0x1p-9 {
			t.Errorf("%q: got %v, want %v", names, got, want)
		}
	}
	var p Progress
	im := &importer{progress: &p}
	if err := im.listPaths(t.Context(), &listed{names: []string{hash("z"), hash("g")}}, func(string) error { return nil }); err != nil || p.Counts().Listed != 0 {
		t.Errorf("a list in no order: got %v, %v", p.Counts().Listed, err)
	}

	c := newCache(t)
	c.add(compression.None)
	s := openStore(t)
	for _, twice := range []bool{false, true} {
		var p Progress
		if _, err := Import(t.Context(), s, upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{}, &p); err != nil {
			t.Fatal(err)
		}
		if got := p.Counts(); (got.NewChunkBytes > 0) == twice || got.ChunkBytes < got.NewChunkBytes {
			t.Errorf("again: %v: got %+v", twice, got)
		}
	}
}
