package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
)

// TestUpstreams runs a server with upstreams in its settings file: a private cache, by
// either way to its password, and one that should be asked first.
func TestUpstreams(t *testing.T) {
	key, err := narinfo.GenerateKey("private-1")
	if err != nil {
		t.Fatal(err)
	}
	path, err := narinfo.ParseBaseName(strings.Repeat("0", 32) + "-x")
	if err != nil {
		t.Fatal(err)
	}
	info := &narinfo.NarInfo{StorePath: path, URL: "nar/x.nar.xz", Compression: "xz", NarHash: [32]byte{1}, NarSize: 1}
	info.Sign("/nix/store", key)
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
		} else if r.URL.Path == "/cache/"+path.HashPart()+".narinfo" {
			w.Write([]byte(info.Text("/nix/store")))
		} else {
			http.NotFound(w, r)
		}
	}))
	defer private.Close()
	asked := 0
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.NotFound(w, r)
	}))
	defer first.Close()

	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	netrc := write("netrc", "machine example.com login you password other\nmachine 127.0.0.1\n  login me\n  password secret\n")
	for _, credentials := range []string{
		fmt.Sprintf("netrc-file = %q", netrc),
		fmt.Sprintf("user = \"me\"\npassword-file = %q", write("password", "secret\n")),
	} {
		t.Setenv("XDG_DATA_HOME", t.TempDir())
		asked = 0
		p := startServer(t, "--config", write("dedupd.toml", fmt.Sprintf(`
[[upstream]]
url = %q
public-keys = [%q]
priority = 2
%s

[[upstream]]
url = %q
trust = true
priority = 1
`, private.URL+"/cache", key.Public(), credentials, first.URL)))
		got := p.get(t, "/"+path.HashPart()+".narinfo")
		if !strings.Contains(got, "Sig: "+info.Sigs[0].String()) || asked != 1 {
			t.Errorf("%s: the first upstream was asked %d times, and the narinfo is %q", credentials, asked, got)
		}
		p.stop()
	}
	file := write("dedupd.toml", fmt.Sprintf("[[upstream]]\nurl = \"https://other.example\"\ntrust = true\nnetrc-file = %q\n", netrc))
	if _, err := dedupd(t, "", "serve", "--listen", "127.0.0.1:0", "--config", file); err == nil || !strings.Contains(err.Error(), "has nothing for other.example") {
		t.Errorf("got error %v", err)
	}
}
