package push

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// A client writes to a cache.
type client struct {
	opts     *Options
	base     *url.URL // its path ends in a slash
	http     *http.Client
	progress *Progress

	// bulk says that the cache answers for many paths at once: it is dedupd, which has
	// each NAR also as nar/<NarHash>.nar, under whatever name it was uploaded.
	bulk bool
	// single says that it does not.
	single bool
}

func newClient(opts *Options, progress *Progress) (*client, error) {
	base, err := url.Parse(opts.URL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("%q is not a URL like https://cache.example", opts.URL)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("the URL of the cache has more than host and path: %s", base.Redacted())
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = opts.Jobs
	// A cache that refuses an upload can do so before it is sent.
	transport.ExpectContinueTimeout = 2 * time.Second
	return &client{opts: opts, base: base.JoinPath("/"), progress: progress, http: &http.Client{
		Transport: transport,
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if m := via[0].Method; m == http.MethodPut || m == http.MethodPost || len(via) > maxRedirects {
				return http.ErrUseLastResponse // a PUT would become a GET, and succeed
			}
			return nil
		},
	}}, nil
}

// A StatusError is an answer that is not what was wanted.
type StatusError struct {
	Method, Name string
	Code         int
	Message      string // what the server says, its first line
	RetryAfter   time.Duration
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s %s: %d %s", e.Method, e.Name, e.Code, http.StatusText(e.Code))
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// fatal says whether err, of an attempt or of the last one, would meet all paths: no
// rights, no room, nobody there.
func fatal(err error) bool {
	var status *StatusError
	if !errors.As(err, &status) {
		return !errors.As(err, new(*sourceError))
	}
	switch status.Code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusProxyAuthRequired, http.StatusTooManyRequests:
		return true
	}
	return status.Code >= 500
}

