package migrate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
	"github.com/dedupd/dedupd/upstream"
)

// TestExportStream writes streams of all and of some, each path behind what it refers to.
func TestExportStream(t *testing.T) {
	c := newCache(t)
	gone, err := narinfo.ParseBaseName(strings.Repeat("2", 32) + "-gone")
	if err != nil {
		t.Fatal(err)
	}
	var all []*narinfo.NarInfo
	for i := range 8 {
		all = append(all, c.add(compression.XZ, func(info *narinfo.NarInfo) {
			info.References = []narinfo.StorePath{info.StorePath, gone}
			if i > 0 {
				info.References = append(info.References, all[i-1].StorePath, all[i/2].StorePath)
			}
		}))
	}
	first := openStore(t)
	run(t, first, upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), Options{})
	for _, test := range []struct {
		opts ExportOptions
		want int64
	}{
		{ExportOptions{}, 8},
		{ExportOptions{Paths: []string{all[4].StorePath.HashPart()}, Closure: true}, 5},
		{ExportOptions{Match: "package-[0-2]"}, 3},
		{ExportOptions{DryRun: true}, 8},
	} {
		var stream bytes.Buffer
		r, err := ExportStream(t.Context(), first, &stream, test.opts, new(ExportProgress))
		if err != nil || r.Exported != test.want || r.Paths != test.want || r.Failed != 0 || r.Missing != 1 {
			t.Errorf("%+v: got %+v, %v", test.opts, r, err)
		}
		if test.opts.DryRun {
			if stream.Len() > 0 {
				t.Errorf("a dry run has written %d bytes", stream.Len())
			}
			continue
		}
		// One at a time, so that what is behind comes in later.
		second := openStore(t)
		if r, skipped, err := runStream(t, second, stream.Bytes(), Options{Jobs: 1}); err != nil || r.Imported != test.want || r.Incomplete != test.want || len(skipped) > 0 {
			t.Errorf("%+v, again: got %+v, %v, %v", test.opts, r, skipped, err)
		}
		for _, info := range all[:test.want] {
			c.check(second, info)
		}
	}
	// Paths that are named come as they are, in an order in which they can be imported.
	var stream bytes.Buffer
	named := ExportOptions{Paths: []string{all[7].StorePath.HashPart(), all[3].StorePath.HashPart(), all[6].StorePath.HashPart()}}
	if r, err := ExportStream(t.Context(), first, &stream, named, new(ExportProgress)); err != nil || r.Exported != 3 || r.Missing != 0 {
		t.Errorf("named: got %+v, %v", r, err)
	}
	third := openStore(t)
	if r, _, err := runStream(t, third, stream.Bytes(), Options{Jobs: 1}); err != nil || r.Imported != 3 {
		t.Errorf("named, again: got %+v, %v", r, err)
	}
	at := func(i int) int { return bytes.Index(stream.Bytes(), c.nars[all[i].StorePath.HashPart()]) }
	if at(3) < 0 || at(3) > at(6) || at(6) > at(7) {
		t.Errorf("the paths come at %d, %d and %d", at(3), at(6), at(7))
	}
	for _, closure := range []bool{false, true} {
		opts := ExportOptions{Paths: []string{gone.HashPart()}, Closure: closure}
		if _, err := ExportStream(t.Context(), first, io.Discard, opts, new(ExportProgress)); !errors.Is(err, chunkstore.ErrNotFound) {
			t.Errorf("a path that is not here: got %v", err)
		}
	}
	if _, err := ExportStream(t.Context(), first, nil, ExportOptions{Match: "["}, new(ExportProgress)); err == nil {
		t.Error("a bad pattern: no error")
	}
}

// TestExportStreamDamaged leaves out what is damaged, and what refers to it.
func TestExportStreamDamaged(t *testing.T) {
	dir := t.TempDir()
	b, err := bucket.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunkstore.Open(t.Context(), chunkstore.Options{State: t.TempDir(), Bucket: b, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	c := newCache(t)
	bad := c.add(compression.None)
	if _, _, err := runStream(t, s, c.stream(bad), Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	flipPacks(t, dir)
	fine := c.add(compression.None)
	user := c.add(compression.None)
	user.References = []narinfo.StorePath{fine.StorePath, bad.StorePath}
	if _, _, err := runStream(t, s, c.stream(fine, user), Options{}); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := ExportStream(t.Context(), s, &stream, ExportOptions{}, new(ExportProgress)); !errors.Is(err, packfile.ErrCorrupt) {
		t.Errorf("damage that is found while it is read: got %v", err)
	}
	if _, _, err := runStream(t, openStore(t), stream.Bytes(), Options{}); err == nil {
		t.Error("the stream that was broken off can be imported")
	}
	stream.Reset()
	failed := map[string]error{}
	r, err := ExportStream(t.Context(), s, &stream, ExportOptions{Failed: func(path string, err error) { failed[path] = err }}, new(ExportProgress))
	if err != nil || r.Exported != 1 || r.Failed != 2 || failed[user.StorePath.String()] != errReference || failed[bad.StorePath.String()] == nil {
		t.Errorf("damage that is known: got %+v, %v, %v", r, failed, err)
	}
	if r, _, err := runStream(t, openStore(t), stream.Bytes(), Options{}); err != nil || r.Imported != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// flipPacks damages the first frame of each pack.
func flipPacks(t *testing.T, dir string) {
	t.Helper()
	packs := 0
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(name, filepath.Join(dir, "packs")) {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		packs++
		text[100] ^= 1
		if err := os.Chmod(name, 0o600); err != nil {
			return err
		}
		return os.WriteFile(name, text, 0o600)
	})
	if err != nil || packs == 0 {
		t.Fatalf("%d packs, %v", packs, err)
	}
}
