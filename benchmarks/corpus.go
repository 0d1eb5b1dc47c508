package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A storePath is one narinfo of a generation and the NAR that it names.
type storePath struct {
	narinfo string // name in the cache: <hash>.narinfo
	text    []byte // of the narinfo
	nar     string // name in the cache: nar/<hash>.nar
	file    string // where the NAR lies on disk
	narHash string
	narSize int64
}

// A generation is one state of the corpus: a file:// cache with uncompressed NARs.
type generation struct {
	paths []storePath
	xz    map[string]int64 // sizes of its .nar.xz, by name
}

// load reads the narinfos of the corpus's generations.
func (b *bench) load() ([]generation, error) {
	if b.corpus == "" {
		return nil, errors.New("no corpus: set DEDUPD_CORPUS, or run under scripts/with-deps")
	}
	dirs, err := filepath.Glob(filepath.Join(b.corpus, "gen[0-9]"))
	if err != nil || len(dirs) == 0 {
		return nil, fmt.Errorf("no generations in %s", b.corpus)
	}
	var gens []generation
	for _, dir := range dirs {
		g, err := loadGeneration(dir)
		if err != nil {
			return nil, fmt.Errorf("generation %s: %w", dir, err)
		}
		gens = append(gens, g)
	}
	return gens, nil
}

func loadGeneration(dir string) (g generation, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	if err != nil {
		return g, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return g, err
		}
		f := fields(text)
		size, err := strconv.ParseInt(f["NarSize"], 10, 64)
		if err != nil || f["Compression"] != "none" || !filepath.IsLocal(f["URL"]) {
			return g, fmt.Errorf("%s is not of an uncompressed NAR of this cache", file)
		}
		g.paths = append(g.paths, storePath{
			narinfo: filepath.Base(file), text: text, nar: f["URL"], file: filepath.Join(dir, f["URL"]),
			narHash: f["NarHash"], narSize: size,
		})
	}
	g.xz = make(map[string]int64)
	compressed, err := os.ReadDir(filepath.Join(dir, "xz", "nar"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // which few benchmarks want
		return g, err
	}
	for _, entry := range compressed {
		info, err := entry.Info()
		if err != nil {
			return g, err
		}
		g.xz[entry.Name()] = info.Size()
	}
	return g, nil
}

// fields reads a narinfo that is known to be well-formed.
func fields(text []byte) map[string]string {
	f := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); ok {
			f[name] = value
		}
	}
	return f
}

// distinct returns the paths of all generations, each once: by narinfo, or by NAR.
func distinct(gens []generation, key func(storePath) string) []storePath {
	seen := make(map[string]bool)
	var paths []storePath
	for _, g := range gens {
		for _, p := range g.paths {
			if !seen[key(p)] {
				seen[key(p)] = true
				paths = append(paths, p)
			}
		}
	}
	return paths
}

func byNarinfo(p storePath) string { return p.narinfo }
func byNAR(p storePath) string     { return p.nar }

func narBytes(paths []storePath) (n int64) {
	for _, p := range paths {
		n += p.narSize
	}
	return n
}
