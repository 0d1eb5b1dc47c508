package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/nar"
)

// A listing says what is in a NAR.
type listing struct {
	root *nar.Node
	// json returns it as it is served, or an error if that cannot be.
	json func() (*text, error)
}

// maxListings is the number of listings that are made at a time.
const maxListings = 2

func newListingCache(bytes int64) *otter.Cache[chunkstore.Hash, *listing] {
	return otter.Must(&otter.Options[chunkstore.Hash, *listing]{
		StatsRecorder: stats.NewCounter(),
		MaximumWeight: uint64(bytes),
		// Its JSON takes about as much, and no more when it is encoded.
		Weigher: func(_ chunkstore.Hash, l *listing) uint32 { return uint32(min(2*l.root.Memory(), 1<<30)) },
	})
}

// getListing answers with the listing that was uploaded, or else with one of its own.
func (g *Gateway) getListing(w *response, r *http.Request, res resource) error {
	f, err := g.store.File(r.Context(), res.name)
	if err == nil {
		return g.serveFile(w, r, res, f)
	}
	if !errors.Is(err, chunkstore.ErrNotFound) {
		return err
	}
	err = g.getMadeListing(w, r, res)
	if absent(err) && w.status == 0 {
		return g.getUpstreamFile(w, r, res, err)
	}
	return err
}

// getMadeListing answers with a listing that is made from the NAR of a path.
func (g *Gateway) getMadeListing(w *response, r *http.Request, res resource) error {
	info, err := g.store.NarInfo(r.Context(), res.id)
	if err != nil {
		return err
	}
	return g.serveListing(w, r, info.NarHash)
}

// getNARListing answers with a listing of the NAR at nar/<id>, or of that with the hash.
// Nobody needs to have uploaded a narinfo.
func (g *Gateway) getNARListing(w *response, r *http.Request, res resource) error {
	hash, ok := parseHash(res.id)
	if !ok {
		n, _, err := g.namedNAR(r.Context(), "nar/"+res.id)
		if err != nil {
			return err
		}
		hash = n.hash
	}
	return g.serveListing(w, r, hash)
}

func (g *Gateway) serveListing(w *response, r *http.Request, hash chunkstore.Hash) error {
	l, err := g.listing(r.Context(), hash)
	if err != nil {
		return err
	}
	t, err := l.json()
	if errors.Is(err, nar.ErrNotUTF8) {
		return refuse(http.StatusNotFound, "the path has file names that a listing cannot hold")
	} else if err != nil {
		return err
	}
	_, err = w.serve(r, t.content(w.Header(), r, codedETag(hashETag(hash), "ls-1"), fileType(kindListing), g.cache.hours))
	return err
}

// listing returns what is in a NAR.
func (g *Gateway) listing(ctx context.Context, hash chunkstore.Hash) (*listing, error) {
	// The NAR may have been found damaged since it was listed.
	if _, err := g.narObject(ctx, hash); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx) // others may wait for the outcome
	return g.listings.Get(ctx, hash, otter.LoaderFunc[chunkstore.Hash, *listing](g.makeListing))
}

func (g *Gateway) makeListing(ctx context.Context, hash chunkstore.Hash) (*listing, error) {
	if err := take(ctx, g.listSlots); err != nil {
		return nil, err
	}
	defer func() { <-g.listSlots }()
	o, err := g.narObject(ctx, hash)
	if err != nil {
		return nil, err
	}
	l, err := nar.ListMax(&objectReader{ctx: ctx, object: o}, g.cfg.ListingCache)
	if errors.Is(err, nar.ErrTooLarge) {
		return nil, refuse(http.StatusNotFound, "the NAR has too many files to be listed here")
	} else if err != nil {
		return nil, fmt.Errorf("list the NAR %x: %w", hash, err)
	}
	return &listing{l.Root, sync.OnceValues(func() (*text, error) {
		b, err := l.MarshalJSON()
		return newText(b), err
	})}, nil
}

// An objectReader reads an object from its start, and over what is seeked it does not:
// of a NAR with large files only little is fetched and decoded for its listing.
type objectReader struct {
	ctx    context.Context
	object *chunkstore.Object
	off    int64 // of the next Read
	buf    bytes.Buffer
}

// readStep is how many bytes are read at a time: about one chunk.
const readStep = 256 << 10

func (r *objectReader) Read(p []byte) (int, error) {
	if r.buf.Len() == 0 {
		n := min(readStep, r.object.Size()-r.off)
		if n <= 0 {
			return 0, io.EOF
		}
		r.buf.Reset()
		if err := r.object.WritePlain(r.ctx, &r.buf, r.off, n); err != nil {
			return 0, err
		}
	}
	n, _ := r.buf.Read(p)
	r.off += int64(n)
	return n, nil
}

// Seek implements io.Seeker, for offsets from the current position.
func (r *objectReader) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 {
		return 0, errors.ErrUnsupported
	}
	r.buf.Next(int(min(n, int64(r.buf.Len()))))
	r.off += n
	return r.off, nil
}
