package gateway

import "net/http"

// getPage answers with what people look at. In a browser a private cache asks for a
// password, which is a token.
func (g *Gateway) getPage(w *response, r *http.Request) error {
	if g.cfg.Site == nil {
		return refuse(http.StatusNotFound, "a binary cache has nothing at this URL")
	}
	return g.cfg.Site.Serve(w, r, w.who)
}
