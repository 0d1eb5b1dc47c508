package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
)

// realCaches returns the directories of the real caches, which are beside the checkout.
func realCaches(t *testing.T) []string {
	t.Helper()
	const real = "../../../shared/corpus/real"
	dirs, err := filepath.Glob(real + "/*/nix-cache-info")
	if err != nil || len(dirs) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", real)
		}
		t.Skipf("%s is missing", real)
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

// corpusXZ returns the directories of generations of the generated corpus, in xz. It returns
// none in short tests, and where there is no such corpus.
func corpusXZ(t *testing.T, generations ...string) (dirs []string) {
	t.Helper()
	corpus := os.Getenv("DEDUPD_CORPUS")
	if testing.Short() || corpus == "" {
		if !testing.Short() && os.Getenv("CI") == "true" {
			t.Fatal("DEDUPD_CORPUS is missing")
		}
		return nil
	}
	for _, g := range generations {
		dirs = append(dirs, filepath.Join(corpus, g, "xz"))
	}
	return dirs
}

// sources are the ways to a cache in a directory, of which some files are in brotli and have a
// header that says so, where there are headers. Each returns the arguments of import, and what
// has the source see that the directory has changed.
var sources = []struct {
	name string
	open func(t *testing.T, dir string, encoded ...string) (args []string, changed func())
}{
	{"directory", func(t *testing.T, dir string, _ ...string) ([]string, func()) {
		return []string{"file://" + dir}, func() {}
	}},
	{"nginx", func(t *testing.T, dir string, encoded ...string) ([]string, func()) {
		url := nginxServes(t, dir, encoded)
		names, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
		if err != nil {
			t.Fatal(err)
		}
		var list strings.Builder
		for _, name := range names {
			fmt.Fprintln(&list, strings.TrimSuffix(filepath.Base(name), ".narinfo"))
		}
		file := filepath.Join(t.TempDir(), "paths")
		if err := os.WriteFile(file, []byte(list.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return []string{url, "--with-files", "--paths", file}, func() {}
	}},
	{"S3", func(t *testing.T, dir string, encoded ...string) ([]string, func()) {
		s := s3test.Start(t, "minio")
		url := s.NewBucket(t, "cache")
		upload(t, s, dir, encoded)
		return []string{url}, func() { upload(t, s, dir, encoded) }
	}},
}

// nginxServes has nginx serve the files of a directory, as an old cache may be served.
func nginxServes(t *testing.T, dir string, encoded []string) (url string) {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	needs(t, "nginx")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	user, own := "", t.TempDir()
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	config := fmt.Sprintf("daemon off; %s\npid %[2]s/pid; error_log %[2]s/error;\nevents {}\nhttp {\naccess_log off;\n", user, own)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		config += fmt.Sprintf("%s_temp_path %s/%s;\n", kind, own, kind)
	}
	config += fmt.Sprintf("server {\nlisten %s; root %s;\n", addr, dir)
	for _, name := range encoded {
		config += fmt.Sprintf("location = /%s { add_header Content-Encoding br; }\n", name)
	}
	config += "}\n}\n"
	file := filepath.Join(own, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nginx", "-c", file, "-e", filepath.Join(own, "error"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return "http://" + addr
		} else if time.Now().After(deadline) {
			t.Fatalf("nginx does not start: %v", err)
		}
	}
}

