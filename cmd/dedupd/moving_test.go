package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// TestMoving goes through docs/migration.md, and at each step gets everything from where
// clients would.
func TestMoving(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	dir, infos := makeCache(t, 6)
	var asked atomic.Int64 // of the old cache
	files := http.FileServer(http.Dir(dir))
	old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		files.ServeHTTP(w, r)
	}))
	defer old.Close()
	clients := func(step string, get func(t *testing.T, path string) string, n int) {
		t.Helper()
		for _, info := range infos[:n] {
			text := get(t, "/"+info.StorePath.HashPart()+".narinfo")
			_, url, _ := strings.Cut(text, "URL: ")
			url, _, _ = strings.Cut(url, "\n")
			if nar := get(t, "/"+url); len(nar) == 0 {
				t.Errorf("%s: %s at %s: nothing", step, info.StorePath, url)
			}
			// As who remembers the old narinfo.
			if nar := get(t, "/"+info.URL); uint64(len(nar)) != info.NarSize {
				t.Errorf("%s: %s: got %d bytes, want %d", step, info.URL, len(nar), info.NarSize)
			}
		}
	}
	config := filepath.Join(t.TempDir(), "dedupd.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "[[upstream]]\nurl = %q\ntrust = true\n", old.URL), 0o644); err != nil {
		t.Fatal(err)
	}
	p := startServer(t, "--config", config)
	clients("before the old cache", p.get, 3)

	if out, err := dedupd(t, "", "import", "file://"+dir); err != nil || !strings.Contains(out, "6 paths:") {
		t.Fatalf("import: %s, %v", out, err)
	}
	before := asked.Load()
	clients("after the import", p.get, len(infos))
	if n := asked.Load() - before; n > 0 {
		t.Errorf("the old cache was asked %d times after the import", n)
	}
	p.stop()
	old.Close()
	p = startServer(t)
	clients("without the old cache", p.get, len(infos))

	plain := t.TempDir()
	if out, err := dedupd(t, "", "export", "file://"+plain, "--compression", "none", "--follow", "--state", filepath.Join(t.TempDir(), "reader")); err != nil || !strings.Contains(out, "6 exported") {
		t.Fatalf("export: %s, %v", out, err)
	}
	web := httptest.NewServer(http.FileServer(http.Dir(plain)))
	defer web.Close()
	clients("back", (&process{url: web.URL}).get, len(infos))
}
