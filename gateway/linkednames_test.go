package gateway_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/chunkstore"
)

// TestLinkedNames gets a NAR under names that it had elsewhere, in the compressions of then.
func TestLinkedNames(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 100_000)
	s.want(200, "PUT", f.plainURL(), f.nar)
	flat := strings.TrimPrefix(fileName(zstdEncode(t, f.nar), ".zst"), "nar/")
	for _, file := range []chunkstore.File{
		{Name: flat, Compression: "zstd"}, // as nix-push did it
		{Name: "nar/" + f.path.HashPart() + ".nar", Compression: "gzip"},
		{Name: "nar/old.nar.bz2", Compression: "bzip2"},
		{Name: "nar/old", Compression: "strange"},
	} {
		file.Content = f.hash
		s.want(404, "GET", "/"+file.Name, nil)
		if err := s.store.LinkNAR(t.Context(), file); err != nil {
			t.Fatal(err)
		}
		switch file.Compression {
		case "zstd":
			if got := zstdDecode(t, s.checkBody("/"+file.Name, nil)); !bytes.Equal(got, f.nar) {
				t.Errorf("%s is %d bytes of something else", file.Name, len(got))
			}
		case "gzip":
			if got := gzipDecode(t, s.checkBody("/"+file.Name, nil)); !bytes.Equal(got, f.nar) {
				t.Errorf("%s is %d bytes of something else", file.Name, len(got))
			}
		default: // which cannot be made again
			s.want(404, "GET", "/"+file.Name, nil)
			s.want(404, "HEAD", "/"+file.Name, nil)
		}
	}
	s.want(405, "PUT", "/"+flat, f.nar)
}

// TestPullFlat gets a file by the name that clients of nix-push's layout remember.
func TestPullFlat(t *testing.T) {
	o := newOrigin(t)
	f := newFixture(t, 2, 100_000)
	file := zstdEncode(t, f.nar)
	name := strings.TrimPrefix(fileName(file, ".zst"), "nar/")
	o.put(f, name, "zstd", file)
	s := startWith(t, o.upstreams(t))
	if a := s.want(200, "GET", "/"+name, nil); !bytes.Equal(a.body, file) {
		t.Errorf("got %d bytes, want those of the file", len(a.body))
	}
	s.want(404, "GET", "/"+strings.Repeat("0", 52)+".nar.xz", nil)
}
