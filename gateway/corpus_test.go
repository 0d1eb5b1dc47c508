package gateway_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
)

// nixosKey is the key of cache.nixos.org.
const nixosKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="

// missing skips the test for want of a part, except in CI, where all are there.
func missing(t *testing.T, part string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", part)
	}
	t.Skipf("%s is missing", part)
}

// realCaches returns the directories of the real caches, which are beside the checkout.
func realCaches(t *testing.T) []string {
	t.Helper()
	const real = "../../shared/corpus/real"
	dirs, err := filepath.Glob(real + "/*/nix-cache-info")
	if err != nil || len(dirs) == 0 {
		missing(t, real)
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

// TestRealCaches uploads real caches as they are, and gets every NAR back in every form,
// with signatures that hold.
func TestRealCaches(t *testing.T) {
	s := start(t)
	signed := 0
	for _, dir := range realCaches(t) {
		signed += roundTrip(t, s, dir)
	}
	if signed < 47 {
		t.Errorf("%d narinfos have a good signature of cache.nixos.org, want 47 at least", signed)
	}
}

// TestGeneratedCaches does the same with generations of rebuilds.
func TestGeneratedCaches(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	dir := os.Getenv("DEDUPD_CORPUS")
	if dir == "" {
		missing(t, "the generated corpus, which DEDUPD_CORPUS names,")
	}
	s := start(t)
	for i := range 4 {
		roundTrip(t, s, filepath.Join(dir, fmt.Sprintf("gen%d", i)))
	}
}

// uploadCache uploads a cache in a directory as it is, but for what the server has. It
// returns the narinfos of what it has uploaded.
func (s *server) uploadCache(dir string) (infos []*narinfo.NarInfo) {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("%s has no narinfos (%v)", dir, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		info, err := narinfo.Parse(text, storeDir)
		if err != nil {
			s.t.Fatalf("%s: %v", file, err)
		}
		if _, err := s.store.NarInfo(s.t.Context(), info.StorePath.HashPart()); err == nil {
			continue // the generation before had it
		}
		b, err := os.ReadFile(filepath.Join(dir, info.URL))
		if err != nil {
			s.t.Fatal(err)
		}
		s.want(200, "PUT", "/"+info.URL, b)
		s.want(200, "PUT", "/"+filepath.Base(file), text)
		infos = append(infos, info)
	}
	return infos
}

// isSigned says whether cache.nixos.org has signed a path.
func isSigned(t *testing.T, info *narinfo.NarInfo) bool {
	t.Helper()
	key, err := narinfo.ParsePublicKey(nixosKey)
	if err != nil {
		t.Fatal(err)
	}
	_, ok := info.Verify(storeDir, []narinfo.PublicKey{key})
	return ok
}

// roundTrip uploads a cache in a directory, and compares what it gets back. It returns
// the number of paths that cache.nixos.org has signed.
func roundTrip(t *testing.T, s *server, dir string) (signed int) {
	t.Helper()
	for _, want := range s.uploadCache(dir) {
		f := &fixture{hash: want.NarHash, path: want.StorePath}
		got := s.narInfo(f)
		if got.Fingerprint(storeDir) != want.Fingerprint(storeDir) {
			t.Errorf("%s: got fingerprint %s, want %s", want.StorePath, got.Fingerprint(storeDir), want.Fingerprint(storeDir))
		}
		if isSigned(t, got) {
			signed++
		}
		plain := s.checkBody(f.plainURL(), nil)
		if sha256.Sum256(plain) != want.NarHash {
			t.Errorf("%s: the plain NAR has another hash", want.StorePath)
		}
		if !bytes.Equal(zstdDecode(t, s.checkBody("/"+got.URL, nil)), plain) {
			t.Errorf("%s: the frames decode to another NAR", want.StorePath)
		}
		old, err := compression.NewReader(compression.Type(want.Compression), bytes.NewReader(s.checkBody("/"+want.URL, nil)), compression.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(old); err != nil || !bytes.Equal(b, plain) {
			t.Errorf("%s: the old name decodes to another NAR (%v)", want.StorePath, err)
		}
		old.Close()
	}
	return signed
}

// TestNixVerifiesCaches has every version of Nix download every NAR of the real and the
// generated caches, compare its hash, and check the signatures of cache.nixos.org.
func TestNixVerifiesCaches(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	dirs := realCaches(t)
	if corpus := os.Getenv("DEDUPD_CORPUS"); corpus == "" {
		missing(t, "the generated corpus, which DEDUPD_CORPUS names,")
	} else {
		for i := range 4 {
			dirs = append(dirs, filepath.Join(corpus, fmt.Sprintf("gen%d", i)))
		}
	}
	s := start(t)
	var all, signed []string
	var size int64
	for _, dir := range dirs {
		for _, info := range s.uploadCache(dir) {
			path := info.StorePath.Path(storeDir)
			all, size = append(all, path), size+int64(info.NarSize)
			if isSigned(t, info) {
				signed = append(signed, path)
			}
		}
	}
	if len(signed) < 47 {
		t.Errorf("only %d paths of %d are signed", len(signed), len(all))
	}
	forEachNix(t, func(t *testing.T, nix *client) {
		before := s.gateway.Served().NARBytes
		nix.run("reader", append([]string{"nix", "store", "verify", "--no-trust", "--store", s.url}, all...)...)
		nix.run("reader", append([]string{"nix", "store", "verify", "--no-contents", "--sigs-needed", "1", "--store", s.url}, signed...)...)
		if n := s.gateway.Served().NARBytes - before; n < size {
			t.Errorf("only %d of %d bytes of NARs were downloaded", n, size)
		}
	})
}
