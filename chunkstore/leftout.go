package chunkstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/dedupd/dedupd/packfile"
)

// A leftOut is what Open could not apply to the index.
type leftOut struct {
	mu      sync.Mutex
	missed  map[packfile.Name]bool // packs that Open did not find whole, and that the index does not have
	partial map[packfile.Name]bool // packs of which commits rely on these, and were left out
}

func (l *leftOut) get() (missed, partial map[packfile.Name]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.missed), maps.Clone(l.partial)
}

// applyLeftOut applies the commits that were left out for want of packs that are known to
// be lost by now, as the next start would. What they say of other packs' chunks holds.
func (s *Store) applyLeftOut(ctx context.Context) error {
	missed, partial := s.leftOut.get()
	if len(partial) == 0 {
		return nil
	}
	snap, err := s.ix.Snapshot(ctx)
	if err != nil {
		return err
	}
	known, err := readDamages(ctx, snap)
	snap.Close()
	if err != nil {
		return err
	}
	have := func(name packfile.Name) bool { return !missed[name] || known.packs[name] }
	r := &recovery{
		Store: s, applier: newApplier(s.ix, s.repo.StoreDir),
		missed: map[packfile.Name]bool{}, partial: map[packfile.Name]bool{}, whole: map[packfile.Name]bool{},
	}
	names := slices.Collect(maps.Keys(partial))
	sortNames(names)
	for _, name := range names {
		if err := s.applyAgain(ctx, r, name, have); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	s.leftOut.mu.Lock()
	defer s.leftOut.mu.Unlock()
	s.leftOut.partial = r.partial
	maps.DeleteFunc(s.leftOut.missed, func(name packfile.Name, _ bool) bool { return known.packs[name] })
	return nil
}

// applyAgain applies a pack between two commits: nobody else changes the index then.
func (s *Store) applyAgain(ctx context.Context, r *recovery, name packfile.Name, have func(packfile.Name) bool) error {
	number, err := s.packs.number(ctx, name)
	if err != nil {
		return err
	}
	pack, _, err := s.readPack(ctx, name, number)
	if isDamage(err) {
		r.partial[name] = true // it is for another repair
		return nil
	} else if err != nil {
		return err
	}
	return s.commit(ctx, &request{inspect: func(*openPack) error { return r.apply(ctx, pack, have) }})
}
