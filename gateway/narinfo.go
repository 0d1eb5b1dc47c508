package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
	"github.com/dedupd/dedupd/pull"
)

// A narInfoText is a narinfo as it is served.
type narInfoText struct {
	*text
	name    string // of the store path
	damages uint64 // Store.DamageCount before it was rendered
}

// narInfoAge is how long a rendered narinfo is remembered.
const narInfoAge = time.Minute

func newNarInfoCache(bytes int64) *otter.Cache[string, *narInfoText] {
	return otter.Must(&otter.Options[string, *narInfoText]{
		StatsRecorder:    stats.NewCounter(),
		MaximumWeight:    uint64(bytes),
		Weigher:          func(_ string, t *narInfoText) uint32 { return t.weight() },
		ExpiryCalculator: otter.ExpiryWriting[string, *narInfoText](narInfoAge),
	})
}

// narInfoType is shared by all responses, since nothing changes it.
var narInfoType = []string{"text/x-nix-narinfo"}

// getNarInfo answers by far the most requests: nothing that it does should allocate.
func (g *Gateway) getNarInfo(w *response, r *http.Request, res resource) error {
	text, err := g.narInfo(r.Context(), res.id)
	if err != nil {
		return err
	}
	h := w.Header()
	body := text.choose(h, r)
	h["Content-Type"], h["Cache-Control"], h["Content-Length"] = narInfoType, g.cache.narInfo, body.length
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	_, err = w.Write(body.body)
	return err
}

// narInfo returns the narinfo of a path.
func (g *Gateway) narInfo(ctx context.Context, hashPart string) (*narInfoText, error) {
	if text, ok := g.narInfos.GetIfPresent(hashPart); ok {
		if text.damages == g.store.DamageCount() {
			return text, nil
		}
		// Its NAR may be what was damaged. A client that is told of it does not upload it.
		g.narInfos.Invalidate(hashPart)
	}
	if pull.Forwarded(ctx) {
		// Gateways do not wait for each other's clients, who may wait for them.
		return g.loadNarInfo(ctx, hashPart)
	}
	// Others may wait for the outcome, so that it must not depend on this client.
	return g.narInfos.Get(context.WithoutCancel(ctx), hashPart, otter.LoaderFunc[string, *narInfoText](g.loadNarInfo))
}

// loadNarInfo makes the narinfo of a path that is here or upstream.
func (g *Gateway) loadNarInfo(ctx context.Context, hashPart string) (*narInfoText, error) {
	text, err := g.renderNarInfo(ctx, hashPart)
	if p := g.puller(ctx); p != nil && absent(err) {
		return g.pullNarInfo(ctx, p, hashPart)
	}
	return text, err
}

// renderNarInfo makes the narinfo of a path as it is served: with the URL of its NAR as
// zstd frames. There is no FileHash, which no Nix checks and which nobody has computed.
// (Up to 2.34, Nix wants one where it writes a narinfo that it has read, as "nix store
// sign" does: that has to be done to another store, before the upload.)
func (g *Gateway) renderNarInfo(ctx context.Context, hashPart string) (*narInfoText, error) {
	damages := g.store.DamageCount()
	info, err := g.store.NarInfo(ctx, hashPart)
	if err != nil {
		return nil, err
	}
	o, err := g.store.Object(ctx, info.NarHash)
	if errors.Is(err, chunkstore.ErrNotFound) {
		return nil, fmt.Errorf("NAR of %s: %w: %w", info.StorePath, packfile.ErrCorrupt, err)
	} else if err != nil {
		return nil, fmt.Errorf("NAR of %s: %w", info.StorePath, err)
	}
	info.URL = "nar/" + framesName(info.NarHash, o.Layout())
	info.Compression = string(compression.Zstd)
	info.FileHash = narinfo.Hash{}
	info.FileSize = uint64(o.FrameSize())
	g.signAgain(info)
	return g.narInfoText(info, damages), nil
}

