//go:build unix

package nixstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
		user := n.build("user", "echo "+file.Path("/nix/store")+" $out >$out; echo some log")
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
			named, err := s.Named(t.Context(), strings.TrimPrefix(info.URL, "nar/"))
			if err != nil || named.StorePath != p {
				t.Errorf("Named: got %v, %v", named, err)
			}
			if want := []byte(n.store("--dump", n.file(p))); !bytes.Equal(bytes.TrimSpace(readNAR(t, s, info, 0)), want) {
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
