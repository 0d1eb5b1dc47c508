package s3test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// A Fault is what a Proxy does to a request. Of its functions one is set.
type Fault struct {
	Name string
	// Before answers instead of the server, After when the server has answered.
	Before, After func(w http.ResponseWriter, r *http.Request)
	// Request changes the body on its way to the server, Response that of an answer.
	Request, Response func(body []byte) []byte
}

// Arrives says whether a server may have done what it was asked for, although its client
// does not know.
func (f *Fault) Arrives() bool { return f.After != nil || f.Response != nil }

// Faults of a network, and of a server, each of which is over at the next attempt.
var (
	ResetBefore = &Fault{Name: "reset before", Before: reset}
	ResetAfter  = &Fault{Name: "reset after", After: reset}
	StallBefore = &Fault{Name: "stall before", Before: stall}
	StallAfter  = &Fault{Name: "stall after", After: stall}
	Error500    = &Fault{Name: "500 before", Before: Status(500, "InternalError")}
	Late500     = &Fault{Name: "500 after", After: Status(500, "InternalError")}
	SlowDown    = &Fault{Name: "503", Before: Status(503, "SlowDown")}
	TooMany     = &Fault{Name: "429", Before: Status(429, "TooManyRequests")}
	Skewed      = &Fault{Name: "clock skew", Before: Status(403, "RequestTimeTooSkewed")}
	Truncated   = &Fault{Name: "truncated", Response: func(b []byte) []byte { return b[:len(b)/2] }}
	WrongUpload = &Fault{Name: "wrong upload", Request: flip}

	Transient = []*Fault{
		ResetBefore, ResetAfter, StallBefore, StallAfter, Error500, Late500, SlowDown, TooMany, Skewed, Truncated, WrongUpload,
	}
)

// WrongBytes sends other bytes of an object than the server has, which nothing below the
// checksums of packs can notice.
var WrongBytes = &Fault{Name: "wrong bytes", Response: flip}

// Revoked is the answer to credentials that are not valid any more.
var Revoked = &Fault{Name: "revoked", Before: Status(403, "InvalidAccessKeyId")}

func reset(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// stall answers nothing for as long as the client waits.
func stall(_ http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body) // or nobody would notice that the client goes
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

// Status answers with an error as S3 does.
func Status(status int, code string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as the test wants it</Message></Error>", code)
		}
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	if len(b) > 0 {
		b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
	}
	return b
}

// A Proxy stands before a server and does Faults to requests.
type Proxy struct {
	*httptest.Server
	forward *httputil.ReverseProxy

	mu     sync.Mutex
	n      int64 // requests since Set
	decide func(n int64, r *http.Request) *Fault
}

// NewProxy starts a Proxy before the server at target, which ends with the test. It does
// nothing to requests.
func NewProxy(t testing.TB, target string) *Proxy {
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{forward: &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}}
	p.Server = httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(func() {
		p.CloseClientConnections() // of those that stall
		p.Close()
	})
	return p
}

// Set has decide choose what is done to the n-th request from now on, the first being 1:
// nil is nothing. It is called for one request at a time.
func (p *Proxy) Set(decide func(n int64, r *http.Request) *Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n, p.decide = 0, decide
}

// At does f to request k from now on.
func (p *Proxy) At(k int64, f *Fault) {
	p.Set(func(n int64, _ *http.Request) *Fault {
		if n == k {
			return f
		}
		return nil
	})
}

// Requests returns how many there were since Set.
func (p *Proxy) Requests() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func (p *Proxy) next(r *http.Request) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	if p.decide == nil {
		return nil
	}
	return p.decide(p.n, r)
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	f := p.next(r)
	switch {
	case f == nil:
		p.forward.ServeHTTP(w, r)
		return
	case f.Before != nil:
		f.Before(w, r)
		return
	case f.Request != nil:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(f.Request(body)))
		p.forward.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	p.forward.ServeHTTP(rec, r)
	if f.After != nil {
		f.After(w, r)
		return
	}
	for name, values := range rec.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(rec.Code)
	if r.Method == http.MethodHead {
		return
	}
	body := rec.Body.Bytes()
	changed := f.Response(body)
	w.Write(changed)
	if len(changed) < len(body) {
		panic(http.ErrAbortHandler)
	}
}
