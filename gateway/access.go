package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
)

// rightFor is the one place that says which right a request needs. What is not listed
// needs Read, what is nowhere included.
func (g *Gateway) rightFor(method string, res resource) access.Rights {
	switch {
	case method == http.MethodPut:
		return access.Write
	case res.kind == kindHealth, res.kind == kindReady:
		return 0 // what watches over the server has no token
	case res.kind == kindMetrics:
		return g.cfg.MetricsRight
	case res.kind == kindProfile:
		return access.Admin
	}
	return access.Read
}

// authorize returns nil if the sender of r may ask for this, and remembers in w who that
// is. All that a refused request gets is the same for every URL that needs the same right.
func (g *Gateway) authorize(w *response, r *http.Request, res resource) error {
	who, err := g.cfg.Access.Allow(r, g.rightFor(r.Method, res))
	if err == nil {
		w.who = who
		return nil
	}
	refuseBody(w, r)
	if errors.Is(err, access.ErrCredentials) {
		// Up to 2.34 Nix treats this as 403, and so as absent. Later it is an error.
		w.Header().Set("Www-Authenticate", `Basic realm="dedupd"`)
		return refuse(http.StatusUnauthorized, "%w", err)
	}
	return refuse(http.StatusForbidden, "%w", err)
}

// refuseBody has the body that follows not read, not even to throw it away.
func refuseBody(w *response, r *http.Request) {
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// covers says whether the patterns of who, if there are any, fit the path with a hash part.
// They fit no path that is not there.
func (g *Gateway) covers(ctx context.Context, who *access.Identity, hashPart string) (bool, error) {
	if !who.Limited() {
		return true, nil
	}
	text, err := g.narInfo(ctx, hashPart)
	if errors.Is(err, chunkstore.ErrNotFound) {
		return false, nil
	}
	return err == nil && who.Covers(text.name), err
}

// visible returns nil if there are no patterns for what w may be about, or res fits one.
// Otherwise it is as absent as what is not there, and so is what tells of many paths. A
// NAR can be had by whoever knows its hash, or the name of its upload, which a narinfo
// says.
func (g *Gateway) visible(ctx context.Context, w *response, res resource) error {
	if !w.who.Limited() {
		return nil
	}
	ok, err := false, error(nil)
	switch res.kind {
	case kindNarInfo, kindListing:
		ok, err = g.covers(ctx, w.who, res.id)
	case kindLog, kindRealisation, kindDebugInfo:
		ok = w.who.Covers(res.storeName())
	case kindCacheInfo, kindNAR, kindFlatNAR, kindNARListing, kindMetrics, kindHealth, kindReady, kindProfile:
		ok = true
	case kindInside:
		ok = true // for the walker to say, of each path that it comes to
	}
	if err == nil && !ok {
		return chunkstore.ErrNotFound
	}
	return err
}

// writable returns nil if the store takes uploads, and there are no patterns for what w may
// be about, or res fits one, or what is uploaded will say so.
func (g *Gateway) writable(w *response, r *http.Request, res resource) error {
	if err := g.store.Writable(); err != nil {
		w.Header().Set("Allow", "GET, HEAD")
		refuseBody(w, r)
		if g.cfg.WriterURL != "" {
			err = fmt.Errorf("%w; upload to %s", err, g.cfg.WriterURL)
		}
		return refuse(http.StatusMethodNotAllowed, "%w", err)
	}
	switch res.kind {
	case kindLog, kindRealisation, kindDebugInfo:
		if !w.who.Covers(res.storeName()) {
			return refuse(http.StatusForbidden, "%w: %s may not write /%s", access.ErrForbidden, w.who.Name, res.name)
		}
	}
	return nil
}

// storeName returns the name of the store path that a URL names: without the hash part,
// and without ".drv", so that a derivation is called as what it makes. If there is none
// it is "/", which no pattern fits.
func (res resource) storeName() string {
	_, rest, _ := strings.Cut(res.name, "/")
	base, _, _ := strings.Cut(rest, "/")
	path, err := narinfo.ParseBaseName(base)
	if err != nil {
		return "/"
	}
	return strings.TrimSuffix(path.Name(), ".drv")
}

// checkSignature returns nil if one of the trusted keys, if there are any, has signed info.
// A content address is not enough, though it would be for Nix: that the NAR has it would
// have to be checked, too.
func (g *Gateway) checkSignature(info *narinfo.NarInfo) error {
	if len(g.cfg.TrustedKeys) == 0 {
		return nil
	}
	if _, ok := info.Verify(g.storeDir, g.cfg.TrustedKeys); ok {
		return nil
	}
	var names []string
	for _, k := range g.cfg.TrustedKeys {
		names = append(names, k.Name)
	}
	return refuse(http.StatusForbidden, "%w: no signature of %s by one of the keys that this cache trusts: %s",
		access.ErrForbidden, info.StorePath, strings.Join(names, ", "))
}

// vouched returns the keys of which each signature is the gateway's word: those that
// it has, and those that it had.
func (c *Config) vouched() []narinfo.PublicKey {
	keys := slices.Clone(c.VerifyKeys)
	for _, k := range c.Keys {
		keys = append(keys, k.Public())
	}
	return keys
}

// signAgain adds the signatures of the present keys to what the gateway has signed before
// with another. It signs nothing on the word of somebody else, nor because a narinfo
// says that it was signed: what has no good signature stays as it is.
func (g *Gateway) signAgain(info *narinfo.NarInfo) {
	if len(g.vouched) < 2 || len(g.cfg.Keys) == 0 {
		return
	}
	if _, ok := info.Verify(g.storeDir, g.vouched); ok {
		for _, key := range g.cfg.Keys {
			info.Sign(g.storeDir, key)
		}
	}
}
