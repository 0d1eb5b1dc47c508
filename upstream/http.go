package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/dedupd/dedupd/narinfo"
)

// HTTPConfig are the settings of a cache at a URL. Zero values mean the defaults.
type HTTPConfig struct {
	// URL is http or https, without user, query and fragment.
	URL string
	// StoreDir is the store directory of the paths there.
	StoreDir string
	// User and Password are sent, by Basic, to the host of URL and to no other.
	User, Password string
	// Timeout is what the cache has until the header of an answer is there; default 10 s.
	Timeout time.Duration
	// IdleTimeout is what it then has until the next bytes are; default 60 s.
	IdleTimeout time.Duration
	// Via is what this process adds to the header Via of its requests. See WithVia.
	Via string
}

// ErrUnreachable is wrapped by errors that mean that a cache gave no answer, or none in
// time.
var ErrUnreachable = errors.New("upstream is unreachable")

// ErrPage is wrapped when a server has answered with a page for people.
var ErrPage = errors.New("the answer is a web page")

// A StatusError is an answer with a status code that means neither yes nor no.
type StatusError struct{ Code int }

func (e *StatusError) Error() string { return fmt.Sprintf("status %d", e.Code) }

// HTTP is a binary cache at a URL.
type HTTP struct {
	cfg  HTTPConfig
	base *url.URL // its path ends in a slash
	// small is for what is asked for often and answered at once. The number of its
	// connections is bounded; that of NARs is bounded by who asks for them.
	small, large *http.Client
	limit        *rate.Limiter
}

const (
	maxNarInfo = 4 << 20 // bytes
	smallConns = 32
	redirects  = 10
)

// NewHTTP returns the cache that cfg describes. It does not connect to it.
func NewHTTP(cfg HTTPConfig) (*HTTP, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("upstream %q: not a URL like https://cache.example", cfg.URL)
	}
	if !strings.HasSuffix(base.Path, "/") {
		base = base.JoinPath("/")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = time.Minute
	}
	c := &HTTP{cfg: cfg, base: base, limit: rate.NewLimiter(rate.Inf, 0)}
	c.small, c.large = c.client(smallConns), c.client(0)
	return c, nil
}

// Limit has requests wait for limit. It is called before anything is asked for.
func (c *HTTP) Limit(limit *rate.Limiter) { c.limit = limit }

func (c *HTTP) client(conns int) *http.Client {
	return &http.Client{
		CheckRedirect: c.checkRedirect,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: c.dial, ForceAttemptHTTP2: true, DisableCompression: true,
			MaxConnsPerHost: conns, MaxIdleConnsPerHost: smallConns, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10,
		},
	}
}

// errElsewhere is wrapped where an upstream has sent us where we do not go.
var errElsewhere = errors.New("the upstream leads elsewhere")

// checkRedirect follows redirects as Nix does, but not from https to http, where a
// password could be read.
func (c *HTTP) checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > redirects {
		return fmt.Errorf("%w: too many redirects", errElsewhere)
	}
	if r.URL.Scheme == "http" && via[0].URL.Scheme == "https" {
		return fmt.Errorf("%w: from https to %s", errElsewhere, r.URL.Redacted())
	}
	return nil
}

// dial connects to addr. Where an upstream sends us, by a redirect or a URL in a narinfo,
// which is not signed, must not be this machine, or what answers link-local addresses in a
// data centre: they trust us.
func (c *HTTP) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	proxy, _ := http.ProxyFromEnvironment(&http.Request{URL: c.base})
	if host != c.base.Hostname() && (proxy == nil || host != proxy.Hostname()) {
		d.Control = refuseLocal
	}
	return d.DialContext(ctx, network, addr)
}

func refuseLocal(_, addr string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || ip == nil || ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
		return fmt.Errorf("%w: to %s", errElsewhere, addr)
	}
	return nil
}

// Name implements Source.
func (c *HTTP) Name() string { return strings.TrimSuffix(c.base.Redacted(), "/") }

// NarInfo implements Source. What may pass by itself it tries a few times.
func (c *HTTP) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	var info *narinfo.NarInfo
	err := c.retry(ctx, func() error {
		body, err := c.file(ctx, hashPart+".narinfo")
		if err != nil {
			return err
		}
		defer body.Close()
		info, err = readNarInfo(body, hashPart, c.cfg.StoreDir)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("narinfo of %s at %s: %w", hashPart, c.Name(), err)
	}
	return info, nil
}

