//go:build unix

package nixstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixstore"
	"github.com/dedupd/dedupd/upstream"
)

// TestNarInfo compares with what the versions of Nix say of paths that they made.
func TestNarInfo(t *testing.T) {
	forEachNix(t, func(t *testing.T, n *nix) {
		file := n.add("store_test.go")
		key, err := narinfo.GenerateKey("test-1")
		if err != nil {
			t.Fatal(err)
		}
		secret := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(secret, []byte(key.Secret()), 0o600); err != nil {
			t.Fatal(err)
		}
		user := n.build("user", "echo "+file.Path("/nix/store")+" $out >$out; echo some log", file)
		for _, p := range []narinfo.StorePath{file, user} {
			n.run("nix", "store", "sign", "--store", n.root, "-k", secret, p.Path("/nix/store"))
		}
		s := n.open()
		for _, p := range []narinfo.StorePath{file, user} {
			info, err := s.NarInfo(t.Context(), p.HashPart())
			if err != nil {
				t.Fatal(err)
			}
			path := p.Path("/nix/store")
			got := fmt.Sprint(info.StorePath.Path("/nix/store"), " ", narinfo.NewHash(narinfo.SHA256, info.NarHash[:]), " ", info.NarSize)
			if want := fmt.Sprint(path, " ", n.store("-q", "--hash", path), " ", n.store("-q", "--size", path)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if _, ok := info.Verify("/nix/store", []narinfo.PublicKey{key.Public()}); !ok {
				t.Errorf("%s: the signature does not verify; sigs %v, references %v", p, info.Sigs, info.References)
			}
			if !strings.HasPrefix(info.URL, "nar/"+p.HashPart()+"-") || info.Compression != "none" {
				t.Errorf("got URL %s, compression %s", info.URL, info.Compression)
			}
			if want := n.dump(n.file(p)); !bytes.Equal(readNAR(t, s, info, 0), want) {
				t.Errorf("%s: another NAR than nix-store --dump's", p)
			}
			if info.Deriver.IsZero() != (p == file) || (info.CA != "") != (p == file) {
				t.Errorf("%s: deriver %q, CA %q", p, info.Deriver, info.CA)
			}
		}
		info, err := s.NarInfo(t.Context(), user.HashPart())
		if err != nil {
			t.Fatal(err)
		}
		log, err := s.File(t.Context(), "log/"+info.Deriver.String())
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		if text, err := io.ReadAll(log); err != nil || string(text) != "some log\n" {
			t.Errorf("got log %q, %v", text, err)
		}
	})
}

// readNAR reads a NAR from the byte off on.
func readNAR(t *testing.T, s *nixstore.Store, info *narinfo.NarInfo, off int64) []byte {
	t.Helper()
	body, size, err := s.NAR(t.Context(), info, off)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(data)) != size-off {
		t.Fatalf("got %d bytes from %d of %d", len(data), off, size)
	}
	return data
}

func wantNotFound(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, upstream.ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
}

func isNotFound(err error) bool { return errors.Is(err, upstream.ErrNotFound) }

func TestOpenRefuses(t *testing.T) {
	n := oneNix(t)
	n.add("store_test.go")
	state := filepath.Join(n.root, "nix/var/nix")
	for _, test := range []struct {
		name string
		opts nixstore.Options
		make func() error
	}{
		{"no store", nixstore.Options{Root: t.TempDir()}, nil},
		{"relative", nixstore.Options{Dir: "nix/store", Root: n.root}, nil},
		{"no database", nixstore.Options{Root: n.root, State: t.TempDir()}, nil},
		{"another schema", nixstore.Options{Root: n.root}, func() error { return os.WriteFile(filepath.Join(state, "db/schema"), []byte("11"), 0o644) }},
	} {
		if test.make != nil {
			if err := test.make(); err != nil {
				t.Fatal(err)
			}
		}
		if s, err := nixstore.Open(t.Context(), test.opts); err == nil {
			s.Close()
			t.Errorf("%s: was opened", test.name)
		}
	}
}

// TestNotThere asks for what is not there, and for what is not in the store.
func TestNotThere(t *testing.T) {
	n := oneNix(t)
	p := n.add("store_test.go")
	s := n.open()
	info, err := s.NarInfo(t.Context(), p.HashPart())
	if err != nil {
		t.Fatal(err)
	}
	for _, hashPart := range []string{"", ".", "..", strings.Repeat("0", 32), strings.Repeat("z", 32), p.HashPart()[:31], p.HashPart() + "-", "%" + p.HashPart()[1:], p.String()} {
		_, err := s.NarInfo(t.Context(), hashPart)
		wantNotFound(t, err)
	}
	_, _, err = s.NAR(t.Context(), &narinfo.NarInfo{URL: info.URL}, 0)
	wantNotFound(t, err)
	for _, name := range []string{"", "nix-cache-info", "log/", "log/x", "log/..", "log/../../db/db.sqlite", "log/" + p.String(), "log/" + p.HashPart() + "-x.drv", p.HashPart() + ".narinfo", "x.ls", ".ls"} {
		_, err := s.File(t.Context(), name)
		wantNotFound(t, err)
	}
}

