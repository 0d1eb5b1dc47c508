//go:build unix

package nixstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"sync"

	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// ErrDamaged says that the files of a path are not those that the database tells of.
var ErrDamaged = fmt.Errorf("%w: the files of the store path have changed", upstream.ErrDamaged)

// NAR implements upstream.Source. size is info.NarSize. A body from the start on is
// compared with the hash in info, and its last bytes are only given out if that is right:
// a reader that sees io.EOF has the true NAR. Before off, files are not read.
func (s *Store) NAR(ctx context.Context, info *narinfo.NarInfo, off int64) (io.ReadCloser, int64, error) {
	if info.StorePath.IsZero() {
		return nil, 0, fmt.Errorf("%s, without a store path: %w", info.URL, upstream.ErrNotFound)
	}
	size := int64(info.NarSize)
	if off < 0 || off > size {
		return nil, 0, fmt.Errorf("offset %d of %d bytes", off, size)
	}
	if err := s.present(info.StorePath); err != nil {
		return nil, 0, err
	}
	select {
	case s.dumps <- struct{}{}:
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &body{store: s, info: info, ctx: ctx, cancel: cancel, full: make(chan []byte, blocksAhead), free: make(chan []byte, blocksAhead+2), off: off, end: size}
	if off == 0 {
		b.hash = sha256.New()
	}
	b.done.Go(func() { b.run(off) })
	return b, size, nil
}

const (
	// blockSize is how many bytes go from the goroutine that reads files to the reader of
	// the NAR at a time, and blocksAhead how often it may do so before they are read.
	blockSize   = 64 << 10
	blocksAhead = 2
)

// A body is a NAR that is being read from files. A goroutine reads the files; the reader
// of the body hashes.
type body struct {
	store  *Store
	info   *narinfo.NarInfo
	ctx    context.Context // until Close
	cancel context.CancelFunc
	done   sync.WaitGroup
	full   chan []byte // closed at the end, after err is set
	free   chan []byte // blocks to use again
	err    error

	// The rest belongs to the reader.
	hash   hash.Hash // nil if it does not start at the start
	off    int64     // of the next block to come
	end    int64
	block  []byte // of which unread is a part
	unread []byte
	failed error
}

func (b *body) run(off int64) {
	w := &blockWriter{b: b, skip: off}
	depth, err := dump(b.ctx, w, b.store.path(b.info.StorePath), off)
	if err == nil {
		err = w.flush()
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errChanged) || errors.Is(err, nar.ErrFormat) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if depth >= nar.MaxDepth {
		b.store.log.Warn("new versions of Nix refuse this path: its directories are too deep", "path", b.info.StorePath, "depth", depth)
	}
	b.err = err
	close(b.full)
}

// A blockWriter cuts what it gets, from the byte skip on, into blocks.
type blockWriter struct {
	b     *body
	skip  int64
	block []byte
}

func (w *blockWriter) Write(p []byte) (int, error) {
	n := len(p)
	skipped := min(w.skip, int64(n))
	w.skip -= skipped
	for p = p[skipped:]; len(p) > 0; {
		if w.block == nil {
			select {
			case w.block = <-w.b.free:
			default:
				w.block = make([]byte, 0, blockSize)
			}
		}
		k := min(len(p), blockSize-len(w.block))
		w.block = append(w.block, p[:k]...)
		p = p[k:]
		if len(w.block) == blockSize {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *blockWriter) flush() error {
	if len(w.block) == 0 {
		return nil
	}
	select {
	case w.b.full <- w.block:
		w.block = nil
		return nil
	case <-w.b.ctx.Done():
		return w.b.ctx.Err()
	}
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(b.unread) == 0 {
		if b.failed == nil {
			b.failed = b.next()
		}
		if b.failed != nil {
			return 0, b.failed
		}
	}
	n := copy(p, b.unread)
	b.unread = b.unread[n:]
	return n, nil
}

// next makes the next block unread. Behind the last it returns io.EOF; the last is not
// given out before it is known to be right.
func (b *body) next() error {
	if b.block != nil {
		b.free <- b.block[:0]
		b.block = nil
	}
	block, ok := <-b.full
	if !ok {
		switch {
		case b.err != nil:
			return b.damage(b.err)
		case b.off < b.end:
			return b.damage(fmt.Errorf("%w: the NAR has %d bytes instead of %d", ErrDamaged, b.off, b.end))
		}
		return io.EOF
	}
	b.off += int64(len(block))
	if b.hash != nil {
		b.hash.Write(block)
	}
	if b.off > b.end {
		return b.damage(fmt.Errorf("%w: the NAR has more than %d bytes", ErrDamaged, b.end))
	}
	if b.off == b.end && b.hash != nil && !bytes.Equal(b.hash.Sum(nil), b.info.NarHash[:]) {
		return b.damage(fmt.Errorf("%w: the hash of the NAR is not %s", ErrDamaged, narinfo.NewHash(narinfo.SHA256, b.info.NarHash[:])))
	}
	b.block, b.unread = block, block
	return nil
}

// damage has the path count as absent if err says so, and if Nix still has it: who deletes a
// path changes its files, too.
func (b *body) damage(err error) error {
	p := b.info.StorePath
	if errors.Is(err, ErrDamaged) {
		now, lookup := b.store.lookUp(b.ctx, p.HashPart())
		if lookup == nil && now.StorePath == p && now.NarHash == b.info.NarHash {
			b.store.markDamaged(p)
			b.store.log.Error("a path of the Nix store is damaged; see nix-store --verify-path", "path", p.Path(b.store.dir), "err", err)
		}
	}
	return fmt.Errorf("NAR of %s: %w", p, err)
}

// Close implements io.Closer. It waits for the goroutine.
func (b *body) Close() error {
	if b.cancel == nil {
		return nil
	}
	b.cancel()
	b.done.Wait()
	b.cancel = nil
	<-b.store.dumps
	return nil
}
