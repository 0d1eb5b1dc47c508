// Package push puts store paths into a binary cache over HTTP: dedupd's, or any other
// that Nix could write to.
package push

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// Options say where to and how. Zero values mean the defaults.
type Options struct {
	// URL is that of the cache: http or https, without user and query.
	URL string
	// User and Password are sent, by Basic, if there is a Password.
	User, Password string
	// StoreDir is the store directory of the paths.
	StoreDir string
	// Jobs is the number of requests at a time; default 8.
	Jobs int
	// DryRun only finds out what is missing.
	DryRun bool
	// Uploaded is called after each path that was uploaded, by one goroutine at a time.
	Uploaded func(info *narinfo.NarInfo, sent int64)
	// Retried is called before something is tried again.
	Retried func(err error, wait time.Duration)
}

// A Report says what a Push has done.
type Report struct {
	DryRun   bool     `json:"dry_run"`
	Paths    int      `json:"paths"`    // all that were to be there
	Present  int      `json:"present"`  // were there
	Missing  []string `json:"missing"`  // store paths that were not
	Uploaded int      `json:"uploaded"` // are now
	Failed   []Failed `json:"failed"`
	// NARBytes is the size of the NARs that were missing, and SentBytes what was sent of
	// them, compressed.
	NARBytes  int64   `json:"nar_bytes"`
	SentBytes int64   `json:"sent_bytes"`
	Seconds   float64 `json:"seconds"`
}

// A Failed path could not be uploaded, by itself or since one that it refers to could not.
type Failed struct {
	Path  string `json:"path"`
	Error string `json:"error"`
}

// WriteText writes the report for people; of a dry run only what is missing, for programs.
func (r *Report) WriteText(w io.Writer) error {
	if r.DryRun {
		for _, p := range r.Missing {
			fmt.Fprintln(w, p)
		}
		return nil
	}
	if r.Paths == r.Present {
		_, err := fmt.Fprintf(w, "all of %d paths are there\n", r.Paths)
		return err
	}
	for _, f := range r.Failed {
		fmt.Fprintf(w, "%s: %s\n", f.Path, f.Error)
	}
	_, err := fmt.Fprintf(w, "%d paths uploaded, %d were there, %d failed: %.1f MB sent in %.1f s\n",
		r.Uploaded, r.Present, len(r.Failed), float64(r.SentBytes)/1e6, r.Seconds)
	return err
}

// Progress is how far a Push is. It may be read at any time.
type Progress struct {
	Paths, PathsDone atomic.Int64 // to upload
	Bytes, BytesDone atomic.Int64 // of NARs
	Sent             atomic.Int64 // compressed bytes
}

// errReference is why paths fail that are fine themselves.
var errReference = errors.New("a path that it refers to could not be uploaded")

// Push uploads infos, of which each is behind all that it refers to, and whose NARs source
// has, to a cache. What is there is not sent again. A path becomes visible when all is there
// that it refers to, so that whenever Push ends the cache holds whole closures, and the next
// one goes on where it was. The error says that it could not go on; what is wrong with single
// paths is in the Report.
func Push(ctx context.Context, source upstream.Source, infos []*narinfo.NarInfo, opts Options, progress *Progress) (*Report, error) {
	start := time.Now()
	if opts.Jobs == 0 {
		opts.Jobs = 8
	}
	c, err := newClient(&opts, progress)
	if err != nil {
		return nil, err
	}
	defer c.http.CloseIdleConnections()
	if err := c.checkCache(ctx); err != nil {
		return nil, err
	}
	missing, err := c.missing(ctx, infos)
	if err != nil {
		return nil, err
	}
	p := newPusher(c, source, missing)
	report := &p.report
	report.Missing, report.Failed = []string{}, []Failed{} // not null in JSON
	report.DryRun = opts.DryRun
	report.Paths, report.Present = len(infos), len(infos)-len(missing)
	for _, info := range missing {
		report.Missing = append(report.Missing, info.StorePath.Path(opts.StoreDir))
		report.NARBytes += int64(info.NarSize)
	}
	progress.Paths.Store(int64(len(missing)))
	progress.Bytes.Store(report.NARBytes)
	if !opts.DryRun {
		err = p.run(ctx, opts.Jobs)
	}
	report.SentBytes, report.Seconds = progress.Sent.Load(), time.Since(start).Seconds()
	return report, err
}

