// Package migrate brings binary caches into a store.
//
// What comes in is what clients of the old cache had: narinfos with their signatures byte
// for byte, NARs that were checked against them, and the names of files that clients
// remember. Nothing is signed. Nothing wrong comes in, and nothing that is right is left out
// without being named.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// Options are the settings of an import. Zero values mean the defaults.
type Options struct {
	// Paths calls fn with the hash part of each path to import, or the name of another file
	// (see IsFile). Nil is for all that the source has, which must be an upstream.Lister.
	Paths func(ctx context.Context, fn func(hashPart string) error) error `json:"-"`
	// Closure has what those refer to imported as well, and so on.
	Closure bool `json:"closure"`
	// Match is a pattern, as of path.Match, for the names of the paths to import, which are
	// what follows the hash part; default all.
	Match string `json:"match"`
	// Since leaves out narinfos and files that the source has had for longer, as its list
	// says; zero for none. It is for imports without Paths.
	Since time.Time `json:"since"`
	// Keys are those of which one must have signed a path; none for taking all.
	Keys []narinfo.PublicKey `json:"keys"`
	// Sign has the SigningKeys sign what is imported: with the operator's word for it, not
	// with that of somebody who has built it.
	Sign        bool                 `json:"sign"`
	SigningKeys []narinfo.PrivateKey `json:"-"`
	// NoFiles leaves out listings, logs, realisations and debug information.
	NoFiles bool `json:"no_files"`
	// WithFiles imports the listing and the log of each imported path, if the source has them,
	// which takes two requests for each. It is for sources that cannot be listed, or are not:
	// those with Paths.
	WithFiles bool `json:"with_files"`
	// MaxFile is the size of the largest of these, in bytes; default 64 MiB.
	MaxFile int64 `json:"max_file"`
	// Jobs is the number of paths that are worked on at a time; default 16.
	Jobs int `json:"jobs"`
	// DryRun reads the narinfos of what is missing, and nothing more.
	DryRun bool `json:"dry_run"`
	// Skipped is told of what is not imported, by one goroutine at a time.
	Skipped func(Skip) `json:"-"`
	// Warn takes what an operator should know of what is imported all the same; default
	// slog.Warn.
	Warn func(msg string, args ...any) `json:"-"`
}

// maxUnreachable is the number of failures of the source, one after another, after which
// an import ends: the source is gone, and trying the rest would only fill the report.
const maxUnreachable = 50

// ErrSource is wrapped when an import has ended since its source failed all the time.
var ErrSource = errors.New("the source cannot be read")

// Import brings what the store lacks from a source. It can be called again after it has
// ended in whatever way, and goes on where it was: what the store has is not read again,
// not even its narinfo. The error says that it could not go on; what is wrong with single
// paths is told to Options.Skipped, and counted.
func Import(ctx context.Context, store Sink, source upstream.Source, opts Options, progress *Progress) (*Report, error) {
	return importWith(ctx, store, source, opts, progress, (*importer).run)
}

// importWith calls fn with an importer, and returns the report of what it did.
func importWith(ctx context.Context, store Sink, source upstream.Source, opts Options, progress *Progress, fn func(*importer, context.Context) error) (*Report, error) {
	if opts.Jobs == 0 {
		opts.Jobs = 16
	}
	if opts.MaxFile == 0 {
		opts.MaxFile = 64 << 20
	}
	if opts.Warn == nil {
		opts.Warn = slog.Warn
	}
	if _, err := path.Match(opts.Match, ""); err != nil {
		return &Report{}, fmt.Errorf("pattern %q: %w", opts.Match, err)
	}
	if !opts.Sign {
		opts.SigningKeys = nil
	} else if len(opts.SigningKeys) == 0 {
		return &Report{}, errors.New("there is no key to sign with")
	}
	im := &importer{
		store: store, source: source, opts: opts, progress: progress,
		storeDir: store.Repository().StoreDir, busy: map[chunkstore.Hash]chan struct{}{},
	}
	im.linker, _ = store.(linker)
	progress.watch(store)
	if source != nil {
		im.origin = originOf(source)
	}
	im.report = Report{DryRun: opts.DryRun, Skipped: map[Reason]int64{}}
	begun := time.Now()
	err := fn(im, ctx)
	r := &im.report
	c := progress.Counts()
	r.Paths, r.Present, r.Imported, r.NARBytes, r.ReadBytes = c.Paths, c.Present, c.Imported, c.NARBytes, c.Read
	r.Seconds = time.Since(begun).Seconds()
	return r, err
}

