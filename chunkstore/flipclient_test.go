package chunkstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/narinfo"
)

// A reply is what a client got.
type reply struct {
	status int
	cut    bool // the connection, instead of an end
	body   []byte
}

func (r reply) String() string {
	return fmt.Sprintf("status %d, cut %v, %d bytes %.100q", r.status, r.cut, len(r.body), r.body)
}

// ask has a handler answer as net/http does, where http.ErrAbortHandler cuts the connection.
// Any other panic is the test's end.
func ask(ctx context.Context, h http.Handler, method, url string, body []byte, header ...string) (r reply) {
	req := httptest.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	defer func() {
		if v := recover(); v != nil {
			if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(v)
			}
			r.cut = true
		}
		r.status, r.body = w.Code, w.Body.Bytes()
		if length := w.Header().Get("Content-Length"); !r.cut && length != "" && method != "HEAD" && length != strconv.Itoa(len(r.body)) {
			panic(fmt.Sprintf("%s %s: %v, and Content-Length %s", method, url, r, length))
		}
	}()
	h.ServeHTTP(w, req)
	return r
}

// A flipPath is a store path as its client knows it.
type flipPath struct {
	nar  []byte
	file string // as the NAR was uploaded
	body []byte // of file
	info *narinfo.NarInfo
}

func newFlipPath(t testing.TB, name string, nar []byte, key narinfo.PrivateKey, ext, compression string, encode func([]byte) []byte) *flipPath {
	t.Helper()
	hash := chunkstore.Hash(sha256Sum(nar))
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(hash[:20]) + "-" + name)
	if err != nil {
		t.Fatal(err)
	}
	p := &flipPath{nar: nar, body: encode(nar)}
	p.file = "/nar/" + nix32Sum(p.body) + ".nar" + ext
	p.info = &narinfo.NarInfo{
		StorePath: path, URL: p.file[1:], Compression: compression, NarHash: hash, NarSize: uint64(len(nar)),
		References: []narinfo.StorePath{path},
	}
	p.info.Sign(flipStoreDir, key)
	return p
}

func (p *flipPath) narInfoURL() string { return "/" + p.info.StorePath.HashPart() + ".narinfo" }

func (p *flipPath) plainURL() string { return "/nar/" + nix32Sum(p.nar) + ".nar" }

// push does what "nix copy" does: it asks for the narinfo, and uploads if it is absent.
func (p *flipPath) push(ctx context.Context, g *gateway.Gateway) error {
	if ask(ctx, g, "GET", p.narInfoURL(), nil).status == http.StatusOK {
		return nil
	}
	if r := ask(ctx, g, "PUT", p.file, p.body); r.status != http.StatusOK {
		return fmt.Errorf("PUT %s: %v", p.file, r)
	}
	if r := ask(ctx, g, "PUT", p.narInfoURL(), []byte(p.info.Text(flipStoreDir))); r.status != http.StatusOK {
		return fmt.Errorf("PUT %s: %v", p.narInfoURL(), r)
	}
	return nil
}

// pull does what Nix does when it substitutes the path.
func (p *flipPath) pull(ctx context.Context, g *gateway.Gateway) error {
	r := ask(ctx, g, "GET", p.narInfoURL(), nil)
	if r.status != http.StatusOK || r.cut {
		return fmt.Errorf("GET %s: %v", p.narInfoURL(), r)
	}
	info, err := narinfo.Parse(r.body, flipStoreDir)
	if err != nil {
		return err
	}
	r = ask(ctx, g, "GET", "/"+info.URL, nil)
	if r.status != http.StatusOK || r.cut {
		return fmt.Errorf("GET %s: %v", info.URL, r)
	}
	if nar, err := unzstd.DecodeAll(r.body, nil); err != nil || !bytes.Equal(nar, p.nar) {
		return fmt.Errorf("GET %s: other bytes (%v)", info.URL, err)
	}
	return nil
}

// A question is a GET, and the right answer to it.
type question struct {
	url  string
	want []byte // nil: it is absent
}

// put asks the question, or for a range of it, and says whether the answer is the right
// one. It is wrong if it is neither right nor an error.
func (q *question) put(ctx context.Context, g *gateway.Gateway, off, end int) (r reply, right, wrong bool) {
	want, status := q.want, http.StatusOK
	if want == nil {
		status = http.StatusNotFound
	}
	if end > 0 {
		r = ask(ctx, g, "GET", q.url, nil, "Range", fmt.Sprintf("bytes=%d-%d", off, end-1))
		want, status = want[off:end], http.StatusPartialContent
	} else {
		r = ask(ctx, g, "GET", q.url, nil)
	}
	switch {
	case r.cut:
		return r, false, r.status < 300 && !bytes.HasPrefix(want, r.body)
	case r.status == status:
		right = q.want == nil || bytes.Equal(r.body, want)
		return r, right, !right
	}
	failed := r.status == http.StatusNotFound || r.status == http.StatusInternalServerError || r.status == http.StatusServiceUnavailable
	return r, false, !failed
}
