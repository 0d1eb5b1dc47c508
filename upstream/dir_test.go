package upstream

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
)

func TestDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	d := NewDir(dir, storeDir)
	if _, err := d.NarInfo(t.Context(), zeros); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no directory: got error %v", err)
	}
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nar/x.nar", "0123456789")
	if _, err := d.NarInfo(t.Context(), zeros); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no cache in it: got error %v", err)
	}
	write("nix-cache-info", "StoreDir: /nix/store\n")
	if _, err := d.NarInfo(t.Context(), zeros); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such path: got error %v", err)
	}
	write(zeros+".narinfo", aNarInfo(zeros))
	write("../outside", "secret")
	write("nar/page", "<html>")
	if info, err := d.NarInfo(t.Context(), zeros); err != nil || info.URL != "nar/x.nar" {
		t.Errorf("got %v, error %v", info, err)
	}
	for url, want := range map[string]string{
		"nar/x.nar": "456789", "nar/x.nar?hash=y": "456789", "/nar/x.nar": "456789", "../outside": "", "nar": "", "nar/y.nar": "",
		"file:///etc/passwd": "", "http://example.com/x": "", "https://cache.example/nar/x.nar": "456789",
	} {
		body, size, err := d.NAR(t.Context(), &narinfo.NarInfo{URL: url}, 4)
		if (err == nil) != (want != "") {
			t.Errorf("%s: error %v", url, err)
		}
		if err != nil {
			continue
		}
		if b, err := io.ReadAll(body); string(b) != want || size != 10 || err != nil {
			t.Errorf("%s: got %q of %d bytes, error %v", url, b, size, err)
		}
		body.Close()
	}
	// A file that becomes shorter while it is read.
	body, _, err := d.NAR(t.Context(), &narinfo.NarInfo{URL: "nar/x.nar"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if err := os.Truncate(filepath.Join(dir, "nar/x.nar"), 5); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(body); string(b) != "01234" || err != io.ErrUnexpectedEOF {
		t.Errorf("got %q, error %v", b, err)
	}
	if !strings.HasPrefix(d.Name(), "file:///") {
		t.Errorf("the name is %s", d.Name())
	}
}
