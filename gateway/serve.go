package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	keepAliveTimeout = 5 * time.Minute // between requests
	maxHeader        = 64 << 10        // bytes
)

// http2 has an upload that waits for room take none from others on its connection: what
// it has sent counts for the connection until it is read, and so that has to have room for
// all streams. A client that may not upload is not waited for.
var http2 = http.HTTP2Config{
	MaxConcurrentStreams:          64,
	MaxReceiveBufferPerStream:     512 << 10,
	MaxReceiveBufferPerConnection: 64 * 512 << 10,
}

// Serve answers requests on the listeners until ctx ends or one of them fails, and
// closes them. Then it lets running requests finish, for ShutdownTimeout, cuts off what
// is left, and returns when no request runs any more: the store may be closed.
func (g *Gateway) Serve(ctx context.Context, listeners ...net.Listener) error {
	return g.serve(ctx, g, listeners...)
}

// ServeAdmin is Serve for AdminHandler.
func (g *Gateway) ServeAdmin(ctx context.Context, listeners ...net.Listener) error {
	return g.serve(ctx, g.AdminHandler(), listeners...)
}

func (g *Gateway) serve(ctx context.Context, h http.Handler, listeners ...net.Listener) error {
	var running gate
	open := &connections{max: g.cfg.MaxConnections, log: g.log}
	cut, cutOff := context.WithCancel(context.WithoutCancel(ctx))
	defer cutOff()
	srv := &http.Server{
		Handler:           running.handler(h),
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(cut, cutKey{}, cut) },
		ConnContext:       withConn,
		ReadHeaderTimeout: g.cfg.HeaderTimeout,
		IdleTimeout:       keepAliveTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelWarn),
		TLSConfig:         g.cfg.TLS.Clone(), // the server changes it
		HTTP2:             &http2,
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error {
			serve := srv.Serve
			if g.cfg.TLS != nil && l.Addr().Network() != "unix" {
				serve = func(l net.Listener) error { return srv.ServeTLS(l, "", "") }
			}
			if err := serve(stallListener{l, open, g.stallTimeout}); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.ShutdownTimeout)
		defer cancel()
		if err := srv.Shutdown(deadline); err != nil {
			g.log.Warn("cutting off requests that did not finish in time", "timeout", g.cfg.ShutdownTimeout)
			srv.Close()
			cutOff()
		}
		running.close()
		return nil
	})
	return group.Wait()
}

// cutKey is the key, in a request's context, of one that ends when the request is cut off.
type cutKey struct{}

// untilCutOff returns a context that does not end when a client leaves, only when the
// server cuts off what still runs: an upload may wait for room, not for its client.
func untilCutOff(ctx context.Context) (context.Context, context.CancelFunc) {
	free, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cut, ok := ctx.Value(cutKey{}).(context.Context)
	if !ok { // not served by Serve
		return free, cancel
	}
	stop := context.AfterFunc(cut, cancel)
	return free, func() {
		stop()
		cancel()
	}
}

// A gate counts the requests that run, since http.Server forgets those whose connections
// it has cut off.
type gate struct {
	mu     sync.RWMutex // held for reading by every request
	closed bool
}

func (g *gate) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.RLock()
		defer g.mu.RUnlock()
		if g.closed {
			panic(http.ErrAbortHandler)
		}
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			defer c.begin()()
		}
		next.ServeHTTP(w, r)
	})
}

// close waits for requests that run, and turns away those that come.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// stallTimeout is how long a client may take next to nothing. It is short while others
// wait for the memory that holds what it does not take.
func (g *Gateway) stallTimeout() time.Duration {
	if g.store.ReadersWait() {
		return min(g.cfg.IdleTimeout, crowdedTimeout)
	}
	return g.cfg.IdleTimeout
}

const crowdedTimeout = 2 * time.Second

// A stallListener drops clients that do not take what they are sent.
type stallListener struct {
	net.Listener
	open    *connections
	timeout func() time.Duration
}

func (l stallListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if added := l.open.add(c); added != nil {
			return &stallConn{added, l.timeout}, nil
		}
		c.Close()
	}
}

// A stallConn is a net.Conn on which a write makes progress within the timeout. A
// http.Server can only limit the time of a whole response, and a slow client may well
// take an hour over a large one.
type stallConn struct {
	net.Conn
	timeout func() time.Duration
}

const (
	// writeStep is how many bytes are written at a time.
	writeStep = 128 << 10
	// minProgress is how many of them a client has to take within the timeout.
	minProgress = 16 << 10
)

func (c *stallConn) Write(p []byte) (done int, err error) {
	var waited time.Duration // since there was progress, which comes to
	progress := 0
	for {
		wait := min(c.timeout(), crowdedTimeout) // it may have become short meanwhile
		if err := c.SetWriteDeadline(time.Now().Add(wait)); err != nil {
			return done, err
		}
		n, err := c.Conn.Write(p[done:min(done+writeStep, len(p))])
		done += n
		switch {
		case done == len(p), err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return done, err
		case err == nil || progress+n >= minProgress:
			waited, progress = 0, 0
		case waited+wait >= c.timeout():
			return done, err
		default:
			waited, progress = waited+wait, progress+n
		}
	}
}

// CloseWrite is what http.Server looks for, to let a client that is still sending read
// why it was refused.
func (c *stallConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
