package simulation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// An answer is what a client has got.
type answer struct {
	status int
	header http.Header
	body   bytes.Buffer
	cut    bool // the connection was cut instead of an answer, or within it

	take int // bytes after which the client is gone; negative for never
}

var errGone = errors.New("the client is gone")

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if n, err := strconv.Atoi(a.header.Get("Content-Length")); err == nil && a.body.Len() == 0 && n < 64<<20 {
		a.body.Grow(n)
	}
	if a.take >= 0 && a.body.Len()+len(p) > a.take {
		return 0, errGone
	}
	return a.body.Write(p)
}

func (a *answer) String() string {
	if a.cut {
		return fmt.Sprintf("cut off with status %d after %d bytes", a.status, a.body.Len())
	}
	text := a.body.Bytes()
	if a.status < 400 {
		text = nil
	}
	return fmt.Sprintf("%d, %d bytes %.100q", a.status, a.body.Len(), text)
}

// failed says that there was no answer, or one that it could not be done just now.
func (a *answer) failed() bool { return a.cut || a.status >= 500 }

// An upload is a body of which a client sends so much, and then is gone.
type upload struct {
	bytes.Reader
	cut bool
}

func newUpload(b []byte, send int) *upload {
	u := &upload{cut: send < len(b)}
	u.Reset(b[:send])
	return u
}

func (u *upload) Read(p []byte) (int, error) {
	// As they come from a network.
	n, err := u.Reader.Read(p[:min(len(p), 64<<10)])
	if err == io.EOF && u.cut {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (u *upload) Close() error { return nil }

// A request is one of a client.
type request struct {
	method, name string
	body         *upload // nil for none
	length       int     // of the body, if all of it were sent
	header       map[string]string
	take         int // bytes of the answer after which the client is gone; negative for never
}

// do has the gateway answer.
func (r *run) do(ctx context.Context, q request) (a *answer) {
	a = &answer{header: http.Header{}, take: q.take}
	req, err := http.NewRequestWithContext(ctx, q.method, "http://cache/"+q.name, nil)
	must(err)
	req.RemoteAddr = "127.0.0.1:1"
	req.Body = http.NoBody
	if q.body != nil {
		req.Body, req.ContentLength = q.body, int64(q.length)
	}
	for k, v := range q.header {
		req.Header.Set(k, v)
	}
	defer func() {
		if e := recover(); e == http.ErrAbortHandler {
			a.cut = true
		} else if e != nil {
			panic(e)
		}
		r.requests.Add(1)
		if a.status == 0 && !a.cut {
			a.status = http.StatusOK // as net/http does
		}
		r.logf("%s %s: %v", q.method, q.name, a)
	}()
	r.life.gateway.ServeHTTP(a, req)
	return a
}

func (r *run) put(name string, body []byte) *answer {
	return r.do(context.Background(), request{"PUT", name, newUpload(body, len(body)), len(body), nil, -1})
}

func (r *run) fetch(method, name string, header map[string]string) *answer {
	return r.do(context.Background(), request{method, name, nil, 0, header, -1})
}
