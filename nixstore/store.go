//go:build unix

// Package nixstore reads a Nix store on this machine: what is in it from Nix's database,
// and NARs from the files themselves. It needs no daemon, and changes nothing, but that
// SQLite makes its files beside the database where it may.
package nixstore

import (
	"bytes"
	"cmp"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// Options say where a store is. Zero values mean the defaults.
type Options struct {
	// Dir is the store directory that the names of its paths begin with; default /nix/store.
	Dir string
	// Root is the directory in which the store's directories are, if it is not that of
	// this system; Nix calls such a store by the name of this directory.
	Root string
	// State is Nix's state directory, which has the database; default Root/nix/var/nix.
	// Logs are where Nix has them by default, in ../log/nix.
	State string
	// MaxDumps is how many NARs are read at a time; others wait. Each takes 0.4 MB of
	// memory. Default 128.
	MaxDumps int
	// Log takes what an operator should know; default slog.Default().
	Log *slog.Logger
}

// DefaultDir is the store directory of nearly everybody.
const DefaultDir = "/nix/store"

// A Store is a Nix store. It implements upstream.Lister.
type Store struct {
	dir   string // what names begin with
	real  string // where the files are
	logs  string
	db    *database
	dumps chan struct{} // slots
	log   *slog.Logger

	mu      sync.Mutex
	damaged map[narinfo.StorePath]time.Time // when a NAR did not have its hash
}

// Open opens a store. The error says so if there is none, or one in a format that is not
// known.
func Open(ctx context.Context, opts Options) (*Store, error) {
	s := &Store{
		dir: cmp.Or(opts.Dir, DefaultDir), dumps: make(chan struct{}, cmp.Or(opts.MaxDumps, 128)),
		log: cmp.Or(opts.Log, slog.Default()), damaged: make(map[narinfo.StorePath]time.Time),
	}
	if !filepath.IsAbs(s.dir) || filepath.Clean(s.dir) != s.dir {
		return nil, fmt.Errorf("store directory %q is not a clean absolute path", s.dir)
	}
	root, err := filepath.Abs(cmp.Or(opts.Root, "/"))
	if err != nil {
		return nil, err
	}
	s.real = filepath.Join(root, s.dir)
	state := cmp.Or(opts.State, filepath.Join(root, "nix/var/nix"))
	s.logs = filepath.Join(state, "../log/nix/drvs")
	if info, err := os.Stat(s.real); err != nil {
		return nil, fmt.Errorf("open Nix store: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("open Nix store: %s is not a directory", s.real)
	}
	if s.db, err = openDatabase(ctx, filepath.Join(state, "db")); err != nil {
		return nil, fmt.Errorf("open Nix store: %w", err)
	}
	return s, nil
}

// Close releases the database. No other method may run, and no NAR may be open.
func (s *Store) Close() error { return s.db.close() }

// Name implements upstream.Source.
func (s *Store) Name() string { return s.real }

// Dir returns the store directory that the names of paths begin with.
func (s *Store) Dir() string { return s.dir }

// damageAge is how long a path whose NAR did not have its hash counts as absent, so that
// clients look for it elsewhere. Then somebody may have repaired it.
const damageAge = 10 * time.Minute

// maxDamaged bounds how many of them are remembered.
const maxDamaged = 10_000

// markDamaged notes that the files of a path are not what the database says.
func (s *Store) markDamaged(p narinfo.StorePath) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.damaged) >= maxDamaged {
		clear(s.damaged)
	}
	s.damaged[p] = time.Now()
}

func (s *Store) isDamaged(p narinfo.StorePath) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, ok := s.damaged[p]
	if ok && time.Since(since) > damageAge {
		delete(s.damaged, p)
		ok = false
	}
	return ok
}

// NarInfo implements upstream.Source. A path is there if it is valid, its hash is known,
// and its files are not known to be gone or damaged. The signatures are those of the
// database. The URL, nar/<hash part>-<nix32 NarHash>.nar, leads back to the path.
func (s *Store) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	info, err := s.lookUp(ctx, hashPart)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", hashPart, err)
	}
	if err := s.present(info.StorePath); err != nil {
		return nil, err
	}
	return info, nil
}

// lookUp is NarInfo without a look at the files.
func (s *Store) lookUp(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	if !narinfo.IsHashPart(hashPart) {
		return nil, fmt.Errorf("no hash part: %w", upstream.ErrNotFound)
	}
	row, err := s.db.path(ctx, s.dir+"/"+hashPart+"-")
	if err != nil {
		return nil, err
	}
	return row.narInfo(s.dir)
}

// present returns an error if the files of a path cannot be served.
func (s *Store) present(p narinfo.StorePath) error {
	_, err := os.Lstat(s.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		// Or else the file system is not mounted, and nothing can be said of the path.
		if _, err := os.Stat(s.real); err != nil {
			return fmt.Errorf("store directory: %w", err)
		}
		return fmt.Errorf("%s is valid, but its files are gone: %w", p, upstream.ErrNotFound)
	}
	if err == nil && s.isDamaged(p) {
		return fmt.Errorf("%s is valid, but its files have changed: %w", p, upstream.ErrNotFound)
	}
	return err
}

// File implements upstream.Source. There are log/<derivation>, if Nix has built it here
// and keeps logs, and <hash part>.ls.
func (s *Store) File(ctx context.Context, name string) (io.ReadCloser, error) {
	if drv, ok := strings.CutPrefix(name, "log/"); ok {
		return s.buildLog(drv)
	}
	if hashPart, ok := strings.CutSuffix(name, ".ls"); ok {
		return s.listing(ctx, hashPart)
	}
	return nil, fmt.Errorf("a Nix store has no file %q: %w", name, upstream.ErrNotFound)
}

// buildLog opens the log of a derivation. Nix keeps it as drvs/<first two characters>/<rest>,
// with .bz2 behind it unless the setting compress-build-log is off. (Nix:
// src/libstore/local-fs-store.cc.)
func (s *Store) buildLog(base string) (io.ReadCloser, error) {
	drv, err := narinfo.ParseBaseName(base)
	if err != nil || !drv.IsDerivation() {
		return nil, fmt.Errorf("log of %q, which is no derivation: %w", base, upstream.ErrNotFound)
	}
	path := filepath.Join(s.logs, base[:2], base[2:])
	f, err := os.Open(path)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open log: %w", err)
	}
	f, err = os.Open(path + ".bz2")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("log of %s: %w", drv, upstream.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{bzip2.NewReader(f), f}, nil
}

// listing makes the listing of a path. The contents of its files are not read.
func (s *Store) listing(ctx context.Context, hashPart string) (io.ReadCloser, error) {
	info, err := s.NarInfo(ctx, hashPart)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	var group errgroup.Group
	group.Go(func() error {
		_, err := dump(ctx, w, s.path(info.StorePath), math.MaxInt64)
		return w.CloseWithError(err)
	})
	l, err := nar.List(r)
	r.CloseWithError(err) // ends the dump if it is not at its end
	group.Wait()
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", info.StorePath, err)
	}
	text, err := l.MarshalJSON()
	if errors.Is(err, nar.ErrNotUTF8) {
		return nil, fmt.Errorf("%w: %w", err, upstream.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(text)), err
}

// path returns where the files of a path are.
func (s *Store) path(p narinfo.StorePath) string { return filepath.Join(s.real, p.String()) }