// transient says whether to try again.
func transient(err error) bool {
	var status *StatusError
	if !errors.As(err, &status) {
		return !errors.As(err, new(*sourceError)) && !errors.As(err, new(*tls.CertificateVerificationError))
	}
	switch status.Code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// A sourceError is about what is uploaded, not about the cache.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

const (
	// attempts take half a minute, and firstAttempts, before anything is known of the cache,
	// three seconds at most: a build may wait for them.
	attempts      = 6
	firstAttempts = 3
	longWait      = time.Minute
	maxMessage    = 1 << 10 // bytes

	maxRedirects = 10
)

// firstWait is what is waited before a second attempt, and up to as much again.
// Each further one waits twice as long. Tests have less time.
var firstWait = 500 * time.Millisecond

// retry calls fn until it succeeds, fails for good, or has failed too often.
func (c *client) retry(ctx context.Context, fn func() error) error {
	return c.retryFor(ctx, attempts, fn)
}

func (c *client) retryFor(ctx context.Context, attempts int, fn func() error) error {
	for n := 0; ; n++ {
		err := fn()
		if err == nil || ctx.Err() != nil || !transient(err) || n == attempts-1 {
			return err
		}
		wait := firstWait << n
		wait += time.Duration(rand.Int64N(int64(wait)))
		var status *StatusError
		if errors.As(err, &status) {
			wait = min(max(wait, status.RetryAfter), longWait)
		}
		if c.opts.Retried != nil {
			c.opts.Retried(err, wait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// do sends a request, and returns the body of the answer, at most limit bytes, if its
// status is 200, 201 or 204.
func (c *client) do(ctx context.Context, method, name, contentType string, body io.Reader, limit int64) ([]byte, error) {
	resp, err := c.send(ctx, method, name, contentType, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, limit))
}

// send is do with the answer, whose body the caller closes.
func (c *client) send(ctx context.Context, method, name, contentType string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(name).String(), body)
	if err != nil {
		return nil, err
	}
	if file, ok := body.(*io.SectionReader); ok {
		req.ContentLength = file.Size()
	}
	req.Header.Set("User-Agent", "dedupd")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if method == http.MethodPut {
		req.Header.Set("Expect", "100-continue")
	}
	if c.opts.Password != "" {
		req.SetBasicAuth(c.opts.User, c.opts.Password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	message, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	if strings.HasPrefix(message, "<") {
		message = "" // a page
	}
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return nil, &StatusError{method, name, resp.StatusCode, message, time.Duration(seconds) * time.Second}
}

// has says whether the cache has a file. Caches in buckets that nobody may list say
// "forbidden" of what they do not have.
func (c *client) has(ctx context.Context, name string) (bool, error) {
	header, err := c.head(ctx, name)
	return header != nil, err
}

// head returns the header of a file that the cache has, and nil if it has not.
func (c *client) head(ctx context.Context, name string) (header http.Header, err error) {
	err = c.retry(ctx, func() error {
		resp, err := c.send(ctx, http.MethodHead, name, "", nil)
		if err != nil {
			return err
		}
		header = resp.Header
		return resp.Body.Close()
	})
	var status *StatusError
	if errors.As(err, &status) && (status.Code == http.StatusNotFound || status.Code == http.StatusGone || status.Code == http.StatusForbidden) {
		return nil, nil
	}
	return header, err
}

// checkCache finds out whether there is a cache, for this store directory. One that is
// new and empty becomes one, as with Nix.
func (c *client) checkCache(ctx context.Context) error {
	const name, typ = "nix-cache-info", "text/x-nix-cache-info"
	var text []byte
	err := c.retryFor(ctx, firstAttempts, func() (err error) {
		text, err = c.do(ctx, http.MethodGet, name, "", nil, 64<<10)
		return err
	})
	var status *StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		text = fmt.Appendf(nil, "StoreDir: %s\n", c.opts.StoreDir)
		_, err = c.do(ctx, http.MethodPut, name, typ, bytes.NewReader(text), maxMessage)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.base.Redacted(), err)
	}
	for line := range strings.Lines(string(text)) {
		field, value, _ := strings.Cut(line, ":")
		if dir := strings.TrimSpace(value); field == "StoreDir" && dir != c.opts.StoreDir {
			return fmt.Errorf("%s is for the store directory %s, not %s", c.base.Redacted(), dir, c.opts.StoreDir)
		}
	}
	return nil
}

// missingURL is dedupd's query for many paths at once, and maxQuery how many it takes.
const (
	missingURL = "api/v1/missing"
	maxQuery   = 100_000
	maxReply   = 8 << 20 // bytes
)

// missing returns those of infos that the cache does not have.
func (c *client) missing(ctx context.Context, infos []*narinfo.NarInfo) ([]*narinfo.NarInfo, error) {
	hashParts := make([]string, len(infos))
	for i, info := range infos {
		hashParts[i] = info.StorePath.HashPart()
	}
	absent, err := c.absent(ctx, hashParts)
	if err != nil {
		return nil, fmt.Errorf("ask what is missing: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(infos), func(info *narinfo.NarInfo) bool { return !absent[info.StorePath.HashPart()] }), nil
}

// absent returns which paths, by their hash parts, the cache does not have.
func (c *client) absent(ctx context.Context, hashParts []string) (map[string]bool, error) {
	absent := make(map[string]bool)
	for part := range slices.Chunk(hashParts, maxQuery) {
		if c.single {
			break
		}
		names, err := c.query(ctx, part)
		var status *StatusError
		if errors.As(err, &status) && !fatal(err) || status != nil && (status.Code == http.StatusMethodNotAllowed || status.Code == http.StatusNotImplemented) {
			c.single = true // it is another kind of cache
			break
		}
		if err != nil {
			return nil, err
		}
		for _, h := range names {
			absent[h] = true
		}
	}
	if c.single {
		return c.absentEach(ctx, hashParts)
	}
	c.bulk = true
	return absent, nil
}

func (c *client) query(ctx context.Context, hashParts []string) (absent []string, err error) {
	body, err := json.Marshal(map[string][]string{"hashes": hashParts})
	if err != nil {
		return nil, err
	}
	var text []byte
	err = c.retry(ctx, func() error {
		text, err = c.do(ctx, http.MethodPost, missingURL, "application/json", bytes.NewReader(body), maxReply)
		return err
	})
	if err != nil {
		return nil, err
	}
	var reply struct {
		Missing []string `json:"missing"`
	}
	if err := json.Unmarshal(text, &reply); err != nil {
		return nil, fmt.Errorf("%s: %w", missingURL, err)
	}
	return reply.Missing, nil
}

// absentEach asks for one narinfo after the other, several at a time.
func (c *client) absentEach(ctx context.Context, hashParts []string) (map[string]bool, error) {
	there := make([]bool, len(hashParts))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.opts.Jobs)
	for i, h := range hashParts {
		group.Go(func() (err error) {
			there[i], err = c.has(ctx, h+".narinfo")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	absent := make(map[string]bool)
	for i, h := range hashParts {
		if !there[i] {
			absent[h] = true
		}
	}
	return absent, nil
}

// putNAR uploads the NAR of a path, unless the cache has it, and has info name it. It
// returns how many bytes that took.
func (c *client) putNAR(ctx context.Context, source upstream.Source, info *narinfo.NarInfo) (sent int64, err error) {
	plain := "nar/" + narinfo.EncodeNix32(info.NarHash[:]) + ".nar"
	name, comp := plain+".zst", "zstd"
	if c.bulk {
		name, comp = plain, "none"
	}
	local := *info // as the source knows it
	there, err := c.has(ctx, name)
	if err != nil {
		return 0, err
	}
	info.URL, info.Compression, info.FileHash, info.FileSize = name, comp, narinfo.Hash{}, 0
	if there {
		c.progress.BytesDone.Add(int64(info.NarSize))
		return 0, nil
	}
	info.URL, info.Compression = plain+".zst", "zstd"
	err = c.retry(ctx, func() error {
		u := &upload{progress: c.progress, hash: sha256.New()}
		err := u.put(ctx, c, source, &local, info.URL)
		sent += u.sent
		if err != nil {
			c.progress.BytesDone.Add(-u.read)
			return err
		}
		info.FileHash, info.FileSize = narinfo.NewHash(narinfo.SHA256, u.hash.Sum(nil)), uint64(u.sent)
		return nil
	})
	return sent, err
}

// An upload is one attempt to upload a NAR.
type upload struct {
	progress   *Progress
	read, sent int64
	hash       hash.Hash // of what is sent
}

func (u *upload) put(ctx context.Context, c *client, source upstream.Source, info *narinfo.NarInfo, name string) error {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	var encoding errgroup.Group
	encoding.Go(func() error {
		err := u.encode(ctx, source, info, w)
		w.CloseWithError(err)
		return err
	})
	_, err := c.do(ctx, http.MethodPut, name, "application/x-nix-nar", r, maxMessage)
	cancel()
	r.Close() // a cache may answer before it has everything
	failed := encoding.Wait()
	// What stops the source when the cache has answered is not the source's fault.
	if err == nil || errors.As(failed, new(*sourceError)) && !errors.Is(failed, context.Canceled) {
		return failed
	}
	return err
}

// encode writes the NAR of a path to w, compressed.
func (u *upload) encode(ctx context.Context, source upstream.Source, info *narinfo.NarInfo, w io.Writer) error {
	body, _, err := source.NAR(ctx, info, 0)
	if err != nil {
		return &sourceError{err}
	}
	defer body.Close()
	z, err := zstd.NewWriter(&counter{w, u}, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window))
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{z}, &reader{body, u}, make([]byte, copyBuffer))
	// An end of the frame behind half a NAR would make a file that looks whole.
	if err != nil {
		return err
	}
	return z.Close()
}

const (
	window     = 1 << 20 // bytes that the encoder remembers
	copyBuffer = 128 << 10
)

// A reader counts what is read of a NAR, and marks errors as the source's.
type reader struct {
	r io.Reader
	u *upload
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.u.read += int64(n)
	r.u.progress.BytesDone.Add(int64(n))
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}

// A counter counts and hashes what is sent.
type counter struct {
	w io.Writer
	u *upload
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.u.sent += int64(n)
	c.u.hash.Write(p[:n])
	c.u.progress.Sent.Add(int64(n))
	return n, err
}

// putNarInfo publishes a path.
func (c *client) putNarInfo(ctx context.Context, info *narinfo.NarInfo) error {
	text := info.Append(nil, c.opts.StoreDir)
	return c.retry(ctx, func() error {
		_, err := c.do(ctx, http.MethodPut, info.StorePath.HashPart()+".narinfo", "text/x-nix-narinfo", bytes.NewReader(text), maxMessage)
		return err
	})
}
