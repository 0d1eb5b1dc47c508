// Package upstream reads what others serve: binary caches over HTTP and in directories.
package upstream

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/dedupd/dedupd/narinfo"
)

// ErrNotFound is wrapped by what a source says when it does not have something. Every
// other error means that it cannot be known whether it has.
var ErrNotFound = errors.New("not found upstream")

// ErrDamaged is wrapped by the error with which the body of a NAR ends where the source itself
// finds that it is not what its narinfo says.
var ErrDamaged = errors.New("damaged upstream")

// A Source is a place that store paths can be had from. Its methods may be called
// concurrently.
type Source interface {
	// Name says in logs and metrics which source this is. It holds no password.
	Name() string
	// NarInfo returns the narinfo of the path with a hash part. Nothing in it has been
	// verified but its form.
	NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error)
	// NAR opens the file that a narinfo of this source names as its URL, from byte off
	// on. There may be nothing in info but the URL. size is that of the whole file in bytes, or -1 if it is not known. The body
	// ends with an error, never with io.EOF, where it is cut short of that.
	NAR(ctx context.Context, info *narinfo.NarInfo, off int64) (body io.ReadCloser, size int64, err error)
	// File opens a small file of the cache by its name, such as log/<derivation>, without
	// its Content-Encoding.
	File(ctx context.Context, name string) (io.ReadCloser, error)
}

// A Lister is a Source that can tell what it has.
type Lister interface {
	Source
	// List calls fn with the name of every file of the cache in dir, such as "log", and below
	// it, or of those directly in the cache, the narinfos and what is beside them, if dir is
	// "". It is no error if there is no such dir. An error of fn ends the list and is returned
	// as it is.
	List(ctx context.Context, dir string, fn func(name string, modified time.Time) error) error
}
