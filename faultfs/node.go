package faultfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// A node is a file or a directory: as everybody sees it, as it is on disk, and the changes
// that lead from the one to the other, which a sync makes.
type node struct {
	id    uint64 // for the kernel
	name  string // the last one, for the trace
	vol   *volume
	dir   bool
	mode  uint32
	links uint32

	data, disk content
	writes     []write

	names, diskNames map[string]*node
	renames          []rename
}

// A write is a change of a file: of its bytes, or of its size if data is nil.
type write struct {
	off  int64
	data []byte
}

func (w write) apply(c *content) {
	if w.data == nil {
		c.truncate(w.off)
	} else {
		c.write(w.off, w.data)
	}
}

// A rename is a change of a directory: names that get a node, or nil, all at once.
type rename map[string]*node

func (r rename) apply(names map[string]*node) {
	for name, n := range r {
		if n == nil {
			delete(names, name)
		} else {
			names[name], n.name = n, name
		}
	}
}

func (v *volume) newNode(dir bool, mode uint32) *node {
	n := &node{vol: v, dir: dir, mode: mode, links: 1}
	if dir {
		n.names, n.diskNames, n.links = map[string]*node{}, map[string]*node{}, 2
	}
	return n
}

func (n *node) write(w write) {
	w.apply(&n.data)
	n.writes = append(n.writes, w)
}

func (n *node) rename(r rename) {
	r.apply(n.names)
	n.renames = append(n.renames, r)
}

// sync puts all changes on disk.
func (n *node) sync() {
	for _, w := range n.writes {
		w.apply(&n.disk)
	}
	for _, r := range n.renames {
		r.apply(n.diskNames)
	}
	n.writes, n.renames = nil, nil
}

// syncFails puts some changes of a file on disk and forgets the others, which go on to be
// seen. Changes of a directory wait: file systems have them in a journal.
func (n *node) syncFails(c *cutter) {
	for _, w := range n.writes {
		c.write(&n.disk, w)
	}
	n.writes = nil
}

// clone copies the tree below n, with all that is and is not on disk.
func (n *node) clone(v *volume, done map[*node]*node) *node {
	if n == nil {
		return nil
	}
	if c, ok := done[n]; ok {
		return c
	}
	c := &node{name: n.name, vol: v, dir: n.dir, mode: n.mode, links: n.links, data: n.data.clone(), disk: n.disk.clone(), writes: slices.Clone(n.writes)}
	done[n] = c
	if n.dir {
		c.names, c.diskNames = map[string]*node{}, map[string]*node{}
		for name, child := range n.names {
			c.names[name] = child.clone(v, done)
		}
		for name, child := range n.diskNames {
			c.diskNames[name] = child.clone(v, done)
		}
		for _, r := range n.renames {
			cloned := rename{}
			for name, child := range r {
				cloned[name] = child.clone(v, done)
			}
			c.renames = append(c.renames, cloned)
		}
	}
	return c
}

// A cutter decides what of the changes that were not synced reaches the disk.
type cutter struct {
	rng  *rand.Rand
	mode int
	one  int // the change that is treated unlike the others
	seen int
	CutReport
}

// CutReport counts changes that were not synced when the power went.
type CutReport struct {
	Kept, Dropped, Torn int
}

const (
	dropAll = iota
	keepAll
	keepSome
	keepSomeMore // so that it is as frequent as the other four
	dropOne
	keepOne
	cutModes
)

func newCutter(seed uint64, changes int) *cutter {
	rng := rand.New(rand.NewPCG(seed, 0x706f776572))
	return &cutter{rng: rng, mode: rng.IntN(cutModes), one: rng.IntN(max(1, changes))}
}

func (c *cutter) keeps() (keep bool) {
	one := c.seen == c.one
	c.seen++
	switch c.mode {
	case keepAll:
		keep = true
	case keepSome, keepSomeMore:
		keep = c.rng.IntN(2) == 0
	case dropOne:
		keep = !one
	case keepOne:
		keep = one
	}
	if keep {
		c.Kept++
	} else {
		c.Dropped++
	}
	return keep
}

// write applies w, or not, or some of its sectors.
func (c *cutter) write(disk *content, w write) {
	if !c.keeps() {
		return
	}
	if c.mode == keepAll || w.data == nil || c.rng.IntN(4) != 0 {
		w.apply(disk)
		return
	}
	c.Torn++
	for off := int64(0); off < int64(len(w.data)); {
		n := min(sectorSize-(w.off+off)%sectorSize, int64(len(w.data))-off)
		if c.rng.IntN(2) == 0 {
			disk.write(w.off+off, w.data[off:off+n])
		}
		off += n
	}
}

// cut returns the tree below n as it is found when the power is back.
func (n *node) cut(v *volume, c *cutter, done map[*node]*node) *node {
	if r, ok := done[n]; ok {
		r.links++
		return r
	}
	r := v.newNode(n.dir, n.mode)
	done[n] = r
	if !n.dir {
		r.disk = n.disk.clone()
		for _, w := range n.writes {
			c.write(&r.disk, w)
		}
		r.data = r.disk.clone()
		return r
	}
	names := maps.Clone(n.diskNames)
	for _, change := range n.renames {
		if c.keeps() {
			change.apply(names)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		r.names[name] = names[name].cut(v, c, done)
	}
	r.diskNames = maps.Clone(r.names)
	return r
}

// unsynced counts the changes below n that are not on disk.
func (n *node) unsynced(done map[*node]bool) int {
	if done[n] {
		return 0
	}
	done[n] = true
	count := len(n.writes) + len(n.renames)
	for _, child := range n.names {
		count += child.unsynced(done)
	}
	return count
}
