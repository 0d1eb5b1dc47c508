package report

import (
	"context"
	"errors"
	"fmt"

	"github.com/dedupd/dedupd/chunkstore"
)

// maxClosure is how many paths a closure may have: their hash parts are in memory.
const maxClosure = 1 << 20

// findClosures adds up each closure that is asked for, one at a time.
func (a *attribution) findClosures(ctx context.Context) error {
	if len(a.opts.Closures) == 0 {
		return nil
	}
	// How many paths of the closure use each chunk.
	users := make([]uint32, len(a.chunks.slots))
	for _, hashPart := range a.opts.Closures {
		clear(users)
		c, err := a.closure(ctx, hashPart, users)
		if err != nil {
			return fmt.Errorf("closure of %s: %w", hashPart, err)
		}
		a.Closures = append(a.Closures, *c)
	}
	return nil
}

func (a *attribution) closure(ctx context.Context, root string, users []uint32) (*Closure, error) {
	c := &Closure{}
	seen, next := map[string]bool{root: true}, []string{root}
	for w := (&walked{}); len(next) > 0; {
		if c.Paths%1000 == 0 {
			a.opts.Progress(Progress{"walking the closure of " + root, c.Paths, 0})
		}
		hashPart := next[len(next)-1]
		next = next[:len(next)-1]
		whole, err := a.load(ctx, hashPart, w)
		if errors.Is(err, chunkstore.ErrNotFound) && hashPart != root {
			err = nil
		}
		if err != nil {
			return nil, err
		}
		if !whole {
			c.Missing++
			continue
		}
		if hashPart == root {
			c.Path = w.StorePath.String()
		}
		c.Paths++
		c.NARBytes += int64(w.NarSize)
		c.WireBytes += a.wireBytes(w)
		for _, i := range w.slots {
			users[i]++
		}
		for _, ref := range w.References {
			if h := ref.HashPart(); !seen[h] {
				if len(seen) == maxClosure {
					return nil, fmt.Errorf("it has more than %d paths", maxClosure)
				}
				seen[h] = true
				next = append(next, h)
			}
		}
	}
	var alone, own estimate
	for i, n := range users {
		s := &a.chunks.slots[i]
		if n > 0 {
			alone.add(float64(s.stored))
		}
		if n > 0 && n == s.paths {
			own.add(float64(s.stored))
		}
	}
	c.Alone, c.Own = a.chunks.total(alone), a.chunks.total(own)
	c.Shared = c.Alone - c.Own
	if a.chunks.zeros > 0 {
		c.Error = a.chunks.margin(alone)
	}
	return c, nil
}