func TestListing(t *testing.T) {
	n := oneNix(t)
	p := n.add(build(t, []file{{name: "a/large", contents: randomText(3 << 20)}, {name: "b", executable: true, contents: "x"}, {name: "c", target: "d"}}))
	s := n.open()
	f, err := s.File(t.Context(), p.HashPart()+".ls")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	l, err := nar.List(bytes.NewReader(n.dump(n.file(p))))
	if err != nil {
		t.Fatal(err)
	}
	want, err := l.MarshalJSON()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %s, want %s (%v)", got, want, err)
	}
}

// TestClosure asks for closures, with paths that refer to themselves and to each other.
func TestClosure(t *testing.T) {
	n := oneNix(t)
	lib := n.build("lib", "echo $out >$out")
	var paths []narinfo.StorePath
	for i := range 5 {
		paths = append(paths, n.build(fmt.Sprint("user-", i), "echo $out $refs >$out", append(paths, lib)...))
	}
	other := n.add("store_test.go")
	s := n.open()
	infos, err := s.Closure(t.Context(), []narinfo.StorePath{other, paths[3], paths[0], other})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(n.store("-qR", other.Path("/nix/store"), paths[3].Path("/nix/store")))
	seen := map[narinfo.StorePath]bool{}
	var got []string
	for _, info := range infos {
		got = append(got, info.StorePath.Path("/nix/store"))
		seen[info.StorePath] = true
		for _, ref := range info.References {
			if !seen[ref] {
				t.Errorf("%s comes before %s, which it refers to", info.StorePath, ref)
			}
		}
	}
	if len(infos) != 6 {
		t.Errorf("got %d paths, want 6", len(infos))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if infos, err = s.PathInfos(t.Context(), paths[:2]); err != nil || len(infos) != 2 || infos[1].StorePath != paths[1] {
		t.Errorf("PathInfos: got %v, %v", infos, err)
	}
	_, err = s.Closure(t.Context(), []narinfo.StorePath{lib, n.parse("/nix/store/" + strings.Repeat("0", 32) + "-x")})
	wantNotFound(t, err)
}

// TestList lists what Nix has, in more than one step.
func TestList(t *testing.T) {
	n := oneNix(t)
	began := time.Now().Add(-time.Second) // Nix has whole seconds
	want := []string{n.add("store_test.go").HashPart() + ".narinfo", n.build("built", "echo >$out").HashPart() + ".narinfo"}
	dir := t.TempDir()
	var files []string
	for i := range 1100 {
		file := filepath.Join(dir, fmt.Sprint("file-", i))
		if err := os.WriteFile(file, []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	for path := range strings.Lines(n.store(append([]string{"--add"}, files...)...)) {
		want = append(want, n.parse(strings.TrimSpace(path)).HashPart()+".narinfo")
	}
	s := n.open()
	list := func(dir string) (names []string) {
		t.Helper()
		err := s.List(t.Context(), dir, func(name string, modified time.Time) error {
			if modified.Before(began) || modified.After(time.Now().Add(time.Second)) {
				t.Errorf("%s is of %v", name, modified)
			}
			names = append(names, name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	got := list("")
	if drv := len(want) + 1; len(got) != drv { // of what was built
		t.Errorf("got %d names, want %d", len(got), drv)
	}
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("%s is not among them", name)
		}
	}
	logs := list("log")
	if len(logs) != 1 || !strings.HasSuffix(logs[0], "-built.drv") {
		t.Fatalf("logs: got %q", logs)
	}
	f, err := s.File(t.Context(), logs[0])
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if names := list("debuginfo"); len(names) > 0 {
		t.Errorf("got %q", names)
	}
	enough := errors.New("enough")
	if err := s.List(t.Context(), "", func(string, time.Time) error { return enough }); err != enough {
		t.Errorf("got %v, want %v", err, enough)
	}
}

func TestResolve(t *testing.T) {
	n := oneNix(t)
	p := n.add("store_test.go")
	s := n.open()
	dir := t.TempDir()
	links := map[string]string{"result": p.Path("/nix/store"), "real": n.file(p), "second": "result", "loop": "loop", "out": "/etc/passwd"}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{p.Path("/nix/store"), p.Path("/nix/store") + "/bin/x", p.Path("//nix/./store") + "/", n.file(p), dir + "/result", dir + "/real", dir + "/second"} {
		if got, err := s.Resolve(name); err != nil || got != p {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for _, name := range []string{dir, dir + "/loop", dir + "/out", dir + "/nothing", "/nix/store", "/nix/store/..", "/nix/store/x", p.Path("/nix/store") + "/../../x"} {
		if got, err := s.Resolve(name); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}
