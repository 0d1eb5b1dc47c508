package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixexport"
	"github.com/dedupd/dedupd/packfile"
)

// ExportStream writes what nix-store --import reads: each path behind all that it refers to.
// Of opts, Paths, Closure, Match, DryRun and Failed count. What a path refers to and the store does not
// have, may be where the stream goes. What refers to a path that could not be exported is not
// exported either. When the error is not nil w has got a stream without an end, which Nix
// refuses.
func ExportStream(ctx context.Context, store *chunkstore.Store, w io.Writer, opts ExportOptions, progress *ExportProgress) (*ExportReport, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	begun := time.Now()
	if opts.DryRun {
		w = io.Discard
	}
	e := &streamExporter{
		exporter: exporter{store: store, opts: opts, progress: progress, storeDir: store.Repository().StoreDir},
		done:     map[string]bool{},
	}
	e.stream = nixexport.NewWriter(w, e.storeDir)
	err := e.run(ctx)
	report := progress.Report()
	report.DryRun, report.Seconds = opts.DryRun, time.Since(begun).Seconds()
	return &report, err
}

type streamExporter struct {
	exporter
	stream *nixexport.Writer
	// done has the hash parts of paths that were met, and whether others may refer to them. A
	// path that is only begun is among them: it may refer to itself, and no two to each other.
	done map[string]bool
	// only has the hash parts of the paths to export, if these are not whole closures.
	only map[string]bool
}

func (e *streamExporter) run(ctx context.Context) error {
	if err := e.checkPaths(ctx); err != nil {
		return err
	}
	paths := e.opts.Paths
	if len(paths) == 0 {
		err := e.store.EachPath(ctx, func(p narinfo.StorePath, _ int64) error {
			paths = append(paths, p.HashPart())
			return nil
		})
		if err != nil {
			return err
		}
	} else if !e.opts.Closure {
		e.only = map[string]bool{}
		for _, hashPart := range paths {
			e.only[hashPart] = true
		}
	}
	for _, hashPart := range paths {
		if err := e.path(ctx, hashPart); err != nil {
			return err
		}
	}
	return e.stream.Close()
}

// errReference is why paths are not exported that are fine themselves.
var errReference = errors.New("a path that it refers to could not be exported")

// path exports one path, behind what it refers to, unless that is done.
func (e *streamExporter) path(ctx context.Context, hashPart string) error {
	if _, met := e.done[hashPart]; met {
		return nil
	}
	e.done[hashPart] = true
	info, err := e.store.NarInfo(ctx, hashPart)
	if errors.Is(err, chunkstore.ErrNotFound) {
		e.progress.missing.Add(1)
		return nil
	} else if err != nil {
		return err
	}
	for _, ref := range info.References {
		if e.only != nil && !e.only[ref.HashPart()] {
			continue
		}
		if err := e.path(ctx, ref.HashPart()); err != nil {
			return err
		}
		if !e.done[ref.HashPart()] {
			e.done[hashPart] = false
		}
	}
	if ok, _ := path.Match(e.opts.Match, info.StorePath.Name()); !ok && e.opts.Match != "" {
		return nil
	}
	e.progress.paths.Add(1)
	if !e.done[hashPart] {
		e.fail(info, errReference)
		return nil
	}
	o, err := e.store.Object(ctx, info.NarHash)
	switch {
	case errors.Is(err, chunkstore.ErrNotFound), errors.Is(err, packfile.ErrCorrupt):
		e.done[hashPart] = false
		e.fail(info, err)
		return nil
	case err != nil:
		return err
	}
	if err := e.write(ctx, info, o); err != nil {
		return fmt.Errorf("%s: %w", info.StorePath, err)
	}
	return nil
}

func (e *streamExporter) write(ctx context.Context, info *narinfo.NarInfo, o *chunkstore.Object) error {
	if !e.opts.DryRun {
		p := &nixexport.Path{StorePath: info.StorePath, References: info.References, Deriver: info.Deriver}
		if err := e.stream.Write(p, func(w io.Writer) error { return o.WritePlain(ctx, w, 0, o.Size()) }); err != nil {
			return err
		}
		e.progress.written.Add(o.Size())
	}
	e.progress.exported.Add(1)
	e.progress.narBytes.Add(o.Size())
	return nil
}
