package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
)

// fileType is the Content-Type of a small file.
func fileType(k kind) string {
	if k == kindLog {
		return "text/plain; charset=utf-8"
	}
	return "application/json"
}

// getFile answers with a small file as it was uploaded.
func (g *Gateway) getFile(w *response, r *http.Request, res resource) error {
	f, err := g.store.File(r.Context(), res.name)
	if errors.Is(err, chunkstore.ErrNotFound) {
		return g.getUpstreamFile(w, r, res, err)
	} else if err != nil {
		return err
	}
	return g.serveFile(w, r, res, f)
}

// serveFile answers with a small file. These do not change, but one that is generated may
// give way to one that is uploaded.
func (g *Gateway) serveFile(w *response, r *http.Request, res resource, f *chunkstore.File) error {
	c := &content{
		size: f.Size, etag: hashETag(f.Content), typ: fileType(res.kind), cache: g.cache.hours,
		write: func(ctx context.Context, w io.Writer, off, n int64) error {
			return g.store.WriteFile(ctx, w, f, off, n)
		},
	}
	if !f.Inline() {
		o, err := g.store.Object(r.Context(), f.Content)
		if err != nil {
			return err
		}
		c = c.orFrames(w.Header(), r, o)
	}
	_, err := w.serve(r, c)
	return err
}

// hashETag returns the entity tag of the bytes with a hash.
func hashETag(hash chunkstore.Hash) string { return `"` + narinfo.EncodeNix32(hash[:]) + `"` }

// putFile stores a small file, without its Content-Encoding. Names are write-once: if
// there is another file of the name, that one stays. The client is told that all is
// well, since Nix uploads listings again with every path, and another version of Nix
// writes the same listing differently.
func (g *Gateway) putFile(w *response, r *http.Request, res resource) error {
	body, err := g.decodedBody(w, r, g.cfg.MaxFile)
	if err != nil {
		return err
	}
	defer body.Close()
	if res.kind == kindListing && w.who.Limited() {
		// Nix sends it before the narinfo, so that nobody knows whether it may. The one
		// that the gateway makes will do.
		_, err := io.Copy(io.Discard, body)
		return err
	}
	_, err = g.store.PutFile(r.Context(), res.name, body)
	if errors.Is(err, chunkstore.ErrConflict) {
		g.log.Info("another file of this name is kept", "name", res.name, "remote", r.RemoteAddr)
		return nil
	}
	return err
}
