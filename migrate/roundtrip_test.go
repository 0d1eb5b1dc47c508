package migrate

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// trips are the ways out of a store and into another one.
var trips = map[string]func(t *testing.T, from, to *chunkstore.Store){
	"directory": func(t *testing.T, from, to *chunkstore.Store) {
		dir := t.TempDir()
		tripThrough(t, from, to, "file://"+dir, upstream.NewDir(dir, chunkstore.DefaultStoreDir))
	},
	"S3": func(t *testing.T, from, to *chunkstore.Store) {
		server := s3test.Start(t, "versitygw")
		url := server.NewBucket(t, "plain")
		source, err := upstream.NewS3(url, chunkstore.DefaultStoreDir)
		if err != nil {
			t.Fatal(err)
		}
		tripThrough(t, from, to, url, source)
	},
	"stream": func(t *testing.T, from, to *chunkstore.Store) {
		var stream bytes.Buffer
		if r, err := ExportStream(t.Context(), from, &stream, ExportOptions{}, new(ExportProgress)); err != nil || r.Failed > 0 {
			t.Fatalf("export: got %+v, %v", r, err)
		}
		if r, skipped, err := runStream(t, to, stream.Bytes(), Options{}); err != nil || len(skipped) > 0 {
			t.Fatalf("import: got %+v, %v, %v", r, skipped, err)
		}
	},
	"gateway": func(t *testing.T, from, to *chunkstore.Store) {
		dir := t.TempDir()
		export(t, from, "file://"+dir)
		server := count(t, gateway.New(to, gateway.Config{Log: slog.New(slog.DiscardHandler)}))
		if r, skipped := runInto(t, openGateway(t, server.URL), upstream.NewDir(dir, chunkstore.DefaultStoreDir), Options{}); len(skipped) > 0 {
			t.Fatalf("import: got %+v, %v", r, skipped)
		}
	},
}

func export(t *testing.T, from *chunkstore.Store, url string) {
	t.Helper()
	dst, err := bucket.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Export(t.Context(), from, dst, ExportOptions{Temp: t.TempDir()}, new(ExportProgress)); err != nil || r.Failed > 0 {
		t.Fatalf("export: got %+v, %v", r, err)
	}
}

func tripThrough(t *testing.T, from, to *chunkstore.Store, url string, source upstream.Source) {
	t.Helper()
	export(t, from, url)
	if r, skipped := run(t, to, source, Options{}); len(skipped) > 0 {
		t.Fatalf("import: got %+v, %v", r, skipped)
	}
}

// essence returns the text of a narinfo without what is about the file. A stream has no signatures and
// content addresses.
func essence(info *narinfo.NarInfo, stream bool) string {
	n := *info
	n.URL, n.Compression, n.FileHash, n.FileSize = "", "", narinfo.Hash{}, 0
	if stream {
		n.Sigs, n.CA = nil, ""
	}
	return n.Text(chunkstore.DefaultStoreDir)
}

// TestRoundTrips brings caches in, out and in again, by every way: the narinfos are the same.
func TestRoundTrips(t *testing.T) {
	key, err := narinfo.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCache(t)
	var all []*narinfo.NarInfo
	for i := range 12 {
		all = append(all, c.add(compression.XZ, func(info *narinfo.NarInfo) {
			if i > 0 {
				info.References = []narinfo.StorePath{all[i-1].StorePath, info.StorePath}
			}
			if i%2 > 0 {
				info.Deriver = info.StorePath
				info.Sign(chunkstore.DefaultStoreDir, key)
				info.CA = "fixed:r:sha256:1b9p07z77phvv2hf6gm9f28syp39f1ag5r6rhbmk5iv3qzrwcq7i"
			}
		}))
	}
	dirs := []string{c.dir}
	if !testing.Short() {
		real, _ := filepath.Glob("../../shared/corpus/real/lpenz*") // the smaller one
		dirs = append(dirs, real...)
	}
	first := openStore(t)
	for _, dir := range dirs {
		run(t, first, upstream.NewDir(dir, chunkstore.DefaultStoreDir), Options{})
	}
	want := map[string]*narinfo.NarInfo{}
	err = first.EachPath(t.Context(), func(p narinfo.StorePath, _ int64) error {
		want[p.HashPart()], err = first.NarInfo(t.Context(), p.HashPart())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, trip := range trips {
		t.Run(name, func(t *testing.T) {
			second := openStore(t)
			trip(t, first, second)
			for hashPart, info := range want {
				got, err := second.NarInfo(t.Context(), hashPart)
				if err != nil {
					t.Error(err)
				} else if got, want := essence(got, name == "stream"), essence(info, name == "stream"); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				if _, ok := c.nars[hashPart]; ok {
					info := *info
					info.Sigs = got.Sigs
					c.check(second, &info)
				}
			}
		})
	}
}
