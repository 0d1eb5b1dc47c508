package chunkstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"
	"github.com/zeebo/blake3"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// A plan says how to serve one object: its pieces, where each is, and what each comes to
// as zstd frames and as plain bytes. It does not change after it was made.
type plan struct {
	hash   Hash
	nar    bool
	layout string
	pieces []planPiece
	values []value
	size   int64 // plain bytes
	zsize  int64 // bytes as zstd frames
}

type planPiece struct {
	item
	loc       index.Location // zero for a literal
	at, zat   int64          // offsets of the piece in the plain object and in its frames
	zlen, len int64
}

// stored is where the frame of a piece is in its pack.
func (pp *planPiece) stored() (off, n int64) {
	return int64(pp.loc.Offset), int64(pp.loc.Prefix) + int64(pp.loc.Payload)
}

// layoutSize is the length of a layout in characters, for 80 bits.
const layoutSize = 16

// newPlan finds the chunks of an object. Its error wraps ErrNotFound if the store does
// not have the object, and packfile.ErrCorrupt if it should have and has not.
func (s *Store) newPlan(ctx context.Context, hash Hash) (*plan, error) {
	c, err := getContent(ctx, s.ix, hash)
	if err != nil {
		return nil, err
	}
	return makePlan(ctx, s.ix, c)
}

// getContent looks up an object, with the errors of newPlan.
func getContent(ctx context.Context, ix index.Reader, hash Hash) (*content, error) {
	row, err := ix.Get(ctx, index.Contents, hash[:])
	if errors.Is(err, index.ErrNotFound) {
		return nil, fmt.Errorf("object %x: %w", hash, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("look up object %x: %w", hash, err)
	}
	_, body := splitRow(row)
	c, err := decodeContent(body)
	if err != nil {
		return nil, fmt.Errorf("object %x: %w", hash, err)
	}
	return c, nil
}

// makePlan makes the plan of an object from what the index says of its recipe and chunks.
func makePlan(ctx context.Context, ix index.Reader, c *content) (*plan, error) {
	r, err := getRecipe(ctx, ix, c.recipe)
	if err != nil {
		return nil, fmt.Errorf("object %x: %w", c.hash, err)
	}
	ids := make([]index.Key, len(r.items))
	locs := make([]index.Location, len(r.items))
	for i := range r.items {
		ids[i] = index.Key(r.items[i].id)
	}
	if err := ix.Chunks(ctx, ids, locs); err != nil {
		return nil, fmt.Errorf("look up the chunks of %x: %w", c.hash, err)
	}
	p := &plan{hash: c.hash, nar: c.nar, values: c.table, pieces: make([]planPiece, len(r.items))}
	for i := range r.items {
		if err := p.add(i, r.items[i], locs[i]); err != nil {
			return nil, fmt.Errorf("object %x: %w", c.hash, err)
		}
	}
	if p.size != c.size {
		return nil, fmt.Errorf("object %x has %d bytes, its recipe makes %d: %w", c.hash, c.size, p.size, packfile.ErrCorrupt)
	}
	p.layout = p.makeLayout()
	return p, nil
}

func getRecipe(ctx context.Context, ix index.Reader, id packfile.ID) (*recipe, error) {
	row, err := ix.Get(ctx, index.Recipes, id[:])
	if errors.Is(err, index.ErrNotFound) {
		return nil, fmt.Errorf("recipe %s is missing: %w", id, packfile.ErrCorrupt)
	} else if err != nil {
		return nil, fmt.Errorf("look up recipe %s: %w", id, err)
	}
	_, body := splitRow(row)
	r, err := decodeRecipe(body)
	if err != nil {
		return nil, fmt.Errorf("recipe %s: %w", id, err)
	}
	return r, nil
}

func (p *plan) add(i int, it item, loc index.Location) error {
	for _, ref := range it.refs {
		if int(ref) >= len(p.values) {
			return fmt.Errorf("recipe names value %d of %d: %w", ref, len(p.values), packfile.ErrCorrupt)
		}
	}
	pp := &p.pieces[i]
	*pp = planPiece{item: it, at: p.size, zat: p.zsize, len: int64(it.len)}
	switch {
	case it.literal():
		pp.zlen = int64(packfile.RawLen(int(it.len)))
	case loc.Pack == 0:
		return fmt.Errorf("chunk %s is missing: %w", it.id, packfile.ErrCorrupt)
	case loc.Len != it.len:
		return fmt.Errorf("chunk %s has %d bytes, the recipe says %d: %w", it.id, loc.Len, it.len, packfile.ErrCorrupt)
	default:
		pp.loc, pp.zlen = loc, wireLen(loc)
	}
	p.size += pp.len
	p.zsize += pp.zlen
	return nil
}

// wireLen is what a chunk comes to as zstd: its frame, or raw blocks if that cannot be sent.
func wireLen(loc index.Location) int64 {
	if packfile.Kind(loc.Kind) == packfile.KindPatch {
		return int64(loc.Payload)
	}
	return int64(packfile.RawLen(int(loc.Len)))
}

// makeLayout names the bytes that the object has as zstd frames: the list of its frames
// and of the profiles that those are served in which are not served as stored. It is a
// part of the URL, so that one URL has one body.
func (p *plan) makeLayout() string {
	h := blake3.NewDeriveKey("dedupd 2026 layout v1 " + packfile.RawProfile)
	var b []byte
	for i := range p.pieces {
		pp := &p.pieces[i]
		b = binary.AppendUvarint(b[:0], uint64(pp.loc.Kind))
		b = binary.AppendUvarint(b, uint64(pp.len))
		if packfile.Kind(pp.loc.Kind) == packfile.KindPatch {
			b = binary.AppendUvarint(b, uint64(pp.loc.Payload))
			b = binary.LittleEndian.AppendUint32(b, pp.loc.CRC)
		}
		h.Write(b)
	}
	v := value(h.Sum(nil)[:len(value{})])
	return string(v.appendSpan(nil, packfile.SpanHash)[:layoutSize])
}

// find returns the piece that holds the byte at off, in frames or in the plain object.
func (p *plan) find(off int64, frames bool) int {
	return sort.Search(len(p.pieces), func(i int) bool {
		pp := &p.pieces[i]
		if frames {
			return pp.zat+pp.zlen > off
		}
		return pp.at+pp.len > off
	})
}

// weight is about how many bytes of memory the plan takes.
func (p *plan) weight() uint32 {
	n := 300 + 200*len(p.pieces) + 20*len(p.values)
	for i := range p.pieces {
		pp := &p.pieces[i]
		n += 4*len(pp.refs) + len(pp.plain) + 8*len(pp.spans)
	}
	return uint32(min(n, 1<<30))
}

// A planCache remembers plans, up to a number of bytes, and makes each once however
// many ask for it at a time. A plan goes on to name the old copy
// of a chunk that was stored again, which stays where it is.
type planCache struct {
	cache *otter.Cache[Hash, *plan]
}

func newPlanCache(bytes int64) *planCache {
	return &planCache{otter.Must(&otter.Options[Hash, *plan]{
		StatsRecorder: stats.NewCounter(),
		MaximumWeight: uint64(bytes),
		Weigher:       func(_ Hash, p *plan) uint32 { return p.weight() },
	})}
}

func (s *Store) plan(ctx context.Context, hash Hash) (*plan, error) {
	return s.plans.cache.Get(ctx, hash, otter.LoaderFunc[Hash, *plan](s.newPlan))
}
