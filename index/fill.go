package index

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// fillStep is how many keys are read in one transaction of bbolt: the space that
// a writer sets free is not reused while a reader is there.
const fillStep = 64 << 10

// fill adds every chunk on disk to the filter, once, after opening. Chunks that are
// written behind its back are added by their writer.
func (b *Bolt) fill(ctx context.Context) {
	defer close(b.fillDone)
	from, more := Key{}, true
	for more && ctx.Err() == nil {
		// Without the filter all look-ups go to bbolt: slower, not wrong.
		if from, more, b.fillErr = b.fillFrom(from); b.fillErr != nil {
			b.fillErr = fmt.Errorf("fill filter: %w", b.fillErr)
			return
		}
	}
	if ctx.Err() == nil {
		b.filterReady.Store(true)
	}
}

// fillFrom adds fillStep keys, beginning with from. If there are more it returns the next.
func (b *Bolt) fillFrom(from Key) (next Key, more bool, err error) {
	enough := errors.New("enough")
	err = b.view(func(tx *bbolt.Tx) error {
		tree, err := openTree(tx, Chunks.String(), Chunks, false)
		if err != nil {
			return err
		}
		n := 0
		return tree.each(from[:], func(k, _ []byte) error {
			if len(k) != len(next) {
				return errBadLocation
			}
			if n == fillStep {
				next, more = Key(k), true
				return enough
			}
			b.filter.add((*Key)(k))
			n++
			return nil
		})
	})
	if err == enough {
		err = nil
	}
	return next, more, err
}
