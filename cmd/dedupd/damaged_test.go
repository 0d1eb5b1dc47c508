package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"

	"github.com/dedupd/dedupd/narinfo"
)

// A damaged cache is a copy of a real one in which much is wrong, and much is odd.
type damaged struct {
	t        *testing.T
	from     string
	dir      string
	right    []*narinfo.NarInfo // as their narinfos are now
	wrong    map[string]string  // the reason, by base name of the path, or hash part if its narinfo is wrong
	healed   []*narinfo.NarInfo // of those that are wrong, as they should be
	listings []string           // in brotli
}

const listingText = `{"root":{"type":"directory","entries":{}},"version":1}`

// damage copies the cache at from. base is the URL that absolute URLs in it begin with.
func damage(t *testing.T, from, base string) *damaged {
	t.Helper()
	for _, program := range []string{"xz", "bzip2"} {
		needs(t, program)
	}
	d := &damaged{t: t, from: from, dir: t.TempDir(), wrong: map[string]string{}}
	if err := os.CopyFS(d.dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	infos := cacheInfos(t, from)
	if len(infos) < 20 {
		t.Fatalf("%s has %d paths", from, len(infos))
	}
	wrong := []struct {
		reason string
		damage func(info *narinfo.NarInfo, file string)
	}{
		{"no NAR", func(_ *narinfo.NarInfo, file string) { os.Remove(file) }},
		{"bad NAR", func(_ *narinfo.NarInfo, file string) {
			d.change(file, func(b []byte) []byte { b[len(b)/2] ^= 0x40; return b })
		}},
		{"bad NAR", func(_ *narinfo.NarInfo, file string) {
			d.change(file, func(b []byte) []byte { return b[:len(b)*2/3] })
		}},
		{"bad NAR", func(_ *narinfo.NarInfo, file string) { d.change(file, func([]byte) []byte { return nil }) }},
		{"bad narinfo", func(info *narinfo.NarInfo, _ string) {
			d.text(info, "<!DOCTYPE html><title>Not found</title>")
		}},
		{"bad narinfo", func(info *narinfo.NarInfo, _ string) { // full paths
			d.text(info, strings.Replace(info.Text("/nix/store"), "References: ", "References: /nix/store/", 1))
		}},
		{"bad narinfo", func(info *narinfo.NarInfo, _ string) {
			d.text(info, strings.ReplaceAll(info.Text("/nix/store"), "\n", "\r\n"))
		}},
		{"bad NAR", func(info *narinfo.NarInfo, _ string) { // of another path
			info.URL = infos[len(infos)-1].URL
			d.text(info, info.Text("/nix/store"))
		}},
	}
	for i, w := range wrong {
		info := *infos[i]
		name := info.StorePath.String()
		if w.reason == "bad narinfo" {
			name = info.StorePath.HashPart()
		}
		d.wrong[name] = w.reason
		d.healed = append(d.healed, infos[i])
		w.damage(&info, filepath.Join(d.dir, info.URL))
	}
	odd := []func(info *narinfo.NarInfo){
		func(info *narinfo.NarInfo) { info.URL = base + "/" + info.URL },
		func(info *narinfo.NarInfo) { // hexadecimal
			text := strings.Replace(info.Text("/nix/store"), narinfo.NewHash(narinfo.SHA256, info.NarHash[:]).String(), fmt.Sprintf("sha256:%x", info.NarHash), 1)
			d.text(info, strings.Replace(text, info.FileHash.String(), fmt.Sprintf("sha256:%X", info.FileHash.Sum()), 1))
		},
		func(info *narinfo.NarInfo) { d.encode(info, "xz") },
		func(info *narinfo.NarInfo) { d.encode(info, "bzip2") },
		func(info *narinfo.NarInfo) { // as nix-push made them
			old := filepath.Join(d.dir, info.URL)
			info.URL = filepath.Base(info.URL)
			if err := os.Rename(old, filepath.Join(d.dir, info.URL)); err != nil {
				t.Fatal(err)
			}
			d.text(info, info.Text("/nix/store")+"System: x86_64-linux\nSignature: 1;cache.nixos.org-1;AAAA\n")
		},
		func(info *narinfo.NarInfo) { info.FileHash, info.FileSize = narinfo.Hash{}, 0 },
		func(info *narinfo.NarInfo) { // another path with the same NAR
			twin := *info
			hash := []byte(info.StorePath.HashPart())
			slices.Reverse(hash)
			path, err := narinfo.ParseBaseName(string(hash) + "-" + info.StorePath.Name())
			if err != nil {
				t.Fatal(err)
			}
			twin.StorePath, twin.Sigs = path, nil
			d.text(&twin, twin.Text("/nix/store"))
			d.right = append(d.right, &twin)
		},
	}
	for i, info := range infos[len(wrong):] {
		if i < len(odd) {
			before := info.Text("/nix/store")
			if odd[i](info); info.Text("/nix/store") != before && !strings.HasPrefix(d.read(info), "StorePath: "+info.StorePath.Path("/nix/store")+"\nURL: "+info.URL+"\n") {
				d.text(info, info.Text("/nix/store"))
			}
		} else if i < len(odd)+3 {
			d.listing(info)
		}
		d.right = append(d.right, info)
	}
	return d
}

// text replaces the narinfo of a path.
func (d *damaged) text(info *narinfo.NarInfo, text string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, info.StorePath.HashPart()+".narinfo"), []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d *damaged) read(info *narinfo.NarInfo) string {
	d.t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, info.StorePath.HashPart()+".narinfo"))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(text)
}

