package gateway

import (
	"context"
	"errors"
	"net/http"
)

// promised says whether the answer to a PUT is the last word on what it is about. A NAR
// and its listing are followed by a narinfo, which answers for all that came before.
func (k kind) promised() bool {
	return k == kindNarInfo || k == kindLog || k == kindRealisation
}

// waitForBucket waits, if that is wanted, until the bucket has what was just committed.
func (g *Gateway) waitForBucket(ctx context.Context) error {
	if g.cfg.AckTimeout == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.cfg.AckTimeout)
	defer cancel()
	err := g.store.WaitForBucket(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		// Not one of 5xx: those make Nix up to 2.33 send an empty body, and hang.
		return refuse(http.StatusFailedDependency,
			"this is stored on the server's disk, but not in the bucket yet, which has taken too long; it goes there as soon as that is possible: %w", err)
	}
	return err
}
