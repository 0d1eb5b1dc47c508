package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"go.etcd.io/bbolt"
)

// This file and tree.go read bbolt's file (version 2 of its format), because bbolt takes
// every page for what it wrote: a flipped bit ends in a panic, in a loop that does not end, or in
// "not found". Here nothing is taken for granted. The layout, in the machine's byte order:
//
//	page     id 8, flags 2, count 2, overflow 4 (pages that follow and belong to it), elements
//	branch   pos 4, key size 4, page id 8
//	leaf     flags 4, pos 4, key size 4, value size 4
//
// An element's key begins pos bytes behind the element's own beginning, its value follows, and
// the keys and values of all elements lie one after another behind the last element.
//
//	head     magic 4, version 4, page size 4, flags 4, root 8, sequence 8, free list 8,
//	         pages 8, transaction 8, sum 8 (FNV-1a of what is before), on pages 0 and 1
//	bucket   root 8 (0: the page itself follows), sequence 8
const (
	pageSize    = 4096
	pageHead    = 16
	elementSize = 16
	headSize    = 64

	branchFlag   = 1
	leafFlag     = 2
	freeListFlag = 0x10
)

var native = binary.NativeEndian

// damagef returns ErrDamaged with what is wrong.
func damagef(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// An image is the file as a transaction sees it, mapped.
type image []byte

// imageOf returns the image of an open transaction, valid until that ends.
func imageOf(tx *bbolt.Tx) image {
	info := tx.DB().Info()
	// The mapping is not Go's memory, and bbolt tells its address as a number.
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&info.Data)), tx.Size())
}

// imageOfHeads returns the first two pages, which stay where they are as long as the
// file does not outgrow its mapping.
func imageOfHeads(db *bbolt.DB) []byte {
	info := db.Info()
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&info.Data)), 2*pageSize)
}

func (m image) pages() uint64 { return uint64(len(m)) / pageSize }

// A page is a branch or a leaf.
type page struct {
	id   uint64 // 0 in a bucket's value
	b    []byte // all of it, pages that follow included
	leaf bool
	n    int // elements
}

// page returns the page with this id. That its elements lie in it is checked by element.
func (m image) page(id uint64) (page, error) {
	b, err := m.raw(id)
	if err != nil {
		return page{}, err
	}
	return parsePage(id, b)
}

// raw returns all bytes of a page after checking that it is itself.
func (m image) raw(id uint64) ([]byte, error) {
	if id < 2 || id >= m.pages() {
		return nil, damagef("a page %d of %d is referred to", id, m.pages())
	}
	b := m[id*pageSize:]
	if got := native.Uint64(b); got != id {
		return nil, damagef("page %d says that it is page %d", id, got)
	}
	more := uint64(native.Uint32(b[12:]))
	if more >= m.pages()-id {
		return nil, damagef("page %d goes on for %d pages, beyond the end", id, more)
	}
	return b[: (1+more)*pageSize : (1+more)*pageSize], nil
}

func parsePage(id uint64, b []byte) (page, error) {
	if len(b) < pageHead {
		return page{}, damagef("page %d has %d bytes", id, len(b))
	}
	flags, n := native.Uint16(b[8:]), int(native.Uint16(b[10:]))
	p := page{id: id, b: b, leaf: flags == leafFlag, n: n}
	if flags != leafFlag && flags != branchFlag || pageHead+n*elementSize > len(b) || n == 0 && !p.leaf {
		return page{}, damagef("page %d has flags %#x and %d elements", id, flags, n)
	}
	if id == 0 && (native.Uint64(b) != 0 || native.Uint32(b[12:]) != 0) {
		return page{}, damagef("a page in a bucket's value says that it is page %d", native.Uint64(b))
	}
	// The first key lies right behind the last element: the number of elements is right.
	if n > 0 && int64(p.pos(0)) != int64(n*elementSize) {
		return page{}, damagef("page %d has not %d elements", id, n)
	}
	return p, nil
}

func (p *page) element(i int) []byte { return p.b[pageHead+i*elementSize:][:elementSize] }

func (p *page) pos(i int) uint32 {
	if p.leaf {
		return native.Uint32(p.element(i)[4:])
	}
	return native.Uint32(p.element(i))
}

// span returns size bytes that begin skip bytes behind the start of element i's key.
func (p *page) span(i int, skip, size uint64) ([]byte, error) {
	at := uint64(pageHead+i*elementSize) + uint64(p.pos(i)) + skip
	if at < uint64(pageHead+p.n*elementSize) || at+size > uint64(len(p.b)) {
		return nil, damagef("element %d of page %d lies outside of it", i, p.id)
	}
	return p.b[at : at+size : at+size], nil
}

