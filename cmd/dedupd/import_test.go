package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/migrate"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

// makeCache makes a cache in a directory with n paths, each of which refers to the one before.
func makeCache(t *testing.T, n int) (dir string, infos []*narinfo.NarInfo) {
	t.Helper()
	dir = t.TempDir()
	write := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("nix-cache-info", []byte("StoreDir: /nix/store\n"))
	if err := os.Mkdir(filepath.Join(dir, "nar"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var file bytes.Buffer
		w := nar.NewWriter(&file)
		text := fmt.Appendf(nil, "file %d\n", i)
		w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(text))})
		w.Write(text)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		hash := sha256.Sum256(file.Bytes())
		path, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-package-%d", i, i))
		if err != nil {
			t.Fatal(err)
		}
		info := &narinfo.NarInfo{StorePath: path, URL: fmt.Sprintf("nar/%s.nar", narinfo.EncodeNix32(hash[:])), Compression: "none", NarHash: hash, NarSize: uint64(file.Len())}
		if i > 0 {
			info.References = []narinfo.StorePath{infos[i-1].StorePath}
		}
		infos = append(infos, info)
		write(info.URL, file.Bytes())
		write(path.HashPart()+".narinfo", info.Append(nil, "/nix/store"))
	}
	return dir, infos
}

// TestImport imports a part of a cache, and then the rest beside a running server.
func TestImport(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	dir, infos := makeCache(t, 5)
	from := "file://" + dir
	if out, err := dedupd(t, "", "import", from, "--dry-run"); err != nil || !strings.HasPrefix(out, "5 paths: 5 to import, 0 were there\n") {
		t.Errorf("dry run: got %q, %v", out, err)
	}
	if out, err := dedupd(t, "", "import", from, "--closure-of", infos[1].StorePath.Path("/nix/store")); err != nil || !strings.HasPrefix(out, "2 paths: 2 imported") {
		t.Errorf("closure: got %q, %v", out, err)
	}
	p := startServer(t)
	if err := os.Remove(filepath.Join(dir, infos[4].URL)); err != nil {
		t.Fatal(err)
	}
	skipped := filepath.Join(t.TempDir(), "skipped")
	out, err := dedupd(t, "", "import", from, "--json", "--skipped", skipped)
	var report migrate.Report
	if jsonErr := json.Unmarshal([]byte(out), &report); err == nil || jsonErr != nil || report.Present != 2 || report.Imported != 2 || report.Failed() != 1 {
		t.Errorf("beside a server: got %s, %v", out, err)
	}
	if text, err := os.ReadFile(skipped); err != nil || !strings.HasPrefix(string(text), infos[4].StorePath.String()+"\tno NAR\t") {
		t.Errorf("got %q, %v", text, err)
	}
	for _, info := range infos[:4] {
		if got := p.get(t, "/"+info.URL); uint64(len(got)) != info.NarSize {
			t.Errorf("%s: got %d bytes, want %d", info.URL, len(got), info.NarSize)
		}
		if got := p.get(t, "/"+info.StorePath.HashPart()+".narinfo"); strings.Contains(got, "Sig:") {
			t.Errorf("an imported narinfo was signed: %s", got)
		}
	}
	for range 2 { // into the file that it reads
		if out, err := dedupd(t, "", "import", from, "--paths", skipped, "--skipped", skipped); err == nil || !strings.Contains(out, "skipped, no NAR: 1") {
			t.Errorf("again: got %q, %v", out, err)
		}
	}
	for _, args := range [][]string{{}, {"ftp://x"}, {from, "--jobs", "0"}, {from, "--only", "["}, {from, "--trusted-key", "x"}, {from, "--paths", "absent"}, {from, "--closure-of", "x"}} {
		if out, err := dedupd(t, "", append([]string{"import"}, args...)...); err == nil {
			t.Errorf("import %q: got %q, want an error", args, out)
		}
	}
}

// TestImportTo imports into a gateway that asks for a token.
func TestImportTo(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	dir, infos := makeCache(t, 5)
	text, err := dedupd(t, "", "token", "create", "--name", "importer", "--rights", "read,write")
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startServer(t, "--loopback-write=false")
	if out, err := dedupd(t, "", "import", "file://"+dir, "--to", p.url); err == nil {
		t.Errorf("without a token: got %q", out)
	}
	// The store is not touched.
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	for _, want := range []string{"5 paths: 5 imported, 0 were there\n", "5 paths: 0 imported, 5 were there\n"} {
		if out, err := dedupd(t, "", "import", "file://"+dir, "--to", p.url, "--token-file", token); err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("got %q, %v, want %q", out, err, want)
		}
	}
	for _, info := range infos {
		if got := p.get(t, "/"+info.URL); uint64(len(got)) != info.NarSize {
			t.Errorf("%s: got %d bytes, want %d", info.URL, len(got), info.NarSize)
		}
	}
	if out, err := dedupd(t, "", "import", "file://"+dir, "--to", p.url, "--sign"); err == nil {
		t.Errorf("--sign: got %q", out)
	}
}

// TestExport writes what was imported as a plain cache, without a server and beside one.
func TestExport(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	if out, err := dedupd(t, "", "export", "file://"+t.TempDir()); err == nil {
		t.Errorf("without a store: got %q", out)
	}
	dir, infos := makeCache(t, 3)
	if out, err := dedupd(t, "", "import", "file://"+dir); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	to := t.TempDir()
	if out, err := dedupd(t, "", "export", "file://"+to, "--closure-of", infos[1].StorePath.String(), "--compression", "none"); err != nil || !strings.HasPrefix(out, "2 paths: 2 exported, 0 were there, 0 failed\n") {
		t.Errorf("got %q, %v", out, err)
	}
	startServer(t)
	if out, err := dedupd(t, "", "export", "file://"+to); err == nil || !strings.Contains(err.Error(), "--follow") {
		t.Errorf("beside a server: got %q, %v", out, err)
	}
	out, err := dedupd(t, "", "export", "file://"+to, "--follow", "--state", filepath.Join(t.TempDir(), "reader"), "--compression", "none", "--json")
	var report migrate.ExportReport
	if jsonErr := json.Unmarshal([]byte(out), &report); err != nil || jsonErr != nil || report.Exported != 1 || report.Present != 2 {
		t.Errorf("beside a server, following: got %s, %v", out, err)
	}
	for _, info := range infos {
		got, err := os.ReadFile(filepath.Join(to, info.StorePath.HashPart()+".narinfo"))
		if err != nil || !strings.HasPrefix(string(got), "StorePath: "+info.StorePath.Path("/nix/store")) {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestImportLine(t *testing.T) {
	c := migrate.Counts{Paths: 4, Imported: 2, Present: 1, Skipped: 1, NARBytes: 30e6}
	if got, want := importLine(c, 10*time.Second, false), "4 paths: 2 imported, 1 were there, 1 left out; 30.0 MB of NARs, 3.0 MB/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.ChunkBytes, c.NewChunkBytes, c.Listed = 30, 20, 0.25
	if got, want := importLine(c, 10*time.Second, false), ", deduplication 1.50 : 1, about 30s left"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want %q at its end", got, want)
	}
	var got struct{ Progress migrate.Counts }
	if err := json.Unmarshal([]byte(importLine(c, time.Second, true)), &got); err != nil || got.Progress != c {
		t.Errorf("got %+v, %v", got, err)
	}
}
