package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/packfile"
	"github.com/dedupd/dedupd/pull"
)

// absent says whether err means that the store does not have something, or not whole.
func absent(err error) bool {
	return errors.Is(err, chunkstore.ErrNotFound) || errors.Is(err, packfile.ErrCorrupt)
}

// puller returns who is asked for what the store lacks, nil for nobody. A request that
// has been here before, on its way from one gateway to the next, is answered from the
// store alone: so two of them can be each other's upstream.
func (g *Gateway) puller(ctx context.Context) *pull.Puller {
	if g.cfg.Pull == nil || g.cfg.Pull.Sent(ctx) {
		return nil
	}
	return g.cfg.Pull
}

// pullNarInfo makes the narinfo of a path that upstreams have: with their name of the NAR
// and its compression. Nothing is signed that nobody here has built, unless the operator
// says so of an upstream.
func (g *Gateway) pullNarInfo(ctx context.Context, p *pull.Puller, hashPart string) (*narInfoText, error) {
	damages := g.store.DamageCount()
	info, stored, err := p.NarInfo(ctx, hashPart)
	if err != nil {
		return nil, err
	}
	if stored {
		return g.renderNarInfo(ctx, hashPart)
	}
	return g.narInfoText(info, damages), nil
}

// getRunning answers with a NAR as an upstream sends it now, or did a while ago. It returns
// false if there is none. Such bytes go before those that the store makes: a client that
// has begun with them must be able to go on.
func (g *Gateway) getRunning(w *response, r *http.Request, res resource) (bool, error) {
	p := g.puller(r.Context())
	if p == nil {
		return false, nil
	}
	n, err := p.Running(r.Context(), res.id)
	if n == nil {
		return err != nil, err
	}
	defer n.Close()
	return true, g.servePulled(w, r, n)
}

// getUpstreamNAR answers with a NAR that the store does not have, which notHere says.
// Uploads ask by HEAD whether they can save the body: then nobody is asked.
func (g *Gateway) getUpstreamNAR(w *response, r *http.Request, res resource, notHere error) error {
	p := g.puller(r.Context())
	if p == nil {
		return notHere
	}
	open := p.NAR
	if r.Method == http.MethodHead {
		open = p.Head
	}
	n, err := open(r.Context(), res.id)
	if err != nil {
		return err
	}
	defer n.Close()
	return g.servePulled(w, r, n)
}

func (g *Gateway) servePulled(w *response, r *http.Request, n *pull.NAR) error {
	cache := g.cache.forever
	if !n.Verified || n.Local && r.Header["Range"] != nil {
		cache = cacheNever
	}
	if n.Size < 0 {
		return g.serveStream(w, r, narType, cache, func(ctx context.Context, w io.Writer) error {
			return n.WriteTo(ctx, w, 0, -1)
		})
	}
	return g.serveNAR(w, r, &content{size: n.Size, etag: n.ETag, typ: narType, cache: cache, write: n.WriteTo}, n.NarSize)
}

// serveStream answers with what has no known length, and therefore no ranges.
func (g *Gateway) serveStream(w *response, r *http.Request, typ, cache string, write func(context.Context, io.Writer) error) error {
	h := w.Header()
	h.Set("Content-Type", typ)
	h.Set("Cache-Control", cache)
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	body := &body{w: w, status: http.StatusOK}
	err := write(r.Context(), body)
	if err == nil && w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return err
}

// getUpstreamFile answers with a small file that the store does not have, which notHere
// says. Logs are stored. Listings and realisations are not: nobody vouches for them, and
// the store makes listings itself once it has the NAR.
func (g *Gateway) getUpstreamFile(w *response, r *http.Request, res resource, notHere error) error {
	p := g.puller(r.Context())
	if p == nil {
		return notHere
	}
	body, keep, err := p.File(r.Context(), res.name)
	if err != nil {
		return err
	}
	defer body.Close()
	src := &limited{r: body, limit: g.cfg.MaxFile, left: g.cfg.MaxFile, close: func() {}}
	if keep && res.kind == kindLog {
		if _, err := g.store.PutFile(r.Context(), res.name, src); err != nil && !errors.Is(err, chunkstore.ErrConflict) {
			return fmt.Errorf("%s, from upstream: %w: %v", res.name, pull.ErrFailed, err)
		}
		f, err := g.store.File(r.Context(), res.name)
		if err != nil {
			return err
		}
		return g.serveFile(w, r, res, f)
	}
	return g.serveStream(w, r, fileType(res.kind), g.cache.short, func(_ context.Context, w io.Writer) error {
		if _, err := io.Copy(w, src); err != nil {
			return fmt.Errorf("%s, from upstream: %w: %v", res.name, pull.ErrFailed, err)
		}
		return nil
	})
}
