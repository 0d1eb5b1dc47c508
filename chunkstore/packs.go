package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
	"github.com/dedupd/dedupd/rangecache"
)

// packKey is the key of a pack in the bucket.
func packKey(name packfile.Name) string { return packPrefix + name.String() + ".pack" }

const packPrefix = "packs/"

// packTable knows which packs lie in the spool. Reads look there first, then in the
// bucket; an index entry names the pack by a number and does not change when it moves.
type packTable struct {
	bucket bucket.Bucket
	cache  *rangecache.Cache // of the bucket, for what is served; nil for none
	ix     index.Index

	mu    sync.RWMutex
	names map[uint32]packfile.Name // as the index has them, filled as they are asked for
	local map[uint32]*localPack
}

// A localPack is a file of the spool that frames can be read from, open or sealed. It
// is closed when it has left the spool and its last reader is done.
type localPack struct {
	file *os.File
	refs int // readers, and one for being in the spool; guarded by packTable.mu
}

func newPackTable(b bucket.Bucket, ix index.Index) *packTable {
	return &packTable{bucket: b, ix: ix, names: map[uint32]packfile.Name{}, local: map[uint32]*localPack{}}
}

// number returns the number of a pack, a new one if it has none.
func (t *packTable) number(ctx context.Context, name packfile.Name) (uint32, error) {
	n, err := t.ix.PackNumber(ctx, name.String())
	if err != nil {
		return 0, fmt.Errorf("number of pack %s: %w", name, err)
	}
	return n, nil
}

// name returns the name of a pack that the index knows.
func (t *packTable) name(ctx context.Context, number uint32) (packfile.Name, error) {
	t.mu.RLock()
	name, ok := t.names[number]
	t.mu.RUnlock()
	if ok {
		return name, nil
	}
	text, err := t.ix.PackName(ctx, number)
	if errors.Is(err, index.ErrNotFound) {
		return name, fmt.Errorf("the index uses pack number %d, which has no name: %w", number, packfile.ErrCorrupt)
	} else if err != nil {
		return name, fmt.Errorf("name of pack number %d: %w", number, err)
	}
	if name, err = packfile.ParseName(text); err != nil {
		return name, err
	}
	t.mu.Lock()
	t.names[number] = name
	t.mu.Unlock()
	return name, nil
}

// addLocal says that the pack can be read from file, which the table closes.
func (t *packTable) addLocal(number uint32, file *os.File) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.local[number] = &localPack{file: file, refs: 1}
}

// dropLocal says that the pack is in the bucket from now on.
func (t *packTable) dropLocal(number uint32) {
	t.mu.Lock()
	p := t.local[number]
	delete(t.local, number)
	t.mu.Unlock()
	if p != nil {
		t.release(p)
	}
}

// close closes the cache, and the files of the spool. A reader that is not done closes
// its own.
func (t *packTable) close() (err error) {
	if t.cache != nil {
		err = t.cache.Close()
	}
	t.mu.Lock()
	local := t.local
	t.local = map[uint32]*localPack{}
	t.mu.Unlock()
	for _, p := range local {
		t.release(p)
	}
	return err
}

func (t *packTable) release(p *localPack) {
	t.mu.Lock()
	p.refs--
	last := p.refs == 0
	t.mu.Unlock()
	if last {
		p.file.Close() // only read from here
	}
}

// readAt fills p with the bytes at off of a pack, wherever it is.
func (t *packTable) readAt(ctx context.Context, number uint32, p []byte, off int64) error {
	name, err := t.name(ctx, number)
	if err != nil {
		return err
	}
	if local := t.acquire(number); local != nil {
		defer t.release(local)
		if n, err := local.file.ReadAt(p, off); n < len(p) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read %d bytes at %d of pack %s in the spool: %w", len(p), off, name, err)
		}
		return nil
	}
	if err := t.bucket.ReadAt(ctx, packKey(name), p, off); err != nil {
		return fmt.Errorf("read %d bytes at %d of pack %s: %w", len(p), off, name, err)
	}
	return nil
}

// readAhead is readAt through the cache. It has what follows of the pack fetched, too, up
// to until. The bytes are from the cache only if cached says so.
func (t *packTable) readAhead(ctx context.Context, r *rangecache.Reader, number uint32, p []byte, off, until int64) (cached bool, err error) {
	if r == nil || t.spooled(number) {
		return false, t.readAt(ctx, number, p, off)
	}
	name, err := t.name(ctx, number)
	if err != nil {
		return false, err
	}
	if err := r.ReadAt(ctx, packKey(name), p, off, until); err != nil {
		return true, fmt.Errorf("read %d bytes at %d of pack %s: %w", len(p), off, name, err)
	}
	return true, nil
}

// prefetch has a range of a pack put into the cache, and says whether r may ask for more.
func (t *packTable) prefetch(ctx context.Context, r *rangecache.Reader, number uint32, off, until int64) bool {
	if t.spooled(number) {
		return true
	}
	name, err := t.name(ctx, number)
	return err == nil && r.Prefetch(packKey(name), off, until) // who reads it gets the error
}

// readAround is readAt from the bucket, for bytes that the cache has wrong.
func (t *packTable) readAround(ctx context.Context, number uint32, p []byte, off int64) error {
	if name, err := t.name(ctx, number); err == nil {
		t.cache.Forget(packKey(name), off, int64(len(p)))
	}
	return t.readAt(ctx, number, p, off)
}

// spooled says whether a pack is in the spool.
func (t *packTable) spooled(number uint32) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.local[number] != nil
}

// acquire returns the pack's file in the spool, nil if it is not there. The caller
// releases it.
func (t *packTable) acquire(number uint32) *localPack {
	t.mu.Lock()
	defer t.mu.Unlock()
	local := t.local[number]
	if local != nil {
		local.refs++
	}
	return local
}

// size returns the length of a sealed pack.
func (t *packTable) size(ctx context.Context, number uint32) (int64, error) {
	if local := t.acquire(number); local != nil {
		defer t.release(local)
		info, err := local.file.Stat()
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	name, err := t.name(ctx, number)
	if err != nil {
		return 0, err
	}
	info, err := t.bucket.Stat(ctx, packKey(name))
	return info.Size, err
}

// packReader is a pack as an io.ReaderAt.
type packReader struct {
	ctx    context.Context
	packs  *packTable
	number uint32
}

func (r packReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.packs.readAt(r.ctx, r.number, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}
