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

// cacheHours is the Cache-Control of small files. They do not change, but one that is
// generated may give way to one that is uploaded.
const cacheHours = "public, max-age=3600"

// getFile answers with a small file as it was uploaded.
func (g *Gateway) getFile(w *response, r *http.Request, res resource) error {
	f, err := g.store.File(r.Context(), res.name)
	if err != nil {
		return err
	}
	return g.serveFile(w, r, res, f)
}

func (g *Gateway) serveFile(w *response, r *http.Request, res resource, f *chunkstore.File) error {
	_, err := w.serve(r, &content{
		size: f.Size, etag: `"` + narinfo.EncodeNix32(f.Content[:]) + `"`,
		typ: fileType(res.kind), cache: cacheHours,
		write: func(ctx context.Context, w io.Writer, off, n int64) error {
			return g.store.WriteFile(ctx, w, f, off, n)
		},
	})
	return err
}

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