// A pusher uploads paths. NARs go up in the order of the paths, several at a time; the
// narinfo of a path follows when its NAR and the narinfos of its references are there.
type pusher struct {
	*client
	source upstream.Source
	paths  []*path

	mu     sync.Mutex // guards the states of paths, the report, and calls of Uploaded
	report Report
}

// A path is one that is to be uploaded.
type path struct {
	info    *narinfo.NarInfo // whose URL is that of the upload once that is done
	waiting int              // for so many uploads: of its NAR, and of its references
	failed  error
	users   []*path // that wait for it
	sent    int64   // bytes
}

func newPusher(c *client, source upstream.Source, infos []*narinfo.NarInfo) *pusher {
	p := &pusher{client: c, source: source}
	byName := make(map[narinfo.StorePath]*path, len(infos))
	for _, info := range infos {
		sent := *info // which is not the source's any more
		path := &path{info: &sent, waiting: 1}
		for _, ref := range info.References {
			// Itself is not there yet, and what is not in infos is in the cache.
			if used := byName[ref]; used != nil {
				used.users = append(used.users, path)
				path.waiting++
			}
		}
		byName[info.StorePath] = path
		p.paths = append(p.paths, path)
	}
	return p
}

func (p *pusher) run(ctx context.Context, jobs int) error {
	group, runCtx := errgroup.WithContext(ctx)
	group.SetLimit(jobs)
	for _, path := range p.paths {
		if runCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			err := p.upload(runCtx, path)
			if err != nil && (fatal(err) || runCtx.Err() != nil) {
				return fmt.Errorf("%s: %w", path.info.StorePath, err)
			}
			return p.settle(runCtx, path, err)
		})
	}
	return cmp.Or(group.Wait(), ctx.Err())
}

// upload uploads the NAR of a path.
func (p *pusher) upload(ctx context.Context, path *path) error {
	p.mu.Lock()
	failed := path.failed
	p.mu.Unlock()
	if failed != nil {
		return nil // not worth the bytes
	}
	sent, err := p.putNAR(ctx, p.source, path.info)
	path.sent = sent
	return err
}

// settle notes that one of the things that a path waits for is there, or has failed. If it
// was the last, the path is published, and that is one for others.
func (p *pusher) settle(ctx context.Context, first *path, err error) error {
	type event struct {
		path *path
		err  error
	}
	for todo := []event{{first, err}}; len(todo) > 0; todo = todo[1:] {
		e := todo[0]
		if !p.note(e.path, e.err) {
			continue
		}
		if e.path.failed == nil { // which nobody else touches any more
			if err := p.putNarInfo(ctx, e.path.info); err != nil && (fatal(err) || ctx.Err() != nil) {
				return fmt.Errorf("%s: %w", e.path.info.StorePath, err)
			} else {
				e.path.failed = err
			}
		}
		p.finish(e.path)
		var cause error
		if e.path.failed != nil {
			cause = errReference
		}
		for _, user := range e.path.users {
			todo = append(todo, event{user, cause})
		}
	}
	return nil
}

// note says whether that was the last that the path has waited for.
func (p *pusher) note(path *path, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	path.waiting--
	if path.failed == nil {
		path.failed = err
	}
	return path.waiting == 0
}

func (p *pusher) finish(path *path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := path.info.StorePath.Path(p.opts.StoreDir)
	if path.failed != nil {
		p.report.Failed = append(p.report.Failed, Failed{name, path.failed.Error()})
		return
	}
	p.report.Uploaded++
	p.progress.PathsDone.Add(1)
	if p.opts.Uploaded != nil {
		p.opts.Uploaded(path.info, path.sent)
	}
}
