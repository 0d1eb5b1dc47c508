package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxCacheInfo is the largest nix-cache-info that can be PUT, in bytes.
const maxCacheInfo = 64 << 10

// makeCacheInfo renders nix-cache-info. All fields are there: a Priority that is absent
// counts as 0, before every other cache.
func (g *Gateway) makeCacheInfo() []byte {
	mass := 1
	if g.cfg.NoMassQuery {
		mass = 0
	}
	return fmt.Appendf(nil, "StoreDir: %s\nWantMassQuery: %d\nPriority: %d\n", g.storeDir, mass, g.cfg.Priority)
}

func (g *Gateway) getCacheInfo(w *response, r *http.Request) error {
	h := w.Header()
	h.Set("Content-Type", "text/x-nix-cache-info")
	h.Set("Cache-Control", g.cache.short)
	h.Set("Content-Length", strconv.Itoa(len(g.cacheInfo)))
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	_, err := w.Write(g.cacheInfo)
	return err
}

// putCacheInfo takes what a client sends that thinks the cache is new, and forgets it.
func (g *Gateway) putCacheInfo(w *response, r *http.Request) error {
	body, err := g.decodedBody(w, r, maxCacheInfo)
	if err != nil {
		return err
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if dir := strings.TrimSpace(value); name == "StoreDir" && dir != g.storeDir {
			return refuse(http.StatusBadRequest, "this cache is for the store directory %s, not %s", g.storeDir, dir)
		}
	}
	return nil
}
