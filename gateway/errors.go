package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
	"github.com/dedupd/dedupd/pull"
)

// A refusal is an error that has its own status code, and a message for the client.
type refusal struct {
	code int
	err  error
}

func (e *refusal) Error() string { return e.err.Error() }

func (e *refusal) Unwrap() error { return e.err }

// refuse returns a refusal.
func refuse(code int, format string, args ...any) error {
	return &refusal{code, fmt.Errorf(format, args...)}
}

// errStalled says that a client sent nothing for the idle timeout.
var errStalled = errors.New("the client stalled")

// fail answers a request that ended with err, and logs what an operator should know. It
// returns false if there is no answer to give: the client is gone, or has a part of a
// body already. Then the connection must be cut, so that a short body is never taken
// for a whole one.
func (g *Gateway) fail(w *response, r *http.Request, err error) bool {
	code := statusOf(err, r.Method)
	// net/http cancels the context, too, when a client has ended its side only.
	cutShort := errors.Is(err, io.ErrUnexpectedEOF)
	// A PUT's own context only ends when it is cut off.
	cutOff := r.Method == http.MethodPut && errors.Is(err, context.Canceled)
	gone := w.err != nil || cutOff || errors.Is(err, errStalled) || r.Context().Err() != nil && !cutShort
	switch {
	case gone:
		g.log.Info("request was not completed", "method", r.Method, "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
	case errors.Is(err, pull.ErrFailed):
		g.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	case code >= 500 || errors.Is(err, packfile.ErrCorrupt):
		g.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	case r.Method == http.MethodPut && code != http.StatusUnauthorized:
		g.log.Warn("upload refused", "path", r.URL.Path, "status", code, "err", err)
	}
	if gone || w.status != 0 {
		return false
	}
	h := w.Header()
	for _, name := range []string{"Etag", "Accept-Ranges", "Content-Encoding", "Content-Length"} {
		h.Del(name)
	}
	if code == http.StatusServiceUnavailable {
		h.Set("Retry-After", "5")
	}
	// Whatever is wrong now may be right in a moment: an upload may be on its way.
	h.Set("Cache-Control", cacheNever)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	io.WriteString(w, message(err, code)+"\n")
	return true
}

// statusOf is the one place that decides about status codes. To Nix 404 means absent;
// 408, 429 and most of 5xx mean that it should try again; everything else is final. Up
// to 2.33 a retried PUT sends an empty body and hangs, so PUTs get these only for real
// failures, never because of load.
func statusOf(err error, method string) int {
	var refused *refusal
	var tooLarge *http.MaxBytesError
	put := method == http.MethodPut || method == http.MethodPost
	switch {
	case errors.As(err, &refused):
		return refused.code
	case errors.Is(err, index.ErrDamaged):
		// Nothing can be said of what it does not find. It is made anew at the next start.
		return http.StatusInternalServerError
	case errors.As(err, &tooLarge), errors.Is(err, compression.ErrTooMuchMemory), errors.Is(err, chunkstore.ErrTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, compression.ErrUnsupported), errors.Is(err, compression.ErrUnknown):
		return http.StatusUnsupportedMediaType
	case errors.Is(err, chunkstore.ErrConflict):
		return http.StatusConflict
	case errors.Is(err, chunkstore.ErrReadOnly):
		return http.StatusMethodNotAllowed
	case errors.Is(err, chunkstore.ErrBadUpload), errors.Is(err, narinfo.ErrCorrupt) && put, errors.Is(err, io.ErrUnexpectedEOF) && put:
		return http.StatusBadRequest
	case errors.Is(err, chunkstore.ErrNotFound), errors.Is(err, packfile.ErrCorrupt) && !put:
		// What has lost a part counts as absent, so that a plain "nix copy" brings it back.
		return http.StatusNotFound
	case errors.Is(err, chunkstore.ErrNoSpace), put && diskFull(err) && !errors.Is(err, chunkstore.ErrBroken):
		return http.StatusInsufficientStorage
	case errors.Is(err, chunkstore.ErrClosed), !put:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// diskFull says whether a write failed because there is no room for it.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// message is what the client is told. What went wrong in the store is for the log only.
func message(err error, code int) string {
	switch code {
	case http.StatusNotFound, http.StatusInternalServerError, http.StatusServiceUnavailable:
		if refused := (*refusal)(nil); errors.As(err, &refused) {
			return refused.Error()
		}
		if errors.Is(err, pull.ErrFailed) {
			return pull.ErrFailed.Error()
		}
		return strings.ToLower(http.StatusText(code))
	case http.StatusInsufficientStorage:
		if !errors.Is(err, chunkstore.ErrNoSpace) {
			return chunkstore.ErrNoSpace.Error()
		}
	case http.StatusUnsupportedMediaType:
		return fmt.Sprintf("%v; use one of %s", err, supported)
	}
	return err.Error()
}

// supported lists the compressions in which NARs can be uploaded.
const supported = "none, xz, zstd, br, gzip, lz4"

// bodyError marks errors of reading a request's body, which are the client's or its
// network's, never the store's.
func bodyError(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil, err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled), errors.As(err, &tooLarge):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", errStalled, err)
	}
	return refuse(http.StatusBadRequest, "read body: %w", err)
}
