package upstream

import (
	"context"
	"strings"
)

type viaKey struct{}

// WithVia returns a context for requests on behalf of one whose header Via had these
// values. They are passed on, so that a gateway can tell that it is asking itself.
func WithVia(ctx context.Context, values ...string) context.Context {
	via := strings.Join(values, ", ")
	if via == "" {
		return ctx
	}
	return context.WithValue(ctx, viaKey{}, via)
}

// Via returns what was given to WithVia, as one value.
func Via(ctx context.Context) string {
	via, _ := ctx.Value(viaKey{}).(string)
	return via
}

// via returns the value of the header Via of a request.
func (c *HTTP) via(ctx context.Context) string {
	before := Via(ctx)
	if before == "" || c.cfg.Via == "" {
		return before + c.cfg.Via
	}
	return before + ", " + c.cfg.Via
}
