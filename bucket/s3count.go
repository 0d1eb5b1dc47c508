package bucket

import (
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
}

// Requests returns what was sent so far.
func (s *S3) Requests() Requests { return s.counts.load() }

// requestCounts are Requests for concurrent use.
type requestCounts struct {
	put, get, head, list, delete, failed atomic.Uint64
}

func (c *requestCounts) load() Requests {
	return Requests{c.put.Load(), c.get.Load(), c.head.Load(), c.list.Load(), c.delete.Load(), c.failed.Load()}
}

// transport counts the requests that go through next.
func (c *requestCounts) transport(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		c.of(r).Add(1)
		resp, err := next.RoundTrip(r)
		if err != nil || resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout {
			c.failed.Add(1)
		}
		return resp, err
	})
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