func (d *damaged) change(file string, change func([]byte) []byte) {
	d.t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, change(b), 0o644)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// encode compresses a NAR again, as two streams.
func (d *damaged) encode(info *narinfo.NarInfo, program string) {
	d.t.Helper()
	nar, err := exec.CommandContext(d.t.Context(), "xz", "-dc", filepath.Join(d.dir, info.URL)).Output()
	if err != nil {
		d.t.Fatal(err)
	}
	var file []byte
	for _, part := range [][]byte{nar[:len(nar)/3], nar[len(nar)/3:]} {
		cmd := exec.CommandContext(d.t.Context(), program, "-c", "-1")
		cmd.Stdin = bytes.NewReader(part)
		out, err := cmd.Output()
		if err != nil {
			d.t.Fatal(err)
		}
		file = append(file, out...)
	}
	sum := sha256.Sum256(file)
	info.FileHash, info.FileSize, info.Compression = narinfo.NewHash(narinfo.SHA256, sum[:]), uint64(len(file)), program
	info.URL = "nar/" + info.FileHash.Nix32() + map[string]string{"xz": ".nar.xz", "bzip2": ".nar.bz2"}[program]
	if err := os.WriteFile(filepath.Join(d.dir, info.URL), file, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// listing writes the listing of a path, in brotli.
func (d *damaged) listing(info *narinfo.NarInfo) {
	d.t.Helper()
	var b bytes.Buffer
	w := brotli.NewWriter(&b)
	fmt.Fprint(w, listingText)
	if err := w.Close(); err != nil {
		d.t.Fatal(err)
	}
	name := info.StorePath.HashPart() + ".ls"
	if err := os.WriteFile(filepath.Join(d.dir, name), b.Bytes(), 0o644); err != nil {
		d.t.Fatal(err)
	}
	d.listings = append(d.listings, name)
}

// heal puts back what was wrong.
func (d *damaged) heal() {
	d.t.Helper()
	for _, info := range d.healed {
		for _, name := range []string{info.StorePath.HashPart() + ".narinfo", info.URL} {
			b, err := os.ReadFile(filepath.Join(d.from, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(d.dir, name), b, 0o644)
			}
			if err != nil {
				d.t.Fatal(err)
			}
		}
	}
}

// cacheInfos returns the narinfos of a cache in a directory, in order.
func cacheInfos(t *testing.T, dir string) (infos []*narinfo.NarInfo) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := narinfo.Parse(text, "/nix/store")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		infos = append(infos, info)
	}
	return infos
}
