package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

// nixosKey is the key of cache.nixos.org.
const nixosKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="

// complete returns the paths among infos that have a signature of key, and whose references,
// and theirs, are among them.
func complete(infos []*narinfo.NarInfo, key narinfo.PublicKey) (paths []string) {
	all := map[string]*narinfo.NarInfo{}
	for _, info := range infos {
		if _, ok := info.Verify("/nix/store", []narinfo.PublicKey{key}); ok {
			all[info.StorePath.String()] = info
		}
	}
	for before := 0; before != len(all); {
		before = len(all)
		for name, info := range all {
			for _, ref := range info.References {
				if all[ref.String()] == nil {
					delete(all, name)
				}
			}
		}
	}
	for _, info := range all {
		paths = append(paths, info.StorePath.Path("/nix/store"))
	}
	return paths
}

// TestRealCachesMove imports the real caches, and generated ones, from everywhere, twice, and
// has real Nix get what it can: paths with all that they refer to, by their old signatures.
func TestRealCachesMove(t *testing.T) {
	key, err := narinfo.ParsePublicKey(nixosKey)
	if err != nil {
		t.Fatal(err)
	}
	generations := map[string]string{"nginx": "gen0", "S3": "gen1", "directory": "gen2"} // and the last one from everywhere
	for _, source := range sources {
		t.Run(source.name, func(t *testing.T) {
			if testing.Short() && source.name != "directory" {
				t.Skip("long")
			}
			t.Setenv("XDG_DATA_HOME", t.TempDir())
			p := startServer(t)
			var all []*narinfo.NarInfo
			there := map[string]bool{}
			for _, dir := range append(realCaches(t), corpusXZ(t, generations[source.name], "gen3")...) {
				abs, err := filepath.Abs(dir)
				if err != nil {
					t.Fatal(err)
				}
				infos, present := cacheInfos(t, dir), len(there)
				for _, info := range infos {
					there[info.StorePath.HashPart()] = true
				}
				imported := len(there) - present
				args, _ := source.open(t, abs)
				args = append([]string{"import", "--rate", "1e6"}, args...)
				for _, want := range []string{
					fmt.Sprintf("%d paths: %d imported, %d were there\n", len(infos), imported, len(infos)-imported),
					fmt.Sprintf("%d paths: 0 imported, %[1]d were there\n0.0 MB of NARs from 0.0 MB", len(infos)),
				} {
					if out, err := dedupd(t, "", args...); err != nil || !strings.HasPrefix(out, want) {
						t.Errorf("got %s, %v, want %s", out, err, want)
					}
				}
				if source.name != "nginx" {
					if out, err := dedupd(t, "", append(args, "--since", "2999-01-01")...); err != nil || !strings.HasPrefix(out, "0 paths:") {
						t.Errorf("since: got %s, %v", out, err)
					}
				}
				all = append(all, infos...)
			}
			p.wantServed(t, all)
			paths := complete(all, key)
			if source.name != "directory" {
				return
			}
			forEachLocalNix(t, func(t *testing.T, n *localNix) {
				if len(paths) < 4 {
					t.Fatalf("only %d paths have all that they refer to", len(paths))
				}
				n.conf += "trusted-public-keys = " + nixosKey + "\n"
				n.run(append([]string{"nix", "copy", "--from", p.url, "--to", n.root}, paths...)...)
				n.run(append([]string{"nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", n.root}, paths...)...)
			})
		})
	}
}

// TestDebugInfo has each Nix write debug information, imports it, and follows it to its file,
// as dwarffs does.
func TestDebugInfo(t *testing.T) {
	forEachLocalNix(t, func(t *testing.T, n *localNix) {
		t.Setenv("XDG_DATA_HOME", t.TempDir())
		member := "lib/debug/.build-id/ab/" + strings.Repeat("c", 38) + ".debug"
		dir := filepath.Join(t.TempDir(), "debug")
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, member)), 0o755); err != nil {
			t.Fatal(err)
		}
		const text = "debug information\n"
		if err := os.WriteFile(filepath.Join(dir, member), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		added := n.run("nix-store", "--store", n.root, "--add", dir)
		for _, typ := range []string{"xz", "bzip2"} { // names of the second cannot be kept
			from := filepath.Join(t.TempDir(), "cache")
			n.run("nix", "copy", "--from", n.root, "--no-check-sigs", "--to", "file://"+from+"?index-debug-info=true&write-nar-listing=true&compression="+typ, added)
			t.Setenv("XDG_DATA_HOME", t.TempDir())
			p := startServer(t)
			if out, err := dedupd(t, "", "import", "file://"+from); err != nil || !strings.Contains(out, "\n2 logs, listings and other files\n") {
				t.Fatalf("got %s, %v", out, err)
			}
			var target struct{ Archive, Member string }
			if err := json.Unmarshal([]byte(p.get(t, "/debuginfo/ab"+strings.Repeat("c", 38)+".debug")), &target); err != nil || target.Member != member {
				t.Fatalf("got %+v, %v", target, err)
			}
			compression := map[string]string{".xz": "xz", ".nar": "none"}[path.Ext(target.Archive)]
			file := decodeNAR(t, p.get(t, path.Join("/debuginfo", target.Archive)), compression)
			listing, err := nar.List(bytes.NewReader(file))
			if err != nil {
				t.Fatal(err)
			}
			node := listing.Root
			for name := range strings.SplitSeq(target.Member, "/") {
				if node = node.Lookup(name); node == nil {
					t.Fatalf("%s has no %s", target.Archive, target.Member)
				}
			}
			if got := file[node.Offset : node.Offset+node.Size]; string(got) != text {
				t.Errorf("got %q, want %q", got, text)
			}
			p.stop()
		}
	})
}
