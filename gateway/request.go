package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/dedupd/dedupd/compression"
)

// A bodyReader reads a request's body. A client that sends nothing for the timeout ends
// it with errStalled, and so does one that is not done at the end, if there is one.
type bodyReader struct {
	r       io.Reader
	w       *response // counts what was received
	ctl     *http.ResponseController
	timeout time.Duration
	end     time.Time
	http2   bool
}

func (g *Gateway) body(w *response, r *http.Request) *bodyReader {
	return &bodyReader{r: r.Body, w: w, ctl: http.NewResponseController(w), timeout: g.cfg.IdleTimeout, http2: r.ProtoMajor == 2}
}

func (b *bodyReader) Read(p []byte) (int, error) {
	deadline := time.Now().Add(b.timeout)
	if !b.end.IsZero() && b.end.Before(deadline) {
		deadline = b.end
	}
	b.ctl.SetReadDeadline(deadline) // fails where there is no connection: in tests
	n, err := b.r.Read(p)
	b.w.received += int64(n)
	if err == io.EOF || b.http2 {
		// Or else net/http, which goes on reading to see whether the client leaves,
		// would take the deadline for that. With HTTP/2 a deadline that passes ends the
		// body, also while it is not the client who is waited for.
		b.ctl.SetReadDeadline(time.Time{})
	}
	return n, bodyError(err)
}

const (
	// maxDecoding is the number of requests whose Content-Encoding is decoded at a time,
	// and decodingMemory the bytes that each may take for it. Nix writes xz -6, zstd up
	// to a window of 8 MiB, and brotli's default.
	maxDecoding    = 4
	decodingMemory = 24 << 20
)

// decodedBody returns the body of r without its Content-Encoding, which Nix uses for
// logs, listings and narinfos if it is told to compress them. Reading more than limit
// bytes is an error. The caller closes it.
func (g *Gateway) decodedBody(w *response, r *http.Request, limit int64) (io.ReadCloser, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	typ, err := contentEncoding(r)
	if err != nil {
		return nil, err
	}
	if typ == compression.None {
		return decode(typ, g.body(w, r), limit, func() {})
	}
	if err := take(r.Context(), g.decoding); err != nil {
		return nil, err
	}
	return decode(typ, g.body(w, r), limit, func() { <-g.decoding })
}

// take waits for a slot.
func take(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// decode returns src without the compression, up to limit bytes of it. It calls done
// when it fails, or else when the caller closes what it returns.
func decode(typ compression.Type, src io.Reader, limit int64, done func()) (io.ReadCloser, error) {
	if typ == compression.None {
		return &limited{r: src, limit: limit, left: limit, close: done}, nil
	}
	d, err := compression.NewReader(typ, src, compression.Limits{MaxMemory: decodingMemory})
	if err != nil {
		done()
		return nil, badEncoding(err)
	}
	return &limited{r: d, limit: limit, left: limit, close: func() {
		d.Close()
		done()
	}}, nil
}

// contentEncoding returns the Content-Encoding of r as a compression.
func contentEncoding(r *http.Request) (compression.Type, error) {
	switch coding := strings.ToLower(strings.Join(r.Header["Content-Encoding"], ", ")); coding {
	case "", "identity":
		return compression.None, nil
	case "gzip", "x-gzip":
		return compression.Gzip, nil
	case "zstd", "br", "xz", "lz4":
		return compression.Type(coding), nil
	default:
		return "", refuse(http.StatusUnsupportedMediaType, "Content-Encoding %q", coding)
	}
}

// badEncoding marks what is wrong with an encoded body as the client's fault.
func badEncoding(err error) error {
	if errors.Is(err, compression.ErrCorrupt) {
		return refuse(http.StatusBadRequest, "%w", err)
	}
	return err
}

// A limited reader ends with a refusal after limit bytes.
type limited struct {
	r           io.Reader
	limit, left int64
	close       func()
}

func (l *limited) Read(p []byte) (int, error) {
	// One byte more than is left, to tell the end from too much.
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if int64(n) > l.left {
		n, l.left = int(l.left), 0
		return n, tooLarge(l.limit)
	}
	l.left -= int64(n)
	if err != nil && err != io.EOF {
		err = badEncoding(err)
	}
	return n, err
}

func (l *limited) Close() error {
	l.close()
	return nil
}

func tooLarge(limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "more than the %d bytes that are allowed here", limit)
}
