package gateway

import (
	"container/list"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"time"
)

// connections are what is open to clients, of which there are at most max. When one more
// comes, the one goes that has been without a request for the longest time: clients that
// connect and say nothing, however many, then push out each other. Nix opens a new
// connection for one that it had kept and lost.
type connections struct {
	max int
	log *slog.Logger

	mu     sync.Mutex
	open   int
	idle   list.List // of *conn without a request, the longest first
	warned time.Time // when it was last logged that a connection had to go
}

// A conn is an open connection.
type conn struct {
	net.Conn
	all *connections

	// Of connections.mu:
	running int           // requests, of which HTTP/2 has several
	waiting *list.Element // in idle, nil while there are requests
	closed  bool
}

// add returns c as one of the connections; nil if there are too many that have requests.
func (s *connections) add(c net.Conn) *conn {
	s.mu.Lock()
	var out *conn
	full := s.open >= s.max
	if full {
		if longest := s.idle.Front(); longest != nil {
			out = longest.Value.(*conn)
			s.forget(out)
		}
	}
	var added *conn
	if s.open < s.max {
		added = &conn{Conn: c, all: s}
		added.waiting = s.idle.PushBack(added)
		s.open++
	}
	warn := full && time.Since(s.warned) > time.Minute
	if warn {
		s.warned = time.Now()
	}
	s.mu.Unlock()
	if warn {
		s.log.Warn("too many connections: those that were idle for longest are closed", "max", s.max)
	}
	if out != nil {
		out.Conn.Close()
	}
	return added
}

// forget takes c out of the count, once.
func (s *connections) forget(c *conn) {
	if c.closed {
		return
	}
	c.closed = true
	s.open--
	if c.waiting != nil {
		s.idle.Remove(c.waiting)
		c.waiting = nil
	}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.all.mu.Lock()
	c.all.forget(c)
	c.all.mu.Unlock()
	return c.Conn.Close()
}

// begin says that a request runs, until the function that it returns is called.
func (c *conn) begin() (end func()) {
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	c.running++
	if c.waiting != nil {
		c.all.idle.Remove(c.waiting)
		c.waiting = nil
	}
	return func() {
		c.all.mu.Lock()
		defer c.all.mu.Unlock()
		if c.running--; c.running == 0 && !c.closed {
			c.waiting = c.all.idle.PushBack(c)
		}
	}
}

// CloseWrite is stallConn's.
func (c *conn) CloseWrite() error { return closeWrite(c.Conn) }

// connKey is the key, in a request's context, of the conn that it came by.
type connKey struct{}

// withConn is a http.Server's ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	for {
		switch under := c.(type) {
		case *conn:
			return context.WithValue(ctx, connKey{}, under)
		case *stallConn:
			c = under.Conn
		case *tls.Conn:
			c = under.NetConn()
		default:
			return ctx
		}
	}
}
