package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/nar"
)

func newListingCache(bytes int64) *otter.Cache[string, []byte] {
	return otter.Must(&otter.Options[string, []byte]{
		StatsRecorder: stats.NewCounter(),
		MaximumWeight: uint64(bytes),
		Weigher:       func(_ string, b []byte) uint32 { return uint32(min(len(b), 1<<30)) + 200 },
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
	ctx := context.WithoutCancel(r.Context()) // others may wait for the outcome
	text, err := g.listings.Get(ctx, res.id, otter.LoaderFunc[string, []byte](g.makeListing))
	if err != nil {
		return err
	}
	_, err = w.serve(r, &content{
		size: int64(len(text)), etag: `"` + res.id + `-ls-1"`, typ: fileType(res.kind), cache: cacheHours,
		write: func(_ context.Context, w io.Writer, off, n int64) error {
			_, err := w.Write(text[off : off+n])
			return err
		},
	})
	return err
}

// makeListing makes the listing of the path with a hash part from its NAR.
func (g *Gateway) makeListing(ctx context.Context, hashPart string) ([]byte, error) {
	info, err := g.store.NarInfo(ctx, hashPart)
	if err != nil {
		return nil, err
	}
	o, err := g.narObject(ctx, info.NarHash)
	if err != nil {
		return nil, err
	}
	l, err := nar.List(&objectReader{ctx: ctx, object: o})
	if err != nil {
		return nil, fmt.Errorf("list the NAR of %s: %w", info.StorePath, err)
	}
	text, err := l.MarshalJSON()
	if errors.Is(err, nar.ErrNotUTF8) {
		return nil, refuse(http.StatusNotFound, "the path has file names that a listing cannot hold")
	}
	return text, err
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
