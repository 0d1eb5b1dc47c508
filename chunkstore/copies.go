package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// A chunk may be in several packs: uploads store some again that lie too far from what
// they belong to (see scatter). It is then the one in the pack with the highest name of
// those in which it is not damaged. Where the others are is kept in a row, so that damage
// of the one leaves the next, whatever order all this is learned in:
//
//	for each copy: 22 pack, 1 length, location as package index encodes it, for pack 1
//
// in the order of the packs' names. Few chunks have such a row.
type placedCopy struct {
	pack packfile.Name
	loc  index.Location // Pack is 1
}

// copiesPrefix is what the keys of these rows, in Meta, begin with; the chunk's ID follows.
const copiesPrefix = "copies/"

func copiesKey(id packfile.ID) []byte { return append([]byte(copiesPrefix), id[:]...) }

func (a *applier) copies(ctx context.Context, id packfile.ID) ([]placedCopy, error) {
	row, err := a.get(ctx, index.Meta, copiesKey(id))
	if errors.Is(err, index.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return decodeCopies(row)
}

func decodeCopies(row []byte) (copies []placedCopy, err error) {
	d := decoder{b: row}
	for len(d.b) > 0 {
		name, err := packfile.NameFromBytes(d.bytes(packfile.NameSize))
		if err != nil {
			return nil, err
		}
		var n int
		if b := d.bytes(1); b != nil {
			n = int(b[0])
		}
		l, err := index.ParseLocation(d.bytes(n))
		if err != nil {
			return nil, err
		}
		copies = append(copies, placedCopy{name, l})
	}
	return copies, d.end()
}

func (a *applier) putCopies(id packfile.ID, copies []placedCopy) {
	if len(copies) == 0 {
		a.delete(index.Meta, copiesKey(id))
		return
	}
	var row []byte
	for _, c := range copies {
		row = append(c.pack.Append(row), 0)
		at := len(row)
		row = c.loc.Append(row)
		row[at-1] = byte(len(row) - at)
	}
	a.put(index.Meta, copiesKey(id), row)
}

// addCopy notes another place of a chunk that the index has elsewhere.
func (a *applier) addCopy(ctx context.Context, id packfile.ID, pack packfile.Name, l index.Location) error {
	copies, err := a.copies(ctx, id)
	if err != nil {
		return err
	}
	l.Pack = 1
	at, found := slices.BinarySearchFunc(copies, placedCopy{pack, l}, func(a, b placedCopy) int {
		return cmp.Or(comparePacks(a.pack, b.pack), cmp.Compare(b.loc.Offset, a.loc.Offset))
	})
	if !found {
		a.putCopies(id, slices.Insert(copies, at, placedCopy{pack, l}))
	}
	return nil
}

// dropCopy forgets a copy of a chunk, if there is one in that place.
func (a *applier) dropCopy(ctx context.Context, d *damage) error {
	copies, err := a.copies(ctx, d.id)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(copies), func(c placedCopy) bool { return c.pack == d.pack && c.loc.Offset == d.offset })
	if len(left) < len(copies) {
		a.putCopies(d.id, left)
	}
	return nil
}

// takeCopy removes the copy of a chunk that is to be used next, and returns it; the zero
// Location if there is none.
func (a *applier) takeCopy(ctx context.Context, id packfile.ID) (l index.Location, err error) {
	copies, err := a.copies(ctx, id)
	if err != nil || len(copies) == 0 {
		return l, err
	}
	last := copies[len(copies)-1]
	if last.loc.Pack, err = a.ix.PackNumber(ctx, last.pack.String()); err != nil {
		return l, err
	}
	a.putCopies(id, copies[:len(copies)-1])
	return last.loc, nil
}
