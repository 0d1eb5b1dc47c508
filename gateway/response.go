package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/dedupd/dedupd/access"
)

// A response is an http.ResponseWriter that remembers what was answered to whom.
type response struct {
	http.ResponseWriter
	who      *access.Identity
	start    time.Time     // of the request
	kind     kind          // of what is asked for
	status   int           // 0 until the header is written
	answered time.Duration // after start, when that was
	bytes    int64         // of the body
	received int64         // of the request's
	err      error         // of writing to the client
	// stall returns how long a client of HTTP/2 may take for writeStep bytes; nil for
	// others, whose connections see to that.
	stall func() time.Duration
}

func (w *response) WriteHeader(status int) {
	w.setStatus(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) setStatus(status int) {
	w.status, w.answered = status, time.Since(w.start)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.setStatus(http.StatusOK) // as net/http does
	}
	n, err := w.write(p)
	w.bytes += int64(n)
	if err != nil {
		w.err = err
	}
	return n, err
}

// write writes p as a stallConn does, for a stream of HTTP/2: a client can take nothing
// of one while its connection goes on.
func (w *response) write(p []byte) (done int, err error) {
	if w.stall == nil {
		return w.ResponseWriter.Write(p)
	}
	ctl := http.NewResponseController(w.ResponseWriter)
	for {
		ctl.SetWriteDeadline(time.Now().Add(w.stall()))
		n, err := w.ResponseWriter.Write(p[done:min(done+writeStep, len(p))])
		done += n
		if err != nil || done == len(p) {
			return done, err
		}
	}
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Content is what a URL stands for: size bytes that never change, of which any range can
// be written.
type content struct {
	size  int64
	etag  string // strong, with its quotes
	typ   string
	cache string // Cache-Control
	// noRanges has requests for a range refused, because the bytes at this URL are not
	// the ones that an earlier response to the client may have begun with.
	noRanges bool
	write    func(ctx context.Context, w io.Writer, off, n int64) error
	coded    bool // the header has a Content-Encoding already
}

// cacheNever is the Cache-Control of what may be something else in a moment.
const cacheNever = "no-store"

// A cacheControl holds the values of Cache-Control of what is there. Where not everyone may
// read, a cache that is shared may keep nothing: it would hand it on to whoever asks next.
// (RFC 9111, section 3.5.)
type cacheControl struct {
	forever string   // never changes
	hours   string   // hardly ever
	short   string   // may change
	narInfo []string // that of narinfos, ready for a http.Header
}

func newCacheControl(public bool, narInfo time.Duration) cacheControl {
	scope := "private"
	if public {
		scope = "public"
	}
	age := func(d time.Duration) string { return fmt.Sprintf("%s, max-age=%d", scope, d/time.Second) }
	return cacheControl{
		forever: age(365*24*time.Hour) + ", immutable", hours: age(time.Hour), short: age(time.Minute),
		narInfo: []string{age(narInfo)},
	}
}

// serve answers a GET or HEAD with c as it is, or the range of it that is asked for. It
// returns how many bytes of c it has written.
//
// A Nix whose download breaks asks for the rest by "Range: bytes=N-" without If-Range,
// if Accept-Ranges was there and Content-Encoding was not, and fails if it gets a 200.
func (w *response) serve(r *http.Request, c *content) (int64, error) {
	h := w.Header()
	h.Set("Etag", c.etag)
	h.Set("Cache-Control", c.cache)
	if matchesETag(r.Header.Get("If-None-Match"), c.etag) {
		w.WriteHeader(http.StatusNotModified)
		return 0, nil
	}
	off, n, status := int64(0), c.size, http.StatusOK
	if rng, ok := requestedRange(r, c); ok {
		var satisfiable bool
		off, n, satisfiable = rng.of(c.size)
		if !satisfiable || c.noRanges {
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", c.size))
			return 0, refuse(http.StatusRequestedRangeNotSatisfiable, "there is no such range at this URL, which has %d bytes now", c.size)
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, c.size))
		status = http.StatusPartialContent
	}
	if !c.coded && !c.noRanges {
		h.Set("Accept-Ranges", "bytes")
	}
	h.Set("Content-Type", c.typ)
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	if r.Method == http.MethodHead || n == 0 {
		w.WriteHeader(status)
		return 0, nil
	}
	body := &body{w: w, status: status}
	err := c.write(r.Context(), body, off, n)
	if err == nil && body.n != n {
		err = fmt.Errorf("wrote %d bytes instead of %d", body.n, n)
	}
	if err != nil && w.status == 0 {
		h.Del("Content-Range")
	}
	return body.n, err
}

// A body writes the header of a response with its first byte, so that what fails before
// that can still be answered with an error.
type body struct {
	w      *response
	status int
	n      int64
}

func (b *body) Write(p []byte) (int, error) {
	if b.w.status == 0 {
		b.w.WriteHeader(b.status)
	}
	n, err := b.w.Write(p)
	b.n += int64(n)
	return n, err
}

// Flush sends what was written, if anything was.
func (b *body) Flush() error {
	if b.w.status == 0 {
		return nil
	}
	return http.NewResponseController(b.w).Flush()
}

// A byteRange is the one range of a Range header: from first to last, or, if first is
// negative, the last bytes.
type byteRange struct {
	first, last int64
}

// requestedRange returns the range that r asks for. There is none, and the whole is to
// be sent, if the header is malformed, has several ranges, or is about other bytes than
// those of c. (RFC 9110, sections 13.1.5 and 14.)
func requestedRange(r *http.Request, c *content) (byteRange, bool) {
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok || r.Method != http.MethodGet || len(r.Header["Range"]) != 1 {
		return byteRange{}, false
	}
	if cond := r.Header.Get("If-Range"); cond != "" && cond != c.etag {
		return byteRange{}, false
	}
	first, last, ok := strings.Cut(strings.Trim(spec, " \t"), "-")
	if !ok {
		return byteRange{}, false
	}
	rng := byteRange{first: -1, last: 1<<63 - 1}
	if first != "" {
		if rng.first, ok = parsePosition(first); !ok {
			return byteRange{}, false
		}
		if last == "" {
			return rng, true
		}
	}
	rng.last, ok = parsePosition(last)
	return rng, ok && rng.last >= rng.first
}

// parsePosition parses digits only: no sign, no comma, nothing around them.
func parsePosition(s string) (int64, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// of returns the part of size bytes that the range stands for; false if there is none.
func (rng byteRange) of(size int64) (off, n int64, ok bool) {
	if rng.first < 0 {
		n = min(rng.last, size)
		return size - n, n, n > 0
	}
	if rng.first >= size {
		return 0, 0, false
	}
	return rng.first, min(rng.last, size-1) - rng.first + 1, true
}

// matchesETag says whether an If-None-Match header names etag.
func matchesETag(header, etag string) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimSpace(tag)
		if tag == etag || tag == "*" {
			return true
		}
	}
	return false
}
