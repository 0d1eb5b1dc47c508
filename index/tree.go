package index

import (
	"bytes"
	"errors"

	"go.etcd.io/bbolt"
)

// A tree is one table, or another bucket of bbolt, as it is in an image. What it finds is
// what was written: rows have sums. What it does not find is not there: the rows on either
// side have the right sums, lie on either side of the key, and between the keys that all
// pages above them promise. A page that was damaged, or that is reached by a damaged way, does
// not pass that, but for one that was right in an earlier transaction.
type tree struct {
	image    image
	root     page
	table    Table
	sequence uint64 // bbolt's, of the bucket: the number of rows
	// strict makes a cursor check all of each page that it comes to, as far as bbolt
	// relies on it when it writes.
	strict bool
	// visit, if it is not nil, is called for each page before it is used.
	visit func(*page) error
}

// openTree finds a bucket. With strict all its pages, and those
// on the way to it, are checked to be whole.
func openTree(tx *bbolt.Tx, name string, table Table, strict bool) (*tree, error) {
	m := imageOf(tx)
	p, err := m.page(uint64(tx.Cursor().Bucket().Root()))
	for depth := 0; ; depth++ {
		if err == nil && strict {
			err = p.whole()
		}
		if err != nil {
			return nil, err
		}
		i, found, err := p.search([]byte(name))
		if err != nil {
			return nil, err
		}
		if p.leaf {
			if !found {
				return nil, damagef("table %s is missing", name)
			}
			value, err := p.value(i, 1)
			if err != nil {
				return nil, err
			}
			t, err := m.tree(value, table)
			if err != nil {
				return nil, err
			}
			t.strict = strict
			return t, nil
		}
		if !found {
			i = max(i-1, 0)
		}
		if depth == maxDepth {
			return nil, damagef("the tree of tables has no leaf")
		}
		p, err = m.page(p.child(i))
		if err != nil {
			return nil, err
		}
	}
}

// tree returns the tree of a bucket that stands in its parent as value.
func (m image) tree(value []byte, table Table) (*tree, error) {
	if len(value) < 16 {
		return nil, damagef("the bucket of %v has %d bytes", table, len(value))
	}
	t := &tree{image: m, table: table, sequence: native.Uint64(value[8:])}
	var err error
	if id := native.Uint64(value); id != 0 {
		t.root, err = m.page(id)
	} else if t.root, err = parsePage(0, value[16:]); err == nil && !t.root.leaf {
		err = damagef("the bucket of %v holds a branch", table)
	}
	return t, err
}

// maxDepth is that of a tree of far more pages than a file can have.
const maxDepth = 20

// A cursor is a place in a tree. It can be used again after every error.
type cursor struct {
	tree  *tree
	path  [maxDepth]step
	depth int // steps in use
}

// A step is an element of a page. All keys in the page are at least lo and less than hi;
// nil means no bound.
type step struct {
	page   page
	i      int
	lo, hi []byte
}

func (c *cursor) top() *step { return &c.path[c.depth-1] }

// push adds a step to a page with these bounds.
func (c *cursor) push(p page, lo, hi []byte) error {
	if c.depth == maxDepth {
		return damagef("%v has no leaf", c.tree.table)
	}
	if c.tree.strict {
		if err := p.whole(); err != nil {
			return err
		}
	}
	if c.tree.visit != nil {
		if err := c.tree.visit(&p); err != nil {
			return err
		}
	}
	c.path[c.depth] = step{page: p, lo: lo, hi: hi}
	c.depth++
	return nil
}

// descend adds a step to the child of the top step's element.
func (c *cursor) descend() error {
	s := c.top()
	p, err := c.tree.image.page(s.page.child(s.i))
	if err == nil && c.tree.strict {
		err = s.page.isParent(s.i, &p)
	}
	if err != nil {
		return err
	}
	lo, hi := s.lo, s.hi
	if s.i > 0 {
		if lo, err = s.bound(s.i); err != nil {
			return err
		}
	}
	if s.i+1 < s.page.n {
		if hi, err = s.bound(s.i + 1); err != nil {
			return err
		}
	}
	return c.push(p, lo, hi)
}

