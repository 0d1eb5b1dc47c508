package index

import (
	"context"
	"errors"
	"fmt"
)

// verifier walks over all of a file. What looking rows up finds by itself, because a row or
// its neighbours are not what was written, it finds at once; beside that it finds
//
//   - rows that are gone together with the pages that they were in (the count is kept);
//   - pages that are in two trees, or in a tree and free, which a writer will overwrite;
//   - pages that are in none.
type verifier struct {
	image image
	seen  []bool // by page
}

// Verify implements Snapshot.
func (s *boltSnapshot) Verify(ctx context.Context) error {
	err := s.read(func() error {
		v := &verifier{image: imageOf(s.tx), seen: make([]bool, s.head.pages)}
		errs := []error{v.free(s.head), v.tables(s.head.root, 0)}
		for t, name := range bucketNames() {
			errs = append(errs, v.rows(ctx, s, t, name))
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err // pages that were not reached are explained
		}
		return v.complete()
	})
	if err != nil {
		return fmt.Errorf("verify index: %w", err)
	}
	return nil
}

// use notes that pages from id on are in use.
func (v *verifier) use(id, n uint64) error {
	for i := id; i < id+n; i++ {
		if v.seen[i] {
			return damagef("page %d is used twice", i)
		}
		v.seen[i] = true
	}
	return nil
}

func (v *verifier) page(p *page) error {
	if p.id == 0 {
		return nil // it stands in another one
	}
	return v.use(p.id, uint64(len(p.b))/pageSize)
}

// free notes the free pages, and the page that lists them.
func (v *verifier) free(h head) error {
	b, err := v.image.raw(h.freeList)
	if err != nil {
		return err
	}
	ids, err := parseFreePages(b, h)
	if err != nil {
		return err
	}
	errs := []error{v.use(h.freeList, uint64(len(b))/pageSize)}
	for ; len(ids) > 0; ids = ids[8:] {
		errs = append(errs, v.use(native.Uint64(ids), 1))
	}
	return errors.Join(errs...)
}

// tables walks over the tree of tables.
func (v *verifier) tables(id uint64, depth int) error {
	p, err := v.image.page(id)
	if err == nil {
		err = errors.Join(p.whole(), v.page(&p))
	}
	if err != nil || p.leaf {
		return err
	}
	if depth == maxDepth {
		return damagef("the tree of tables has no leaf")
	}
	for i := range p.n {
		if err := v.tables(p.child(i), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// rows walks over a table.
func (v *verifier) rows(ctx context.Context, s *boltSnapshot, t Table, name string) error {
	tree, err := openTree(s.tx, name, t, true)
	if err != nil {
		return err
	}
	tree.visit = v.page
	return tree.each(nil, func(key, value []byte) error {
		if t == Chunks {
			if _, err := ParseLocation(value); err != nil || len(key) != len(Key{}) {
				return errBadLocation
			}
		}
		return ctx.Err()
	})
}

func (v *verifier) complete() error {
	for id, seen := range v.seen {
		if !seen && id >= 2 {
			return damagef("page %d is neither used nor free", id)
		}
	}
	return nil
}
