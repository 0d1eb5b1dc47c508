package plan

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
)

// A population are the NARs of a cache, as the narinfos have them.
type population struct {
	nars     []*nar
	byHash   map[chunkstore.Hash]*nar
	lineages [][]*nar // in order, see seal
	paths    int64    // that were read
	unread   error    // of the last narinfo that could not be read, nil for none
	scale    float64  // paths of the source for each of which the narinfo was asked for
}

// A nar is one of a cache, with the first path that has it.
type nar struct {
	path        narinfo.StorePath
	hash        chunkstore.Hash
	size, file  int64 // bytes of the NAR and of its file
	compression string
	paths       int64 // that have it
	year        int   // when it came, 0 if that is not known

	kind    kind
	lineage int // number in population.lineages
}

// A kind says what a NAR adds to a store that has those before it in its lineage.
type kind int

const (
	first   kind = iota // all of its chunks
	newer               // the part that the edition before it does not have
	rebuild             // the part that its edition does not have
)

func newPopulation() *population { return &population{byHash: map[chunkstore.Hash]*nar{}, scale: 1} }

// add notes the NAR of info, whose file has so many bytes, 0 if that is not known.
func (p *population) add(info *narinfo.NarInfo, file int64, date time.Time) {
	p.paths++
	if n := p.byHash[info.NarHash]; n != nil {
		n.paths++
		return
	}
	n := &nar{
		path: info.StorePath, hash: info.NarHash, size: int64(info.NarSize), file: file,
		compression: info.Compression, paths: 1,
	}
	if !date.IsZero() {
		n.year = date.UTC().Year()
	}
	p.byHash[n.hash] = n
	p.nars = append(p.nars, n)
}

// seal puts the NARs in order when all are there.
func (p *population) seal() {
	p.byHash = nil
	p.guessFiles()
	slices.SortFunc(p.nars, func(a, b *nar) int {
		return cmp.Or(
			cmp.Compare(a.path.Package(), b.path.Package()), cmp.Compare(output(a.path), output(b.path)),
			cmp.Compare(a.path.Name(), b.path.Name()), cmp.Compare(a.size, b.size), a.path.Compare(b.path))
	})
	for i, n := range p.nars {
		switch {
		case i == 0 || !sameLineage(p.nars[i-1], n):
			n.kind = first
			p.lineages = append(p.lineages, nil)
		case sameEdition(p.nars[i-1], n):
			n.kind = rebuild
		default:
			n.kind = newer
		}
		n.lineage = len(p.lineages) - 1
		p.lineages[n.lineage] = append(p.lineages[n.lineage], n)
	}
}

// guessFiles gives files of which nobody knows the size that of the others' mean ratio.
func (p *population) guessFiles() {
	var size, file int64
	for _, n := range p.nars {
		if n.file > 0 {
			size, file = size+n.size, file+n.file
		}
	}
	for _, n := range p.nars {
		if n.file <= 0 {
			n.file = n.size
			if size > 0 {
				n.file = max(1, int64(float64(n.size)*float64(file)/float64(size)))
			}
		}
	}
}

func sameLineage(a, b *nar) bool {
	return a.path.Package() == b.path.Package() && output(a.path) == output(b.path)
}

func sameEdition(a, b *nar) bool { return a.path.Name() == b.path.Name() && a.size == b.size }

// output returns what ends the name behind the version: "dev" of glibc-2.40-66-dev.
func output(path narinfo.StorePath) string {
	version := path.Version()
	suffix := version[strings.LastIndexByte(version, '-')+1:]
	if len(suffix) == len(version) || strings.ContainsFunc(suffix, func(c rune) bool { return c|0x20 < 'a' || c|0x20 > 'z' }) {
		return ""
	}
	return suffix
}

func (p *population) fileBytes() (n int64) {
	for _, nar := range p.nars {
		n += nar.file
	}
	return n
}

// tightness is the logarithm of how many bytes of NAR a byte of its file has.
func (n *nar) tightness() float64 { return math.Log(float64(n.size) / float64(n.file)) }