// bound returns key i of a branch, which bounds what lies below.
func (s *step) bound(i int) ([]byte, error) {
	k, err := s.page.key(i)
	if err == nil && !s.within(k) {
		err = damagef("keys of page %d are not where they belong", s.page.id)
	}
	return k, err
}

func (s *step) within(key []byte) bool {
	return (s.lo == nil || bytes.Compare(s.lo, key) <= 0) && (s.hi == nil || bytes.Compare(key, s.hi) < 0)
}

// seek goes to where key is, or to the place in its leaf where it would be, which may be
// behind the last element.
func (c *cursor) seek(key []byte) (found bool, err error) {
	c.depth = 0
	if err := c.push(c.tree.root, nil, nil); err != nil {
		return false, err
	}
	for {
		s := c.top()
		if s.i, found, err = s.page.search(key); err != nil || s.page.leaf {
			return found, err
		}
		if !found {
			s.i = max(s.i-1, 0)
		}
		if err := c.descend(); err != nil {
			return false, err
		}
	}
}

// move goes by one element to the right (+1) or left (-1), into the next leaf where the
// leaf ends. ok is false at the end of the tree.
func (c *cursor) move(by int) (ok bool, err error) {
	for c.top().i+by < 0 || c.top().i+by >= c.top().page.n {
		if c.depth--; c.depth == 0 {
			return false, nil
		}
	}
	c.top().i += by
	for !c.top().page.leaf {
		if err := c.descend(); err != nil {
			return false, err
		}
		if s := c.top(); by < 0 {
			s.i = s.page.n - 1
		}
		if s := c.top(); s.page.n == 0 {
			return false, damagef("page %d is empty", s.page.id)
		}
	}
	return true, nil
}

// row returns the row at the cursor after checking its sum and its place. The slices
// belong to the image.
func (c *cursor) row() (key, value []byte, err error) {
	s := c.top()
	if key, err = s.page.key(s.i); err != nil {
		return nil, nil, err
	}
	if !s.within(key) {
		return nil, nil, damagef("row %s of %v is not where it belongs", showKey(key), c.tree.table)
	}
	stored, err := s.page.value(s.i, 0)
	if err != nil {
		return nil, nil, err
	}
	value, err = summed(c.tree.table, key, stored)
	return key, value, err
}

// get returns the value under key, nil if there is none.
func (c *cursor) get(key []byte) ([]byte, error) {
	value, err := c.tree.find(key)
	if value != nil || err != nil {
		return value, err
	}
	if found, err := c.seek(key); err != nil || found {
		return nil, errors.Join(err, damagef("row %s of %v is not always found", showKey(key), c.tree.table))
	}
	return nil, c.between(key)
}

// find returns the value under key, nil if it meets none: what it finds is proven by its sum,
// so it does not need the bounds that a cursor keeps.
func (t *tree) find(key []byte) ([]byte, error) {
	p := t.root
	for range maxDepth {
		i, found, err := p.search(key)
		if err != nil {
			return nil, err
		}
		if p.leaf {
			if !found {
				return nil, nil
			}
			stored, err := p.value(i, 0)
			if err != nil {
				return nil, err
			}
			return summed(t.table, key, stored)
		}
		if !found {
			i = max(i-1, 0)
		}
		if p, err = t.image.page(p.child(i)); err != nil {
			return nil, err
		}
	}
	return nil, damagef("%v has no leaf", t.table)
}

// meet says whether there is a row under key, for keys that come in order: where the
// last one's leaf is that of key, too, nothing above it is read again. isNew says that there
// is none, for sure.
func (c *cursor) meet(key []byte, isNew bool) (found bool, err error) {
	if c.depth > 0 && c.top().page.leaf && c.top().within(key) {
		if isNew {
			return false, nil
		}
		s := c.top()
		s.i, found, err = s.page.search(key)
	} else {
		found, err = c.seek(key)
	}
	if err != nil {
		c.depth = 0
		return false, err
	}
	switch {
	case isNew:
		return false, nil
	case found:
		_, _, err = c.row()
		return true, err
	}
	return false, c.between(key)
}

