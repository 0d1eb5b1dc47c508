package gateway

import (
	"errors"
	"net/http"

	"github.com/dedupd/dedupd/access"
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
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		// The body that follows is not read, not even to throw it away.
		w.Header().Set("Connection", "close")
	}
	if errors.Is(err, access.ErrCredentials) {
		// Up to 2.34 Nix treats this as 403, and so as absent. Later it is an error.
		w.Header().Set("Www-Authenticate", `Basic realm="dedupd"`)
		return refuse(http.StatusUnauthorized, "%w", err)
	}
	return refuse(http.StatusForbidden, "%w", err)
}
