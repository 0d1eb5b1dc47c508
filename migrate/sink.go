package migrate

import (
	"context"
	"io"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
)

// A Sink is what a cache is imported into. Its methods say and do what those of a
// chunkstore.Store do, which is one, with the same errors, and may be called concurrently.
type Sink interface {
	Repository() chunkstore.Repository
	// MaxNAR is the size of the largest NAR that it takes, in bytes.
	MaxNAR() int64
	HasPath(ctx context.Context, hashPart string) (bool, error)
	NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error)
	PutNarInfo(ctx context.Context, info *narinfo.NarInfo) error
	HasNAR(ctx context.Context, hash chunkstore.Hash, size int64) (bool, error)
	PutNAR(ctx context.Context, name string, r io.Reader, accept func(*chunkstore.File) error) (*chunkstore.File, error)
	File(ctx context.Context, name string) (*chunkstore.File, error)
	PutFile(ctx context.Context, name string, r io.Reader) (*chunkstore.File, error)
}

var _ Sink = (*chunkstore.Store)(nil)

// maxLook is how many paths a sink is asked for at once.
const maxLook = 1000

// look has a sink that can be asked for many paths at once be asked so.
func (im *importer) look(paths list) list {
	sink, ok := im.store.(interface {
		LookUp(ctx context.Context, hashParts []string) error
	})
	if !ok {
		return paths
	}
	return func(ctx context.Context, fn func(string) error) error {
		var waiting []string
		flush := func() error {
			if err := sink.LookUp(ctx, waiting); err != nil {
				return err
			}
			defer func() { waiting = waiting[:0] }()
			return listOf(waiting)(ctx, fn)
		}
		err := paths(ctx, func(hashPart string) error {
			if IsFile(hashPart) {
				return fn(hashPart)
			}
			if waiting = append(waiting, hashPart); len(waiting) < maxLook {
				return nil
			}
			return flush()
		})
		if err != nil || len(waiting) == 0 {
			return err
		}
		return flush()
	}
}
