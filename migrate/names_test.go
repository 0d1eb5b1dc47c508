package migrate

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

func TestOldName(t *testing.T) {
	info := narinfo.NarInfo{NarHash: [32]byte{1}, FileHash: narinfo.NewHash(narinfo.SHA256, bytes.Repeat([]byte{2}, 32))}
	narHash, fileHash, other := narinfo.EncodeNix32(info.NarHash[:]), info.FileHash.Nix32(), strings.Repeat("0", 52)
	for _, tt := range []struct{ url, typ, want string }{
		{"nar/" + fileHash + ".nar.xz", "xz", "nar/" + fileHash + ".nar.xz"},
		{"nar/" + narHash + ".nar.zst", "zstd", "nar/" + narHash + ".nar.zst"},
		{"nar/" + narHash + ".nar?hash=x", "none", "nar/" + narHash + ".nar"},
		{fileHash + ".nar.bz2", "bzip2", fileHash + ".nar.bz2"},
		{"/" + fileHash + ".nar.xz", "xz", fileHash + ".nar.xz"},
		{"https://cache.example/nar/" + fileHash + ".nar.xz", "xz", "nar/" + fileHash + ".nar.xz"},
		{"nar/" + strings.Repeat("3", 32) + ".nar", "none", "nar/" + strings.Repeat("3", 32) + ".nar"},
		{"nar/" + fileHash + ".nar", "gzip", "nar/" + fileHash + ".nar"},
		{"nar/" + fileHash + ".nar", "none", ""}, // the name of another NAR
		{"nar/" + other + ".nar.xz", "xz", ""},
		{"nix-cache-info", "none", ""}, {"x.narinfo", "none", ""}, {"log/x.nar", "none", ""}, {"a/nar/x.nar", "none", ""},
		{"../nar/x.nar", "none", ""}, {"nar/../x.nar", "none", ""}, {"nar/.x.nar", "none", ""}, {"nar/a%20b.nar", "none", ""}, {":", "none", ""},
	} {
		info.URL, info.Compression = tt.url, tt.typ
		got, ok := oldName(&info)
		if ok = ok && believable(&info, got); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.url, got, ok, tt.want)
		}
	}
}

// A countingSource counts the narinfos that it gives.
type countingSource struct {
	*upstream.Dir
	narInfos atomic.Int64
}

func (c *countingSource) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	c.narInfos.Add(1)
	return c.Dir.NarInfo(ctx, hashPart)
}

// TestImportPresent imports a cache that has paths which were uploaded here, too. Clients of
// the cache remember other names of their NARs, and it has signatures of its own.
func TestImportPresent(t *testing.T) {
	key, err := narinfo.GenerateKey("old-cache-1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCache(t)
	s := openStore(t)
	var all []*narinfo.NarInfo
	for i, typ := range []compression.Type{compression.XZ, compression.Gzip, compression.XZ, compression.XZ} {
		info := c.add(typ, func(info *narinfo.NarInfo) { info.Sign(chunkstore.DefaultStoreDir, key) })
		if all = append(all, info); i == 3 {
			break // that one comes by the import
		}
		uploaded, nar := *info, c.nars[info.StorePath.HashPart()]
		uploaded.Sigs = nil
		if i == 2 { // another build of the same path
			nar = makeNAR(t, 100)
		}
		f, err := s.PutNAR(t.Context(), "nar/uploaded-"+info.StorePath.HashPart()+".nar.zst", bytes.NewReader(encode(t, compression.Zstd, nar)), nil)
		if err != nil {
			t.Fatal(err)
		}
		uploaded.URL, uploaded.NarHash, uploaded.NarSize = f.Name, f.Content, uint64(f.Size)
		if err := s.PutNarInfo(t.Context(), &uploaded); err != nil {
			t.Fatal(err)
		}
	}
	source := &countingSource{Dir: upstream.NewDir(c.dir, chunkstore.DefaultStoreDir)}
	for n, want := range []int64{4, 3} { // which of the three has been imported nothing tells
		source.narInfos.Store(0)
		report, skipped := run(t, s, source, Options{})
		if got := source.narInfos.Load(); got != want || len(skipped) > 0 || report.Present+report.Imported != 4 || report.Imported != int64(1-n) || report.Shared > 0 {
			t.Errorf("run %d: %d narinfos, want %d; %+v, %v", n, got, want, report, skipped)
		}
	}
	for i, info := range all {
		f, err := s.File(t.Context(), info.URL)
		if err != nil || f.Content != info.NarHash || f.Compression != info.Compression || uint64(f.FileSize) != info.FileSize {
			t.Errorf("%s: got %+v, %v", info.URL, f, err)
		}
		got, err := s.NarInfo(t.Context(), info.StorePath.HashPart())
		if err != nil || (i != 2) != slices.Equal(got.Sigs, info.Sigs) {
			t.Errorf("%s: got %+v, %v", info.StorePath, got, err)
		}
	}
}
