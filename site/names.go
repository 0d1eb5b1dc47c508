package site

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"github.com/dedupd/dedupd/narinfo"
)

// names are the store paths of a cache, to be searched: base names in lower case, each
// with a line feed, as they were at one moment.
type names struct {
	text []byte
	max  int // bytes of text
	left int // paths that found no room
}

func (n *names) add(path narinfo.StorePath) {
	base := path.String()
	if len(n.text)+len(base)+1 > n.max {
		n.left++
		return
	}
	n.text = append(n.text, strings.ToLower(base)...)
	n.text = append(n.text, '\n')
}

// search calls fn with the hash parts of paths whose base names contain what, until it
// returns false. A hundred megabytes take some ten milliseconds.
func (n *names) search(what string, fn func(hashPart string) bool) {
	needle := []byte(strings.ToLower(what))
	for text := n.text; ; {
		i := bytes.Index(text, needle)
		if i < 0 || len(needle) == 0 {
			return
		}
		start := bytes.LastIndexByte(text[:i], '\n') + 1
		if !fn(string(text[start : start+narinfo.HashPartLen])) {
			return
		}
		end := bytes.IndexByte(text[i:], '\n')
		text = text[i+end+1:]
	}
}

// A pkg is what a cache has of the versions and outputs of one package.
type pkg struct {
	Name  string
	Paths int64
	Bytes int64 // of their NARs
}

// packages add up what store paths of one package have. Memory is bounded: when there are
// too many, the smaller half is forgotten, as are paths that belong to it.
type packages struct {
	byName map[string]*pkg
	max    int
	lossy  bool // something was forgotten
}

func newPackages(max int) *packages { return &packages{byName: map[string]*pkg{}, max: max} }

func (p *packages) add(path narinfo.StorePath, size int64) {
	name := path.Package()
	entry := p.byName[name]
	if entry == nil {
		if len(p.byName) >= p.max {
			p.forget()
		}
		entry = &pkg{Name: strings.Clone(name)}
		p.byName[entry.Name] = entry
	}
	entry.Paths++
	entry.Bytes += size
}

func (p *packages) forget() {
	p.lossy = true
	for _, e := range p.largest(len(p.byName))[p.max/2:] {
		delete(p.byName, e.Name)
	}
}

// largest returns the n packages with the most bytes.
func (p *packages) largest(n int) []pkg {
	all := make([]pkg, 0, len(p.byName))
	for _, e := range p.byName {
		all = append(all, *e)
	}
	slices.SortFunc(all, func(a, b pkg) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name))
	})
	return all[:min(n, len(all))]
}
