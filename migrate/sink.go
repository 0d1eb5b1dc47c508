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
