// Package pull gets from upstreams what a store lacks. It checks the signatures of
// narinfos; and a NAR is stored while clients read it, who get its last byte when it is
// known to be what the narinfo says.
package pull

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/semaphore"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// An Upstream is a source, and what is made of it.
type Upstream struct {
	upstream.Source
	// Keys are those of which one must have signed a path. Without keys all is trusted.
	Keys []narinfo.PublicKey
	// Keep has what is pulled stored. Without it each client's download is one of the
	// upstream's.
	Keep bool
	// Sign has narinfos signed, after the check, by these keys.
	Sign []narinfo.PrivateKey
	// Local says that the source answers as fast as a memory of its answers would, and
	// that a NAR of it from the start on only ends if it has its hash. What it says is
	// not remembered, and as many clients may read from it as it lets.
	Local bool
	// NegativeCache is how long what is not there is not asked for again; default 10 min.
	NegativeCache time.Duration
	// AbsentWhenUnreachable has the upstream count as one that has nothing while nobody
	// can know what it has. By default what nobody else has is an error then.
	AbsentWhenUnreachable bool
}

// Config are the settings of a Puller. Zero values mean the defaults.
type Config struct {
	// Upstreams are asked in this order.
	Upstreams []Upstream
	// Dir is the directory for NARs as they came in, which have no names there. It is on
	// the disk of the store's state.
	Dir string
	// MaxPulls is how many NARs are fetched at a time, and how many pass through without
	// being stored; default 32. Others wait.
	MaxPulls int
	// Cache bounds, in bytes, the NARs in Dir that nobody reads now; default 2 GiB.
	Cache int64
	// Via is what the upstreams add to the header Via, of this Puller only. See NewVia.
	Via string
	// Log takes what an operator should know; default slog.Default().
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	if c.MaxPulls == 0 {
		c.MaxPulls = 32
	}
	if c.Cache == 0 {
		c.Cache = 2 << 30
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// ErrFailed is wrapped where it is not known whether an upstream has something, or where
// it has and cannot deliver it.
var ErrFailed = errors.New("upstream failed")

// A Puller pulls for one store. Its methods may be called concurrently. Their errors wrap
// chunkstore.ErrNotFound where no upstream has what they are about, and ErrFailed else.
type Puller struct {
	store    *chunkstore.Store
	storeDir string
	cfg      Config
	log      *slog.Logger
	sources  []*source

	paths *otter.Cache[string, *path] // by hash part: known here, not stored
	files *otter.Cache[string, *path] // the same, by name of the NAR

	ctx     context.Context // of fetches, until Close
	stop    context.CancelFunc
	running sync.WaitGroup
	slots   *semaphore.Weighted // of fetches
	passing *semaphore.Weighted // of what is not stored
	opening *semaphore.Weighted // of small files
	proving sync.Mutex          // held by who decodes a NAR that cannot be stored

	mu      sync.Mutex
	closed  bool
	fetches map[string]*fetch // by name: those that run, and those whose file is still there
	gone    *otter.Cache[string, struct{}]
}

const (
	memory    = 16 << 20 // bytes of paths, and again of files
	pathAge   = time.Hour
	goneCount = 10_000 // names
	goneAge   = time.Hour
)

// New returns a Puller. The store stays the caller's to close, after the Puller.
func New(store *chunkstore.Store, cfg Config) (*Puller, error) {
	cfg.setDefaults()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory for pulled NARs: %w", err)
	}
	p := &Puller{
		store: store, storeDir: store.Repository().StoreDir, cfg: cfg, log: cfg.Log,
		paths: newPathCache(), files: newPathCache(), fetches: map[string]*fetch{},
		slots: semaphore.NewWeighted(int64(cfg.MaxPulls)), passing: semaphore.NewWeighted(int64(cfg.MaxPulls)),
		opening: semaphore.NewWeighted(maxOpen),
		gone: otter.Must(&otter.Options[string, struct{}]{
			MaximumSize: goneCount, ExpiryCalculator: otter.ExpiryWriting[string, struct{}](goneAge),
		}),
	}
	for _, u := range cfg.Upstreams {
		p.sources = append(p.sources, newSource(u, p.log))
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p, nil
}

// Close breaks off fetches, waits for them, and closes sources that can be closed. Nothing
// may be asked any more.
func (p *Puller) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.running.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.fetches {
		p.remove(f)
	}
	for _, s := range p.sources {
		if c, ok := s.Source.(io.Closer); ok {
			if err := c.Close(); err != nil {
				p.log.Error("closing an upstream failed", "upstream", s.Name(), "err", err)
			}
		}
	}
}

// NewVia returns what tells one gateway's requests from all others'.
func NewVia() string { return viaPrefix + rand.Text()[:8] }

// viaPrefix is how it begins, by RFC 9110, section 7.6.3.
const viaPrefix = "1.1 dedupd-"

// Sent says whether ctx is that of a request on behalf of one by this Puller, as
// upstream.WithVia tells.
func (p *Puller) Sent(ctx context.Context) bool {
	return p.cfg.Via != "" && strings.Contains(upstream.Via(ctx), p.cfg.Via)
}

// Forwarded says whether ctx is that of a request on behalf of one by any Puller.
func Forwarded(ctx context.Context) bool { return strings.Contains(upstream.Via(ctx), viaPrefix) }

// first puts a question about name to one upstream after another, until one answers it.
func (p *Puller) first(ctx context.Context, name string, question func(*source) error) error {
	var failed []error
	for _, s := range p.sources {
		err := s.ask(name, func() error { return question(s) })
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, upstream.ErrNotFound), s.AbsentWhenUnreachable:
		default:
			failed = append(failed, err)
		}
	}
	if failed != nil {
		return fmt.Errorf("%w: %v", ErrFailed, errors.Join(failed...))
	}
	return fmt.Errorf("%s, here and upstream: %w", name, chunkstore.ErrNotFound)
}

// File opens a small file of the first upstream that has it, such as a log, decoded, and
// says whether it is to be stored. How much of it is read is for the caller to bound. Few
// are open at a time; others wait.
func (p *Puller) File(ctx context.Context, name string) (body io.ReadCloser, keep bool, err error) {
	if err := p.opening.Acquire(ctx, 1); err != nil {
		return nil, false, err
	}
	err = p.first(ctx, name, func(s *source) error {
		body, err = s.File(ctx, name)
		keep = s.Keep
		return err
	})
	if err != nil {
		p.opening.Release(1)
		return nil, false, err
	}
	return &openFile{body, p}, keep, nil
}

// maxOpen is how many small files are read at a time. Decoding one may take 24 MiB.
const maxOpen = 8

type openFile struct {
	io.ReadCloser
	p *Puller
}

func (f *openFile) Close() error {
	defer f.p.opening.Release(1)
	return f.ReadCloser.Close()
}
