package pull

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
)

// A NAR is a file of an upstream with a NAR in it, in the upstream's bytes.
type NAR struct {
	// Size is in bytes, or -1 if it is not known.
	Size int64
	// NarSize is that of the NAR itself, or 0 if it is not known.
	NarSize int64
	// ETag names these bytes, with quotes.
	ETag string
	// Verified says that WriteTo writes the last byte only of what the narinfo is about; of
	// a Local upstream, if it starts with the first one. Without it nothing was looked at, and
	// nothing is kept.
	Verified bool
	// Local says that it comes from a Local upstream.
	Local bool

	fetch *fetch // or else
	p     *Puller
	path  *path
	body  io.ReadCloser // from the first byte on
}

// NAR opens nar/<file>. The error says what went wrong before the first byte. What is
// wrong after that is the error of WriteTo.
func (p *Puller) NAR(ctx context.Context, file string) (*NAR, error) {
	if n, err := p.Running(ctx, file); n != nil || err != nil {
		return n, err
	}
	t, err := p.find(ctx, file)
	if err != nil {
		return nil, err
	}
	if !t.source.Keep || max(t.info.NarSize, t.info.FileSize) > uint64(p.store.MaxNAR()) || p.store.Obstacle() != nil {
		return p.pass(ctx, t)
	}
	f, err := p.start(ctx, t)
	if err != nil {
		return nil, err
	}
	return p.open(ctx, f)
}

// Running opens nar/<file> if it is being fetched, or was and the file is still there. If
// not, it returns nil.
func (p *Puller) Running(ctx context.Context, file string) (*NAR, error) {
	p.mu.Lock()
	f := p.fetches[file]
	if f != nil {
		f.users++
	}
	p.mu.Unlock()
	if f == nil {
		return nil, nil
	}
	return p.open(ctx, f)
}

// Head is NAR without fetching anything: of what a narinfo has told already, or tells now if
// the name leads to it.
func (p *Puller) Head(ctx context.Context, file string) (*NAR, error) {
	t, ok := p.files.GetIfPresent(file)
	if strings.Contains(file, "-") {
		var err error
		if t, err = p.find(ctx, file); err != nil {
			return nil, err
		}
	} else if !ok {
		return nil, fmt.Errorf("NAR %s: %w", file, chunkstore.ErrNotFound)
	}
	n := p.newNAR(t)
	n.Size = -1
	if t.info.FileSize > 0 && t.info.FileSize < math.MaxInt64 {
		n.Size = int64(t.info.FileSize)
	}
	return n, nil
}

// Ingest has nar/<file> fetched and waits until the store has it.
func (p *Puller) Ingest(ctx context.Context, file string) error {
	n, err := p.NAR(ctx, file)
	if err != nil {
		return err
	}
	defer n.Close()
	if n.fetch == nil {
		return fmt.Errorf("NAR %s, to be stored: %w", file, chunkstore.ErrNotFound)
	}
	select {
	case <-n.fetch.done:
		return n.fetch.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Gone says whether clients may have begun to read nar/<file> as the upstream has it, who
// must not go on with other bytes.
func (p *Puller) Gone(file string) bool {
	_, ok := p.gone.GetIfPresent(file)
	return ok
}

// etag returns the ETag of the path's file. Without a hash of its bytes nobody knows whether
// the next download will bring the same.
func (t *path) etag() string {
	if t.plain() {
		return `"pulled-` + narinfo.EncodeNix32(t.info.NarHash[:]) + `"`
	}
	if t.info.FileHash.Algo() == narinfo.SHA256 {
		return `"pulled-` + t.info.FileHash.Nix32() + `"`
	}
	return `"pulled-` + rand.Text() + `"`
}

// open waits until f is open, for a user of it.
func (p *Puller) open(ctx context.Context, f *fetch) (*NAR, error) {
	n := &NAR{p: p, path: f.path, fetch: f, NarSize: int64(f.path.info.NarSize), ETag: f.etag, Verified: true}
	select {
	case <-f.opened:
	case <-ctx.Done():
		n.Close()
		return nil, context.Cause(ctx)
	}
	f.mu.Lock()
	err := f.err
	n.Size = f.size
	if f.complete {
		n.Size = f.written
	}
	f.mu.Unlock()
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// newNAR returns the NAR of a path as it passes through, without its size and body.
func (p *Puller) newNAR(t *path) *NAR {
	return &NAR{p: p, path: t, NarSize: int64(t.info.NarSize), ETag: t.etag(), Verified: t.source.Local, Local: t.source.Local}
}

// pass opens the path's file at the upstream for one client.
func (p *Puller) pass(ctx context.Context, t *path) (*NAR, error) {
	n := p.newNAR(t)
	if !n.Local {
		if err := p.passing.Acquire(ctx, 1); err != nil {
			return nil, err
		}
	}
	var err error
	if n.body, n.Size, err = t.source.open(ctx, t, 0); err != nil {
		n.body = io.NopCloser(nil)
		n.Close()
		return nil, err
	}
	return n, nil
}

// WriteTo writes the size bytes at off to w as they come, all from there on if size is negative.
// If w has a method Flush() error, it is called where that takes time.
func (n *NAR) WriteTo(ctx context.Context, w io.Writer, off, size int64) error {
	if n.fetch != nil {
		return n.fetch.copyTo(ctx, w, off, size)
	}
	if off > 0 {
		n.body.Close()
		var err error
		if n.body, _, err = n.path.source.open(ctx, n.path, off); err != nil {
			n.body = io.NopCloser(nil)
			return err
		}
	}
	var err error
	if size < 0 {
		_, err = io.Copy(w, n.body)
	} else {
		_, err = io.CopyN(w, n.body, size)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Close must be called when the NAR is not read any more.
func (n *NAR) Close() {
	if n.body != nil {
		n.body.Close()
		if !n.Local {
			n.p.passing.Release(1)
		}
	}
	if n.fetch != nil {
		n.p.leave(n.fetch)
	}
}
