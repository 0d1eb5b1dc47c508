package migrate

import (
	"bytes"
	"context"
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

func readFile(t *testing.T, s *chunkstore.Store, name string) string {
	t.Helper()
	f, err := s.File(t.Context(), name)
	if err != nil {
		t.Error(err)
		return ""
	}
	var b bytes.Buffer
	if err := s.WriteFile(t.Context(), &b, f, 0, f.Size); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	return b.String()
}

// TestImportDebugInfo imports debug information, whose archives must be there, under a name
// that can be downloaded.
func TestImportDebugInfo(t *testing.T) {
	c := newCache(t)
	if err := os.Mkdir(filepath.Join(c.dir, "debuginfo"), 0o755); err != nil {
		t.Fatal(err)
	}
	xz, bz := c.add(compression.XZ), c.addNAR(bzip2Plain(t), compression.Bzip2)
	gone := c.add(compression.XZ)
	if err := os.Rename(filepath.Join(c.dir, gone.URL), filepath.Join(c.dir, "kept")); err != nil {
		t.Fatal(err)
	}
	text := func(archive string) string { return `{"archive":"` + archive + `","member":"lib/debug/x"}` }
	plain := "../nar/" + narinfo.EncodeNix32(bz.NarHash[:]) + ".nar"
	tests := map[string]struct{ archive, want string }{
		"xz":       {"../" + xz.URL, "../" + xz.URL},
		"bzip2":    {"../" + bz.URL, plain},
		"absolute": {"https://cache.example/" + xz.URL, "../" + xz.URL},
	}
	for name, tt := range tests {
		c.write("debuginfo/"+name+".debug", []byte(text(tt.archive)))
	}
	c.write("debuginfo/gone.debug", []byte(text("../"+gone.URL)))
	c.write("debuginfo/wrong.debug", []byte("<html>"))
	s, source := openStore(t), upstream.NewDir(c.dir, chunkstore.DefaultStoreDir)
	_, skipped := run(t, s, source, Options{})
	if len(skipped) != 3 || skipped[0].Name != "debuginfo/gone.debug" || skipped[0].Reason != NoNAR || skipped[1].Reason != BadFile {
		t.Errorf("got %v", skipped)
	}
	for name, tt := range tests {
		if got := readFile(t, s, "debuginfo/"+name+".debug"); got != text(tt.want) {
			t.Errorf("%s: got %s, want %s", name, got, text(tt.want))
		}
	}
	// What was left out is tried again by its names: first paths, then files.
	if err := os.Rename(filepath.Join(c.dir, "kept"), filepath.Join(c.dir, gone.URL)); err != nil {
		t.Fatal(err)
	}
	report, skipped := run(t, s, source, Options{Jobs: 1, Paths: func(ctx context.Context, fn func(string) error) error {
		return listOf([]string{gone.StorePath.HashPart(), "debuginfo/gone.debug", "debuginfo/wrong.debug"})(ctx, fn)
	}})
	if report.Imported != 1 || report.Files != 1 || len(skipped) != 1 || skipped[0].Name != "debuginfo/wrong.debug" {
		t.Errorf("again: got %+v, %v", report, skipped)
	}
}

// TestImportWithFiles asks for what cannot be listed.
func TestImportWithFiles(t *testing.T) {
	c := newCache(t)
	info := c.add(compression.XZ, func(info *narinfo.NarInfo) { info.Deriver = info.StorePath })
	without := c.add(compression.XZ, func(info *narinfo.NarInfo) { info.Deriver = info.StorePath })
	listing, log := `{"version":1,"root":{}}`, "built\n"
	c.write(info.StorePath.HashPart()+".ls", encode(t, compression.Brotli, []byte(listing))) // whose header is lost
	c.write("log/"+info.Deriver.String(), []byte(log))
	server := httptest.NewServer(http.FileServer(http.Dir(c.dir)))
	defer server.Close()
	source, err := upstream.NewHTTP(upstream.HTTPConfig{URL: server.URL, StoreDir: chunkstore.DefaultStoreDir})
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	report, skipped := run(t, s, source, Options{WithFiles: true, Paths: func(ctx context.Context, fn func(string) error) error {
		return listOf([]string{info.StorePath.HashPart(), without.StorePath.HashPart()})(ctx, fn)
	}})
	if report.Imported != 2 || report.Files != 2 || len(skipped) > 0 {
		t.Errorf("got %+v, %v", report, skipped)
	}
	if got := readFile(t, s, info.StorePath.HashPart()+".ls"); got != listing {
		t.Errorf("listing: got %q", got)
	}
	if got := readFile(t, s, "log/"+info.Deriver.String()); got != log {
		t.Errorf("log: got %q", got)
	}
}

func TestIsFile(t *testing.T) {
	h := "00000000000000000000000000000000"
	for name, want := range map[string]bool{
		"log/x.drv": true, h + ".ls": true, "debuginfo/x.debug": true, "realisations/x!out.doi": true, "build-trace-v2/a/b.doi": true,
		h: false, h + "-log": false, "/nix/store/" + h + "-x": false, "/log/x": false, "nar/x": false, "x.ls": false, "": false,
	} {
		if got := IsFile(name); got != want {
			t.Errorf("%q: got %v, want %v", name, got, want)
		}
	}
}
