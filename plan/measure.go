package plan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/migrate"
)

// A scale is a bucket that packs are weighed in and not kept. Nobody reads them: the store
// that writes them is thrown away.
type scale struct {
	bucket.Bucket // of all that is small, such as the repository's settings
	bytes, puts   atomic.Int64
}

// maxKept is the size in bytes of the largest object that is no pack.
const maxKept = 4 << 10

// Put implements bucket.Bucket.
func (s *scale) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	s.puts.Add(1)
	s.bytes.Add(size)
	if size > maxKept {
		return nil
	}
	return s.Bucket.Put(ctx, key, r, size)
}

// A throwaway is a store in a temporary directory, which takes no more of the disk than
// the packs that are on their way and an index.
type throwaway struct {
	*chunkstore.Store
	scale *scale
	dir   string
}

// openThrowaway opens a store with the settings of opts, without its bucket and state.
func openThrowaway(ctx context.Context, temp string, opts chunkstore.Options) (_ *throwaway, err error) {
	dir, err := os.MkdirTemp(temp, "dedupd-plan-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	small, err := bucket.OpenDir(filepath.Join(dir, "bucket"))
	if err != nil {
		return nil, fmt.Errorf("store of the sample: %w", err)
	}
	t := &throwaway{dir: dir, scale: &scale{Bucket: small}}
	opts.State, opts.Bucket = filepath.Join(dir, "state"), t.scale
	if t.Store, err = chunkstore.Open(ctx, opts); err != nil {
		return nil, fmt.Errorf("store of the sample: %w", err)
	}
	return t, nil
}

// Close closes the store and removes it.
func (t *throwaway) Close(ctx context.Context) error {
	return errors.Join(t.Store.Close(ctx), os.RemoveAll(t.dir))
}

// A measurement is what a NAR has come to.
type measurement struct {
	*nar
	own    footprint // of the NAR by itself
	added  footprint // what those before it in its lineage do not have
	placed bool      // added is known, since they were measured, too
	wire   int64     // bytes of a download
	chunks map[uint64]int64
}

// A footprint are distinct chunks.
type footprint struct{ bytes, chunks int64 }

// A census is what a sample has come to.
type census struct {
	report   *migrate.Report // of taking it in
	asked    int             // NARs that the sample was to have
	measured []*measurement
	resized  float64 // bytes of files that came, for each that was expected
	overhead float64 // bytes for each path that are no frames
	lineages sharing // of chunks among lineages, and among NARs
	nars     sharing
}

// A sharing has the chunks of a sample, by the first bytes of their IDs, which among so few
// are enough, and in how many groups each is.
type sharing map[uint64]*shared

type shared struct {
	bytes  int64
	groups int
	last   int
}

// fetch takes the sample into the store, and measures it.
func (p *planner) fetch(ctx context.Context, s *sample, progress *migrate.Progress) (*census, error) {
	wanted := s.nars()
	slices.SortStableFunc(wanted, func(a, b *nar) int { return a.lineage - b.lineage })
	opts := p.Import
	opts.Closure, opts.NoFiles, opts.Since = false, true, time.Time{}
	opts.Paths = func(_ context.Context, fn func(string) error) error {
		for _, n := range wanted {
			if err := fn(n.path.HashPart()); err != nil {
				return err
			}
		}
		return nil
	}
	report, err := migrate.Import(ctx, p.store, p.source, opts, progress)
	if err == nil {
		err = p.store.Flush(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("take in the sample: %w", err)
	}
	c := &census{report: report, asked: len(wanted), lineages: sharing{}, nars: sharing{}}
	if err := c.measure(ctx, p.store.Store, wanted); err != nil {
		return nil, fmt.Errorf("measure the sample: %w", err)
	}
	c.weigh(report.ReadBytes, p.store.scale.bytes.Load())
	if len(c.measured) == 0 {
		return nil, fmt.Errorf("%w: none of the %d NARs of the sample could be had", migrate.ErrSource, c.asked)
	}
	c.place(s)
	return c, nil
}

// nars are all that belong to the sample, each once.
func (s *sample) nars() (nars []*nar) {
	seen := map[*nar]bool{nil: true}
	add := func(list ...*nar) {
		for _, n := range list {
			if !seen[n] {
				seen[n] = true
				nars = append(nars, n)
			}
		}
	}
	for _, u := range s.units {
		add(u.before)
		add(u.editions...)
	}
	for _, r := range s.rebuilds {
		add(r.nar)
	}
	return nars
}

// measure looks at what has come.
func (c *census) measure(ctx context.Context, store *chunkstore.Store, wanted []*nar) error {
	for i, n := range wanted {
		o, err := store.Object(ctx, n.hash)
		if errors.Is(err, chunkstore.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		m := &measurement{nar: n, wire: o.FrameSize(), chunks: map[uint64]int64{}}
		for id, bytes := range o.Chunks() {
			key := binary.LittleEndian.Uint64(id[:])
			m.chunks[key] = bytes
			m.own.add(bytes)
			c.nars.add(key, bytes, i)
			c.lineages.add(key, bytes, n.lineage)
		}
		c.measured = append(c.measured, m)
	}
	return nil
}

// weigh compares the sample with the bytes that were read, and with those written, for it.
func (c *census) weigh(read, written int64) {
	var expected int64
	for _, m := range c.measured {
		expected += m.file
	}
	for _, chunk := range c.nars {
		written -= chunk.bytes
	}
	c.resized = float64(read) / float64(max(expected, 1))
	c.overhead = float64(written) / float64(max(len(c.measured), 1))
}

func (f *footprint) add(bytes int64) {
	f.bytes += bytes
	f.chunks++
}

// add notes that a chunk is in a group. What belongs to a group comes together.
func (s sharing) add(key uint64, bytes int64, group int) {
	c := s[key]
	if c == nil {
		c = &shared{bytes: bytes, last: -1}
		s[key] = c
	}
	if c.last != group {
		c.last = group
		c.groups++
	}
}

// place finds out what NARs add to those before them.
func (c *census) place(s *sample) {
	byNAR := make(map[*nar]*measurement, len(c.measured))
	for _, m := range c.measured {
		byNAR[m.nar] = m
	}
	for _, u := range s.units {
		have := map[uint64]bool{}
		complete := true // all editions before
		if u.before != nil {
			complete = byNAR[u.before].union(have)
		}
		for _, n := range u.editions {
			m := byNAR[n]
			if m != nil && complete {
				m.place(have)
			}
			complete = m.union(have)
		}
	}
	for _, r := range s.rebuilds {
		have := map[uint64]bool{}
		if m := byNAR[r.nar]; m != nil && byNAR[r.edition].union(have) {
			m.place(have)
		}
	}
}

func (m *measurement) place(have map[uint64]bool) {
	m.placed = true
	for key, bytes := range m.chunks {
		if !have[key] {
			m.added.add(bytes)
		}
	}
}

// union adds the chunks of m, and says whether it was measured.
func (m *measurement) union(have map[uint64]bool) bool {
	if m == nil {
		return false
	}
	for key := range m.chunks {
		have[key] = true
	}
	return true
}

// growth says which part of what its groups have by themselves is left when all their
// chunks are together, and by which part twice as many groups would have more.
func (s sharing) growth() (left, doubling float64) {
	var alone, together, half float64
	for _, c := range s {
		b := float64(c.bytes)
		alone += b * float64(c.groups)
		together += b
		half += b * (1 - math.Exp2(-float64(c.groups)))
	}
	if alone == 0 {
		return 1, 1
	}
	return together / alone, together / (2 * half)
}