// checkSiblings checks the pages beside those above the cursor, which bbolt may merge with
// them when a row is deleted.
func (c *cursor) checkSiblings() error {
	for d := range c.depth - 1 {
		s := &c.path[d]
		for _, i := range [2]int{s.i - 1, s.i + 1} {
			if i < 0 || i >= s.page.n {
				continue
			}
			p, err := c.tree.image.page(s.page.child(i))
			if err == nil {
				err = errors.Join(p.whole(), s.page.isParent(i, &p))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// between checks that key, which seek did not find, lies between the rows beside its place.
func (c *cursor) between(key []byte) error {
	s := c.top()
	i, n := s.i, s.page.n
	// Those in this leaf first: going to the next one leaves it. One side at least is in it.
	if i < n {
		if err := c.isBeside(key, i, +1); err != nil {
			return err
		}
	}
	if i > 0 {
		if err := c.isBeside(key, i-1, -1); err != nil {
			return err
		}
	}
	if 0 < i && i < n {
		return nil
	}
	by := +1
	if s.i = n - 1; i == 0 {
		by, s.i = -1, 0
	}
	if ok, err := c.move(by); err != nil {
		return err
	} else if !ok || n == 0 {
		return damagef("%v has no end at %s", c.tree.table, showKey(key))
	}
	return c.isBeside(key, c.top().i, by)
}

// isBeside checks that the row at i in the leaf is right (+1) or left (-1) of key.
func (c *cursor) isBeside(key []byte, i, side int) error {
	c.top().i = i
	k, _, err := c.row()
	if err == nil && bytes.Compare(k, key) != side {
		err = damagef("rows of %v are not in order at %s", c.tree.table, showKey(key))
	}
	return err
}

// each calls fn for the rows from the first that is not less than from, empty for all. The
// slices belong to the image.
func (t *tree) each(from []byte, fn func(key, value []byte) error) error {
	c := &cursor{tree: t}
	all := len(from) == 0
	if all {
		from = lowKey
	} else if bytes.Compare(from, highKey) >= 0 {
		return nil
	}
	found, err := c.seek(from)
	if err == nil && !found {
		beside := *c
		err = beside.between(from)
	} else if err == nil {
		_, _, err = c.row()
	}
	if err != nil {
		return err
	}
	if !found {
		c.top().i-- // the loop begins behind the cursor
	}
	rows, last := uint64(0), from
	if found && !bytes.Equal(from, lowKey) {
		c.top().i--
		last = nil
	}
	for {
		if ok, err := c.move(+1); err != nil {
			return err
		} else if !ok {
			return damagef("%v ends behind %s", t.table, showKey(last))
		}
		key, value, err := c.row()
		if err != nil {
			return err
		}
		if last != nil && bytes.Compare(last, key) >= 0 {
			return damagef("rows of %v are not in order at %s", t.table, showKey(key))
		}
		if bytes.Equal(key, highKey) {
			break
		}
		if err := fn(key, value); err != nil {
			return err
		}
		rows, last = rows+1, key
	}
	if all && rows != t.sequence {
		return damagef("%v has %d rows, and had %d", t.table, rows, t.sequence)
	}
	return nil
}

// last returns the greatest key, lowKey if there is none.
func (t *tree) last() ([]byte, error) {
	c := &cursor{tree: t}
	if found, err := c.seek(highKey); err != nil {
		return nil, err
	} else if !found {
		return nil, damagef("%v has no end", t.table)
	}
	if ok, err := c.move(-1); err != nil {
		return nil, err
	} else if !ok {
		return nil, damagef("%v has no beginning", t.table)
	}
	key, _, err := c.row()
	return key, err
}