type importer struct {
	store    Sink
	linker   linker // the store, or nil
	origin   string // see originOf
	source   upstream.Source
	opts     Options
	progress *Progress
	storeDir string

	mu     sync.Mutex // guards what follows, and calls of Options.Skipped
	report Report
	failed int                               // of the source, one after another
	busy   map[chunkstore.Hash]chan struct{} // NARs on their way; closed when they have come
	absent [][]string                        // of each imported path the hash parts of its references that were not here
	noted  int                               // of these, with those of paths that there was no room for
}

func (im *importer) run(ctx context.Context) error {
	paths := im.opts.Paths
	if paths != nil && !im.opts.Since.IsZero() {
		return errors.New("since when the source has a path only its list says")
	}
	if paths == nil {
		lister, ok := im.source.(upstream.Lister)
		if !ok {
			return fmt.Errorf("%s cannot be listed: name the paths to import", im.source.Name())
		}
		paths = func(ctx context.Context, fn func(string) error) error {
			return im.listPaths(ctx, lister, fn)
		}
	}
	if err := walk(ctx, im.opts.Jobs, paths, im.opts.Closure, im.look, im.path); err != nil {
		return err
	}
	if err := im.files(ctx); err != nil {
		return err
	}
	return im.countIncomplete(ctx)
}

// listPaths calls fn with the hash part of every narinfo that is no older than Options.Since.
func (im *importer) listPaths(ctx context.Context, source upstream.Lister, fn func(hashPart string) error) error {
	last, inOrder := "", true
	return source.List(ctx, "", func(name string, modified time.Time) error {
		hashPart, ok := strings.CutSuffix(name, ".narinfo")
		if !ok || !narinfo.IsHashPart(hashPart) {
			return nil
		}
		inOrder, last = inOrder && last <= hashPart, hashPart
		if inOrder {
			im.progress.listed.Store(at(hashPart))
		} else {
			im.progress.listed.Store(0)
		}
		if modified.Before(im.opts.Since) {
			return nil
		}
		return fn(hashPart)
	})
}

// skip notes that something is not imported. It returns an error if there is no point in
// going on.
func (im *importer) skip(ctx context.Context, name string, reason Reason, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	im.progress.skipped.Add(1)
	im.mu.Lock()
	defer im.mu.Unlock()
	im.report.Skipped[reason]++
	if im.opts.Skipped != nil {
		im.opts.Skipped(Skip{name, reason, err.Error()})
	}
	if reason != Unreachable {
		im.failed = 0
		return nil
	}
	if im.failed++; im.failed >= maxUnreachable {
		return fmt.Errorf("%w: %d failures one after another, the last: %w", ErrSource, im.failed, err)
	}
	return nil
}

// worked notes that the source has answered.
func (im *importer) worked() {
	im.mu.Lock()
	im.failed = 0
	im.mu.Unlock()
}

// countIncomplete counts imported paths of which a reference is not here even now.
func (im *importer) countIncomplete(ctx context.Context) error {
	for _, refs := range im.absent {
		for _, hashPart := range refs {
			has, err := im.store.HasPath(ctx, hashPart)
			if err != nil {
				return err
			}
			if !has {
				im.report.Incomplete++
				break
			}
		}
	}
	return nil
}
