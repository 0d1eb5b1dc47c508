package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// IsFile says whether name is that of a file which a cache has beside narinfos and NARs: a
// listing, log, realisation, build trace, or debug information.
func IsFile(name string) bool {
	dir, _, nested := strings.Cut(name, "/")
	return nested && dir != "" && slices.Contains(fileDirs, dir) || isListing(name)
}

// fileDirs are where caches have files beside narinfos and NARs.
var fileDirs = []string{"", "log", "debuginfo", "realisations", "build-trace-v2"}

// files imports listings, logs, debug information and realisations, if the source can tell
// which it has.
func (im *importer) files(ctx context.Context) error {
	source, ok := im.source.(upstream.Lister)
	if !ok || im.opts.NoFiles || im.opts.DryRun || im.opts.Paths != nil {
		return nil
	}
	return each(ctx, im.opts.Jobs, func(ctx context.Context, fn func(string) error) error {
		for _, dir := range fileDirs {
			if err := source.List(ctx, dir, func(name string, modified time.Time) error {
				if dir == "" && !isListing(name) || modified.Before(im.opts.Since) {
					return nil
				}
				return fn(name)
			}); err != nil {
				return err
			}
		}
		return nil
	}, im.file)
}

// filesOf imports the listing of a path and the log of its derivation.
func (im *importer) filesOf(ctx context.Context, info *narinfo.NarInfo) error {
	if err := im.file(ctx, info.StorePath.HashPart()+".ls"); err != nil || info.Deriver.IsZero() {
		return err
	}
	return im.file(ctx, "log/"+info.Deriver.String())
}

func isListing(name string) bool {
	hashPart, ok := strings.CutSuffix(name, ".ls")
	return ok && narinfo.IsHashPart(hashPart)
}

// file imports a file without its Content-Encoding.
func (im *importer) file(ctx context.Context, name string) error {
	if im.opts.DryRun {
		return nil
	}
	if _, err := im.store.File(ctx, name); err == nil {
		return nil
	} else if !errors.Is(err, chunkstore.ErrNotFound) {
		return err
	}
	body, err := im.source.File(ctx, name)
	if errors.Is(err, upstream.ErrNotFound) {
		return nil // it was there when it was listed
	} else if undecodable(err) || errors.Is(err, upstream.ErrPage) {
		return im.skip(ctx, name, BadFile, err)
	} else if err != nil {
		return im.skip(ctx, name, Unreachable, err)
	}
	defer body.Close()
	src := &sourceReader{r: body, read: &im.progress.read}
	var text io.Reader = &limitedReader{src, im.opts.MaxFile}
	if strings.HasPrefix(name, "debuginfo/") && im.linker != nil {
		text, err = im.retarget(ctx, text)
	}
	if err == nil {
		_, err = im.store.PutFile(ctx, name, text)
	}
	switch {
	case errors.Is(err, errNoArchive):
		return im.skip(ctx, name, NoNAR, err)
	case errors.Is(err, errNoTarget):
		return im.skip(ctx, name, BadFile, err)
	case errors.Is(err, chunkstore.ErrTooLarge):
		return im.skip(ctx, name, TooLarge, err)
	case errors.Is(err, chunkstore.ErrConflict): // somebody has put another one meanwhile
		return im.skip(ctx, name, Conflict, err)
	case undecodable(src.err):
		return im.skip(ctx, name, BadFile, src.err)
	case src.err != nil:
		return im.skip(ctx, name, Unreachable, src.err)
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	}
	im.mu.Lock()
	im.report.Files++
	im.mu.Unlock()
	return nil
}

// A limitedReader fails when more than left bytes come.
type limitedReader struct {
	io.Reader
	left int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, chunkstore.ErrTooLarge
	}
	return n, err
}