// upload puts the files of a directory into the bucket.
func upload(t *testing.T, s *s3test.Server, dir string, encoded []string) {
	t.Helper()
	client := s.Client(t)
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var opts minio.PutObjectOptions
		if slices.Contains(encoded, name) {
			opts.ContentEncoding = "br"
		}
		_, err = client.FPutObject(t.Context(), "cache", s3test.Prefix+"/"+name, filepath.Join(dir, name), opts)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wantServed gets each path as a new client does, and as one that remembers the old narinfo.
func (p *process) wantServed(t *testing.T, infos []*narinfo.NarInfo) {
	t.Helper()
	for _, info := range infos {
		got, err := narinfo.Parse([]byte(p.get(t, "/"+info.StorePath.HashPart()+".narinfo")), "/nix/store")
		if err != nil {
			t.Errorf("%s: %v", info.StorePath, err)
			continue
		}
		if got.Fingerprint("/nix/store") != info.Fingerprint("/nix/store") || !slices.Equal(got.Sigs, info.Sigs) || got.Deriver != info.Deriver || got.CA != info.CA {
			t.Errorf("got %+v, want %+v", got, info)
		}
		p.wantNAR(t, got.URL, got)
		if info.Compression != "bzip2" {
			p.wantNAR(t, regexp.MustCompile(`^(https?://[^/]*)?/`).ReplaceAllString(info.URL, ""), info)
		}
	}
}

// wantNAR gets the NAR of info at a name of the cache.
func (p *process) wantNAR(t *testing.T, name string, info *narinfo.NarInfo) {
	t.Helper()
	if sha256.Sum256(decodeNAR(t, p.get(t, "/"+name), info.Compression)) != info.NarHash {
		t.Errorf("%s is another NAR than that of %s", name, info.StorePath)
	}
}

// decodeNAR returns the NAR in a file.
func decodeNAR(t *testing.T, file, typ string) []byte {
	t.Helper()
	need, err := compression.Memory(compression.Type(typ), []byte(file[:min(len(file), compression.HeaderSize)]))
	if err != nil {
		t.Error(err)
		return nil
	}
	r, err := compression.NewReader(compression.Type(typ), strings.NewReader(file), compression.Limits{MaxMemory: need})
	if err != nil {
		t.Error(err)
		return nil
	}
	defer r.Close()
	nar, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return nar
}

// TestDamagedCaches imports copies of the real caches, and of a generated one, in which every
// kind of thing is wrong that real caches have, from everywhere: what is right is served, what
// is wrong is named. Then the caches are healed, and what was left out is imported.
func TestDamagedCaches(t *testing.T) {
	for _, from := range append(realCaches(t), corpusXZ(t, "gen3")...) {
		for _, source := range sources {
			t.Run(filepath.Base(strings.TrimSuffix(from, "/xz"))+"/"+source.name, func(t *testing.T) {
				if testing.Short() && source.name != "directory" {
					t.Skip("long")
				}
				t.Setenv("XDG_DATA_HOME", t.TempDir())
				base := "https://cache.example"
				if source.name == "nginx" {
					base = "" // an absolute path, which is where the host has it
				}
				d := damage(t, from, base)
				p := startServer(t)
				args, changed := source.open(t, d.dir, d.listings[0]) // the others have lost the header
				skipped := filepath.Join(t.TempDir(), "skipped")
				out, err := dedupd(t, "", append([]string{"import", "--skipped", skipped}, args...)...)
				if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d things were left out", len(d.wrong))) {
					t.Errorf("got %s, %v", out, err)
				}
				if !strings.Contains(out, "refer to paths that are not here") {
					t.Errorf("nothing is said of closures that are not complete: %s", out)
				}
				text, err := os.ReadFile(skipped)
				if err != nil {
					t.Fatal(err)
				}
				got := map[string]string{}
				for line := range strings.Lines(string(text)) {
					fields := strings.Split(line, "\t")
					got[fields[0]] = fields[1]
				}
				for name, reason := range d.wrong {
					if got[name] != reason {
						t.Errorf("%s is left out for %q, want %q", name, got[name], reason)
					}
					if resp, err := http.Get(p.url + "/" + name[:narinfo.HashPartLen] + ".narinfo"); err != nil || resp.StatusCode != 404 {
						t.Errorf("%s: got %v, %v", name, resp, err)
					} else {
						resp.Body.Close()
					}
				}
				p.wantServed(t, d.right)
				for _, name := range d.listings {
					if text := p.get(t, "/"+name); text != listingText {
						t.Errorf("%s: got %q", name, text)
					}
				}

				d.heal()
				changed()
				args[len(args)-1] = map[bool]string{true: skipped, false: args[len(args)-1]}[source.name == "nginx"]
				again := append([]string{"import", "--skipped", skipped}, args...)
				if source.name != "nginx" {
					again = append(again, "--paths", skipped)
				}
				if out, err := dedupd(t, "", again...); err != nil || !strings.HasPrefix(out, fmt.Sprintf("%d paths: %[1]d imported", len(d.wrong))) {
					t.Errorf("healed: got %s, %v", out, err)
				}
				p.wantServed(t, d.healed)
			})
		}
	}
}
