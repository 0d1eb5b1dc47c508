package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/dedupd/dedupd/narinfo"
)

// NAR implements Source. Where the server has ranges, the body goes on by itself after a
// connection broke.
func (c *HTTP) NAR(ctx context.Context, info *narinfo.NarInfo, off int64) (io.ReadCloser, int64, error) {
	u, err := c.base.Parse(info.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, 0, fmt.Errorf("NAR of %s at %s: the URL %q is no place to get it from", info.StorePath, c.Name(), info.URL)
	}
	b := &narBody{cache: c, ctx: ctx, url: u, off: off, size: -1}
	if err := c.retry(ctx, b.open); err != nil {
		return nil, 0, err
	}
	return b, b.size, nil
}

// maxResumes is how often one NAR is gone on with.
const maxResumes = 20

// A narBody is the body of a NAR.
type narBody struct {
	cache *HTTP
	ctx   context.Context
	url   *url.URL

	off    int64  // of the next byte
	size   int64  // of the whole, or -1
	etag   string // strong, or ""
	ranges bool   // the server has them
	body   io.ReadCloser

	resumes int   // so far
	failed  int   // without a byte since
	err     error // for the next Read
}

// open asks for the file from off on.
func (b *narBody) open() error {
	header := http.Header{"Accept-Encoding": {"identity"}}
	if b.off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
		if b.etag != "" {
			header.Set("If-Range", b.etag)
		}
	}
	resp, err := b.cache.get(b.ctx, b.cache.large, b.url, header)
	if err != nil {
		return err
	}
	if err := b.take(resp); err != nil {
		resp.Body.Close()
		return fmt.Errorf("%s: %w", b.url.Redacted(), err)
	}
	return nil
}

// take makes resp's body the one that is read.
func (b *narBody) take(resp *http.Response) error {
	start, size := int64(0), resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		var ok bool
		if start, size, ok = parseContentRange(resp.Header.Get("Content-Range")); !ok || start != b.off {
			return fmt.Errorf("asked for bytes from %d on, got %q", b.off, resp.Header.Get("Content-Range"))
		}
	}
	coding := resp.Header.Get("Content-Encoding")
	encoded := coding != "" && !strings.EqualFold(coding, "identity")
	if encoded {
		size = -1
	}
	etag := resp.Header.Get("Etag")
	if b.size >= 0 && size != b.size || b.etag != "" && etag != b.etag {
		return errors.New("the file has changed in the middle of the download")
	}
	body := resp.Body
	if encoded {
		if start > 0 {
			return fmt.Errorf("a part of a body in Content-Encoding %q", coding)
		}
		var err error
		if body, err = decode(coding, body); err != nil {
			return err
		}
	}
	if _, err := io.CopyN(io.Discard, body, b.off-start); err != nil {
		return fmt.Errorf("skip %d bytes: %w", b.off-start, err)
	}
	b.body, b.size = body, size
	if strings.HasPrefix(etag, `"`) {
		b.etag = etag
	}
	b.ranges = !encoded && (resp.StatusCode == http.StatusPartialContent || resp.Header.Get("Accept-Ranges") == "bytes")
	return nil
}

// parseContentRange parses "bytes <first>-<last>/<size>"; size is -1 for "*".
func parseContentRange(s string) (first, size int64, ok bool) {
	s, isBytes := strings.CutPrefix(s, "bytes ")
	from, s, hasLast := strings.Cut(s, "-")
	_, of, hasSize := strings.Cut(s, "/")
	first, err := strconv.ParseInt(from, 10, 64)
	size = -1
	if err == nil && of != "*" {
		size, err = strconv.ParseInt(of, 10, 64)
	}
	return first, size, isBytes && hasLast && hasSize && err == nil && first >= 0 && size >= -1
}

func (b *narBody) Read(p []byte) (int, error) {
	for b.err == nil {
		n, err := b.body.Read(p)
		if n > 0 {
			b.off, b.failed = b.off+int64(n), 0
		}
		switch {
		case err == io.EOF && b.size >= 0 && b.off != b.size:
			b.err = b.resume(io.ErrUnexpectedEOF)
		case err == io.EOF:
			b.err = io.EOF
		case err != nil:
			b.err = b.resume(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// resume goes on after err, if that is possible.
func (b *narBody) resume(err error) error {
	err = fmt.Errorf("%s: after %d bytes of %d: %w", b.url.Redacted(), b.off, b.size, err)
	for b.ranges && b.ctx.Err() == nil && b.failed < tries && b.resumes < maxResumes {
		b.body.Close()
		b.resumes++
		if backOff(b.ctx, b.failed) != nil {
			break
		}
		b.failed++
		again := b.open()
		if again == nil {
			return nil
		}
		if !transient(again) {
			return fmt.Errorf("%w; and then: %w", err, again)
		}
	}
	return err
}

func (b *narBody) Close() error { return b.body.Close() }