// readNarInfo reads the narinfo of the path with a hash part, and nothing else: not the
// page that a server shows instead, and not that of another path.
func readNarInfo(r io.Reader, hashPart, storeDir string) (*narinfo.NarInfo, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxNarInfo+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxNarInfo {
		return nil, fmt.Errorf("%w: more than %d bytes", narinfo.ErrCorrupt, maxNarInfo)
	}
	info, err := narinfo.Parse(text, storeDir)
	if err != nil {
		return nil, err
	}
	if info.StorePath.HashPart() != hashPart {
		return nil, fmt.Errorf("%w: it is that of %s", narinfo.ErrCorrupt, info.StorePath)
	}
	return info, nil
}

// File implements Source. What may pass by itself it tries a few times.
func (c *HTTP) File(ctx context.Context, name string) (body io.ReadCloser, err error) {
	err = c.retry(ctx, func() error {
		body, err = c.file(ctx, name)
		return err
	})
	return body, err
}

func (c *HTTP) file(ctx context.Context, name string) (io.ReadCloser, error) {
	u := *c.base
	u.Path, u.RawPath = u.Path+name, ""
	resp, err := c.get(ctx, c.small, &u, http.Header{})
	if err != nil {
		return nil, err
	}
	body, err := decode(resp.Header.Get("Content-Encoding"), resp.Body)
	if err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %w", u.Redacted(), err)
	}
	return body, nil
}

// Tries of one request, and what lies between the first two, on average.
const (
	tries     = 3
	retryWait = 200 * time.Millisecond
)

// retry calls try until it succeeds, or fails in a way that will stay, or too often.
func (c *HTTP) retry(ctx context.Context, try func() error) error {
	for n := range tries {
		err := try()
		if err == nil || n == tries-1 || !transient(err) {
			return err
		}
		if err := backOff(ctx, n); err != nil {
			return err
		}
	}
	panic("unreachable")
}

// backOff waits after the n-th failure, from 0 on.
func backOff(ctx context.Context, n int) error {
	wait := retryWait << n
	select {
	case <-time.After(wait/2 + rand.N(wait)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// transient says whether it is worth it to try again, right away. After a timeout it is
// not: the client waits already.
func transient(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Code == http.StatusTooManyRequests || status.Code >= 500 && status.Code != http.StatusNotImplemented
	}
	return errors.Is(err, ErrUnreachable) && !errors.Is(err, errTimeout)
}

// errTimeout is why a request is given up on that takes too long.
var errTimeout = errors.New("timeout")

// get sends a GET with a header, which it adds to. An answer whose code is not 200 or 206, or that is a page for people,
// is an error.
func (c *HTTP) get(ctx context.Context, client *http.Client, u *url.URL, header http.Header) (_ *http.Response, err error) {
	if err := c.limit.Wait(ctx); err != nil {
		return nil, err
	}
	asked := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.cfg.Timeout, func() { cancel(errTimeout) })
	defer func() {
		if err != nil {
			timer.Stop()
			cancel(nil)
			err = fmt.Errorf("%s: %w", u.Redacted(), err)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("User-Agent", "dedupd")
	if via := c.via(ctx); via != "" {
		req.Header.Set("Via", via)
	}
	if c.cfg.User != "" && u.Scheme == c.base.Scheme && u.Host == c.base.Host {
		req.SetBasicAuth(c.cfg.User, c.cfg.Password)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, explain(asked, ctx, errors.Unwrap(err)) // what it wraps it in is the URL
	}
	if err := checkAnswer(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	resp.Body = &timedBody{resp.Body, asked, ctx, cancel, timer, c.cfg.IdleTimeout}
	return resp, nil
}

// explain returns what err means of a request that asked began and ctx is the context of.
func explain(asked, ctx context.Context, err error) error {
	switch {
	case asked.Err() != nil:
		return context.Cause(asked)
	case errors.Is(err, errElsewhere):
		return err
	case context.Cause(ctx) == errTimeout:
		return fmt.Errorf("%w: %w", ErrUnreachable, errTimeout)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// checkAnswer returns an error unless resp is what was asked for. 403 is what buckets say
// of objects that are not there to those who may not list them.
func checkAnswer(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden:
		return fmt.Errorf("%w: status %d", ErrNotFound, resp.StatusCode)
	default:
		return &StatusError{resp.StatusCode}
	}
	if typ := resp.Header.Get("Content-Type"); strings.HasPrefix(typ, "text/html") {
		return ErrPage
	}
	return nil
}

// A timedBody is the body of an answer. A read that takes too long ends it.
type timedBody struct {
	io.ReadCloser
	asked, ctx context.Context
	cancel     context.CancelCauseFunc
	timer      *time.Timer // cancels ctx
	idle       time.Duration
}

func (b *timedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.idle)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF {
		err = explain(b.asked, b.ctx, err)
	}
	return n, err
}

func (b *timedBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}
