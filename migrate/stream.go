package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	gopath "path"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixexport"
)

// ImportStream imports what nix-store --export has written, as Import does from a cache. Each
// NAR goes into the store as it comes; its hash is computed, since a stream has none, and no
// signatures and content addresses either. What has come in whole stays when the stream ends too
// early, which is an error.
func ImportStream(ctx context.Context, store Sink, stream io.Reader, opts Options, progress *Progress) (*Report, error) {
	if opts.Paths != nil || opts.Closure || len(opts.Keys) > 0 || !opts.Since.IsZero() {
		return &Report{}, errors.New("a stream has no signatures and no dates, and cannot be asked for paths")
	}
	return importWith(ctx, store, nil, opts, progress, func(im *importer, ctx context.Context) error {
		return im.stream(ctx, &sourceReader{r: stream, read: &progress.read})
	})
}

// stream imports path after path. While one is committed the next is read.
func (im *importer) stream(ctx context.Context, src io.Reader) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(im.opts.Jobs)
	stream := nixexport.NewReader(src, im.storeDir)
	var err error
	for groupCtx.Err() == nil {
		var nar io.Reader
		if nar, err = stream.Next(); err != nil {
			break
		}
		read := make(chan error, 1)
		// It has the stream until it has read the record to its end.
		record := sync.OnceValues(func() (*nixexport.Path, error) {
			p, err := stream.Path()
			read <- err
			return p, err
		})
		group.Go(func() error {
			err := im.streamed(groupCtx, nar, record)
			if _, broken := record(); broken != nil {
				return nil // which is told below
			}
			return err
		})
		if err = <-read; err != nil {
			break
		}
	}
	if failed := group.Wait(); failed != nil {
		return failed
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != io.EOF {
		return fmt.Errorf("%w: the stream ends after %d whole paths: %w", ErrSource, im.progress.paths.Load(), err)
	}
	return im.countIncomplete(ctx)
}

var (
	errPresent  = errors.New("the store has the path")
	errUnwanted = errors.New("the path does not match")
)

// streamed imports the path whose NAR comes next, and of which record tells behind that.
func (im *importer) streamed(ctx context.Context, nar io.Reader, record func() (*nixexport.Path, error)) error {
	if im.opts.DryRun {
		size, _ := io.Copy(io.Discard, nar)
		p, err := record()
		if err != nil {
			return err
		}
		info := &narinfo.NarInfo{StorePath: p.StorePath, NarSize: uint64(size)}
		return im.settle(ctx, info, im.wanted(ctx, info))
	}
	info := new(narinfo.NarInfo)
	_, err := im.store.PutNAR(ctx, "nar/stream.nar", nar, func(f *chunkstore.File) error {
		p, err := record()
		if err != nil {
			return err
		}
		*info = narinfo.NarInfo{StorePath: p.StorePath, References: p.References, Deriver: p.Deriver, NarHash: f.Content, NarSize: uint64(f.Size)}
		plain(info)
		f.Name = info.URL
		return im.wanted(ctx, info)
	})
	p, broken := record()
	if broken != nil {
		return broken
	}
	info.StorePath = p.StorePath
	return im.settle(ctx, info, err)
}

// wanted returns nil if a path is to be imported.
func (im *importer) wanted(ctx context.Context, info *narinfo.NarInfo) error {
	if ok, _ := gopath.Match(im.opts.Match, info.StorePath.Name()); !ok && im.opts.Match != "" {
		return errUnwanted
	}
	has, err := im.store.HasPath(ctx, info.StorePath.HashPart())
	if err != nil || !has {
		return err
	}
	if !im.opts.DryRun {
		have, err := im.store.NarInfo(ctx, info.StorePath.HashPart())
		if err != nil {
			return err
		}
		if have.NarHash != info.NarHash {
			return fmt.Errorf("%s: the store has another NAR: %w", info.StorePath, chunkstore.ErrConflict)
		}
	}
	return errPresent
}

// settle publishes a path whose NAR has been taken in, or notes why that has not.
func (im *importer) settle(ctx context.Context, info *narinfo.NarInfo, err error) error {
	im.progress.paths.Add(1)
	switch {
	case errors.Is(err, errUnwanted):
		return nil
	case errors.Is(err, errPresent):
		im.progress.present.Add(1)
		return nil
	case err != nil:
		if reason := reasonOf(nil, err); reason != "" {
			return im.skip(ctx, info.StorePath.String(), reason, err)
		}
		return err
	}
	if !im.opts.DryRun {
		return im.publish(ctx, info, true)
	}
	im.progress.imported.Add(1)
	im.progress.narBytes.Add(int64(info.NarSize))
	return nil
}
