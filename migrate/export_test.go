package migrate

import (
	"os/exec"
	"slices"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// TestExport brings a cache in, out, and in again: narinfos are the same but for what is
// about the file, NARs are the same.
func TestExport(t *testing.T) {
	key, err := narinfo.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCache(t)
	var all []*narinfo.NarInfo
	for i := range 12 {
		all = append(all, c.add(compression.XZ, func(info *narinfo.NarInfo) {
			if i > 0 {
				info.References = []narinfo.StorePath{all[i-1].StorePath}
			}
			info.Deriver = info.StorePath
			info.Sign(chunkstore.DefaultStoreDir, key)
		}))
	}
	all = append(all, c.addNAR(c.nars[all[0].StorePath.HashPart()], compression.XZ)) // which shares a NAR
	first := openStore(t)
	run(t, first, upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{})

	for _, typ := range []compression.Type{compression.None, compression.Zstd, compression.XZ} {
		if _, err := exec.LookPath("xz"); err != nil && typ == compression.XZ {
			t.Log("xz is missing")
			continue
		}
		dir := t.TempDir()
		to, err := bucket.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		export := func(opts ExportOptions) *ExportReport {
			t.Helper()
			opts.Compression, opts.Failed = typ, func(path string, err error) { t.Errorf("%s: %v", path, err) }
			report, err := Export(t.Context(), first, to, opts, new(ExportProgress))
			if err != nil {
				t.Fatal(err)
			}
			return report
		}
		if r := export(ExportOptions{DryRun: true}); r.Exported != int64(len(all)) || r.Written != 0 {
			t.Errorf("%s, dry run: got %+v", typ, r)
		}
		if r := export(ExportOptions{Paths: []string{all[3].StorePath.HashPart()}, Closure: true}); r.Exported != 4 {
			t.Errorf("%s, a closure: got %+v", typ, r)
		}
		if r := export(ExportOptions{Paths: []string{all[9].StorePath.HashPart()}, DryRun: true}); r.Paths != 1 || r.Exported != 1 {
			t.Errorf("%s, one path: got %+v", typ, r)
		}
		if r := export(ExportOptions{}); r.Present != 4 || r.Exported != int64(len(all)-4) || r.Missing != 0 {
			t.Errorf("%s, all: got %+v", typ, r)
		}
		second := openStore(t)
		if r, skipped := run(t, second, upstream.NewDir(dir, chunkstore.DefaultStoreDir), Options{Keys: nil}); r.Imported != int64(len(all)) || r.Renamed != 0 || len(skipped) > 0 {
			t.Errorf("%s, again: got %+v, %v", typ, r, skipped)
		}
		for _, info := range all {
			c.check(second, info)
			got, err := second.NarInfo(t.Context(), info.StorePath.HashPart())
			if err != nil {
				t.Fatal(err)
			}
			if got.Compression != string(typ) || got.Deriver != info.Deriver || !slices.Equal(got.References, info.References) || !slices.Equal(got.Sigs, info.Sigs) {
				t.Errorf("%s: got %+v, want %+v", typ, got, info)
			}
		}
	}
	for _, opts := range []ExportOptions{{Compression: "br"}, {Level: 20}, {Match: "["}} {
		if _, err := Export(t.Context(), first, nil, opts, new(ExportProgress)); err == nil {
			t.Errorf("%+v: no error", opts)
		}
	}
}