func (p *page) key(i int) ([]byte, error) {
	e := p.b[pageHead+i*elementSize:]
	e = e[:elementSize:elementSize]
	pos, size := native.Uint32(e), native.Uint32(e[4:])
	if p.leaf {
		pos, size = size, native.Uint32(e[8:])
	}
	at := uint64(pageHead+i*elementSize) + uint64(pos)
	end := at + uint64(size)
	if size == 0 || at < uint64(pageHead+p.n*elementSize) || end > uint64(len(p.b)) {
		return nil, damagef("key %d of page %d lies outside of it", i, p.id)
	}
	return p.b[at:end:end], nil
}

// child returns the id of the page below element i of a branch.
func (p *page) child(i int) uint64 { return native.Uint64(p.element(i)[8:]) }

// value returns the value of element i of a leaf, which must have these flags.
func (p *page) value(i int, flags uint32) ([]byte, error) {
	e := p.element(i)
	if got := native.Uint32(e); got != flags {
		return nil, damagef("element %d of page %d has flags %#x", i, p.id, got)
	}
	return p.span(i, uint64(native.Uint32(e[8:])), uint64(native.Uint32(e[12:])))
}

// search returns the first element whose key is not less than key, and whether it is key.
// It is most of what looking a row up costs.
func (p *page) search(key []byte) (i int, found bool, err error) {
	var want uint64 // the first eight bytes of key, which nearly always decide
	if len(key) >= 8 {
		want = binary.BigEndian.Uint64(key)
	}
	lo, hi := 0, p.n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		k, err := p.key(mid)
		if err != nil {
			return 0, false, err
		}
		c := 0
		if len(k) >= 8 && len(key) >= 8 {
			c = cmp.Compare(binary.BigEndian.Uint64(k), want)
		}
		if c == 0 {
			c = bytes.Compare(k, key)
		}
		switch {
		case c < 0:
			lo = mid + 1
		case c == 0:
			return mid, true, nil
		default:
			hi = mid
		}
	}
	return lo, false, nil
}

// whole checks all that bbolt relies on when it changes the page or frees it: its elements
// lie one after another, in order, and need all its pages and no more.
func (p *page) whole() error {
	at, last := pageHead+p.n*elementSize, []byte(nil)
	for i := range p.n {
		key, err := p.key(i)
		if err != nil {
			return err
		}
		size := len(key)
		if p.leaf {
			size += int(native.Uint32(p.element(i)[12:]))
		}
		if at != pageHead+i*elementSize+int(p.pos(i)) || bytes.Compare(last, key) >= 0 {
			return damagef("elements of page %d are not in order", p.id)
		}
		at, last = at+size, key
	}
	if p.id != 0 && (at+pageSize-1)/pageSize != len(p.b)/pageSize {
		return damagef("page %d has %d bytes in %d pages", p.id, at, len(p.b)/pageSize)
	}
	return nil
}

// isParent checks that the key of element i of a branch is the first one of the page below
// it, as bbolt relies on to find the element again when that page is replaced.
func (p *page) isParent(i int, child *page) error {
	key, err := p.key(i)
	if err != nil || child.n == 0 {
		return errors.Join(damagef("page %d is empty", child.id), err)
	}
	first, err := child.key(0)
	if err == nil && !bytes.Equal(key, first) {
		err = damagef("page %d does not begin as page %d says", child.id, p.id)
	}
	return err
}

// A head is what one of the first two pages says.
type head struct {
	root, freeList, pages, tx uint64
}

// readHeads returns the head of the last transaction, and how many of the two are what was
// written: one may be being written now. p begins with the first two pages.
func readHeads(p []byte) (last head, whole int, err error) {
	for i := range 2 {
		b := p[i*pageSize+pageHead:][:headSize]
		h := uint64(14695981039346656037)
		for _, c := range b[:headSize-8] {
			h = (h ^ uint64(c)) * 1099511628211
		}
		if h != native.Uint64(b[headSize-8:]) {
			continue
		}
		this := head{root: native.Uint64(b[16:]), freeList: native.Uint64(b[32:]), pages: native.Uint64(b[40:]), tx: native.Uint64(b[48:])}
		if whole++; whole == 1 || this.tx > last.tx {
			last = this
		}
	}
	if whole == 0 {
		return head{}, 0, damagef("both heads are not what was written")
	}
	return last, whole, nil
}

// parseFreePages returns the ids of the free pages, 8 bytes each in order, from all bytes
// of the page that lists them.
func parseFreePages(b []byte, h head) (ids []byte, err error) {
	n, ids := uint64(native.Uint16(b[10:])), b[pageHead:]
	if n == 0xffff {
		n, ids = native.Uint64(ids), ids[8:]
	}
	if native.Uint64(b) != h.freeList || native.Uint16(b[8:]) != freeListFlag || n > uint64(len(ids))/8 {
		return nil, damagef("the list of free pages is not what was written")
	}
	ids = ids[:n*8]
	for i, last := 0, uint64(1); i < len(ids); i += 8 {
		id := native.Uint64(ids[i:])
		if id <= last || id >= h.pages {
			return nil, damagef("the list of free pages has page %d of %d after page %d", id, h.pages, last)
		}
		last = id
	}
	return ids, nil
}