func (g *Gateway) narInfoText(info *narinfo.NarInfo, damages uint64) *narInfoText {
	return &narInfoText{newText(info.Append(nil, g.storeDir)), info.StorePath.Name(), damages}
}

// putNarInfo publishes a path whose NAR has been uploaded.
func (g *Gateway) putNarInfo(w *response, r *http.Request, res resource) error {
	body, err := g.decodedBody(w, r, g.cfg.MaxNarInfo)
	if err != nil {
		return err
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	info, err := narinfo.Parse(text, g.storeDir)
	if err != nil {
		return err
	}
	if info.StorePath.HashPart() != res.id {
		return refuse(http.StatusBadRequest, "the StorePath is %s, so the narinfo belongs at /%s.narinfo", info.StorePath, info.StorePath.HashPart())
	}
	if !w.who.Covers(info.StorePath.Name()) {
		return refuse(http.StatusForbidden, "%w: %s may not write %s, only %s", access.ErrForbidden, w.who.Name, info.StorePath, strings.Join(w.who.Match, ", "))
	}
	if err := g.checkSignature(info); err != nil {
		return err
	}
	if err := g.checkFile(r, info); err != nil {
		return err
	}
	for _, key := range g.cfg.Keys {
		info.Sign(g.storeDir, key)
	}
	if err := g.store.PutNarInfo(r.Context(), info); errors.Is(err, packfile.ErrCorrupt) {
		return refuse(http.StatusConflict, "a part of the NAR is lost; upload it again: %w", err)
	} else if err != nil {
		return err
	}
	g.narInfos.Invalidate(res.id)
	for _, key := range g.cfg.Keys {
		g.log.Info("narinfo signed", "path", info.StorePath, "key", key.Name, "remote", r.RemoteAddr)
	}
	return nil
}

// checkFile checks that what a narinfo says about its NAR is true.
func (g *Gateway) checkFile(r *http.Request, info *narinfo.NarInfo) error {
	name, err := fileName(info.URL, r.Host)
	if err != nil {
		return refuse(http.StatusBadRequest, "URL %q: %w", info.URL, err)
	}
	nar, comp, err := g.namedNAR(r.Context(), name)
	if p := g.puller(r.Context()); p != nil && absent(err) {
		// The client was told that it is here, and did not upload it.
		if err := p.Ingest(r.Context(), strings.TrimPrefix(name, "nar/")); err != nil && !absent(err) {
			return err
		}
		nar, comp, err = g.namedNAR(r.Context(), name)
	}
	switch {
	case errors.Is(err, chunkstore.ErrNotFound), errors.Is(err, packfile.ErrCorrupt):
		return refuse(http.StatusBadRequest, "there is no NAR at %s; PUT it before its narinfo", name)
	case err != nil:
		return err
	case nar.hash != info.NarHash:
		return refuse(http.StatusBadRequest, "NarHash is %s, but %s holds a NAR with %s",
			narinfo.NewHash(narinfo.SHA256, info.NarHash[:]), name, narinfo.NewHash(narinfo.SHA256, nar.hash[:]))
	case uint64(nar.size) != info.NarSize:
		return refuse(http.StatusBadRequest, "NarSize is %d, but %s holds a NAR of %d bytes", info.NarSize, name, nar.size)
	case string(comp) != info.Compression:
		return refuse(http.StatusBadRequest, "Compression is %q, but %s was uploaded as %q", info.Compression, name, comp)
	}
	return nil
}

// fileName returns the name of the file that a narinfo's URL means: a URL that is
// relative to the cache, which is at the root of host, or absolute and in the cache.
func fileName(raw, host string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", errors.New("malformed")
	}
	switch {
	case u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", errors.New("must be the path of a file")
	case u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https", u.Host != "" && u.Host != host:
		return "", errors.New("is not in this cache")
	}
	name := strings.TrimPrefix(u.Path, "/")
	res, ok := parsePath("/" + name)
	if !ok || res.kind != kindNAR {
		return "", errors.New("must be nar/<file>")
	}
	return name, nil
}
