package bucket

import (
	"io"
	"net/http"
	"sync/atomic"
)

// Requests counts what was sent to an object store, each attempt by itself, by the kinds
// that prices are made for.
type Requests struct {
	Put    uint64 `json:"put"`
	Get    uint64 `json:"get"`
	Head   uint64 `json:"head"`
	List   uint64 `json:"list"`
	Delete uint64 `json:"delete"`
	// Failed are those of the above that had no answer, or one that blames the server or
	// the moment (408, 429, 5xx).
	Failed uint64 `json:"failed"`

	// Sent and Received are the bytes of bodies, those of failed requests and of lists
	// included.
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// Plus returns the sum of r and o.
func (r Requests) Plus(o Requests) Requests {
	return Requests{
		r.Put + o.Put, r.Get + o.Get, r.Head + o.Head, r.List + o.List, r.Delete + o.Delete, r.Failed + o.Failed,
		r.Sent + o.Sent, r.Received + o.Received,
	}
}

// Minus returns what r has more than o, an earlier count of the same.
func (r Requests) Minus(o Requests) Requests {
	return Requests{
		r.Put - o.Put, r.Get - o.Get, r.Head - o.Head, r.List - o.List, r.Delete - o.Delete, r.Failed - o.Failed,
		r.Sent - o.Sent, r.Received - o.Received,
	}
}

// RequestsOf returns what was sent so far to the object store that is b, or that is below
// wrappers with a method Unwrap() Bucket, like those of Observe. It is false for a bucket
// that counts no requests, such as a directory.
func RequestsOf(b Bucket) (Requests, bool) {
	if c, ok := find[interface{ Requests() Requests }](b); ok {
		return c.Requests(), true
	}
	return Requests{}, false
}

// Requests returns what was sent so far.
func (s *S3) Requests() Requests { return s.counts.load() }

// requestCounts are Requests for concurrent use.
type requestCounts struct {
	put, get, head, list, delete, failed, sent, received atomic.Uint64
}

func (c *requestCounts) load() Requests {
	return Requests{
		c.put.Load(), c.get.Load(), c.head.Load(), c.list.Load(), c.delete.Load(), c.failed.Load(), c.sent.Load(), c.received.Load(),
	}
}

// transport counts the requests that go through next.
func (c *requestCounts) transport(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		c.of(r).Add(1)
		if r.ContentLength > 0 {
			r = r.Clone(r.Context())
			r.Body = &countedBody{r.Body, &c.sent}
		}
		resp, err := next.RoundTrip(r)
		if err != nil || resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout {
			c.failed.Add(1)
		}
		if err == nil {
			resp.Body = &countedBody{resp.Body, &c.received}
		}
		return resp, err
	})
}

// A countedBody counts the bytes that are read of it.
type countedBody struct {
	io.ReadCloser
	bytes *atomic.Uint64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(uint64(n))
	return n, err
}

func (c *requestCounts) of(r *http.Request) *atomic.Uint64 {
	switch r.Method {
	case http.MethodPut, http.MethodPost:
		return &c.put
	case http.MethodHead:
		return &c.head
	case http.MethodDelete:
		return &c.delete
	}
	// Of a bucket, not of an object: a list, or where it is, which costs as much.
	if q := r.URL.Query(); q.Has("list-type") || q.Has("location") {
		return &c.list
	}
	return &c.get
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
