package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/dedupd/dedupd/narinfo"
)

// Dir is a binary cache in a directory, as Nix makes it at file:// URLs.
type Dir struct {
	dir, storeDir string
}

// NewDir returns the cache in dir, for the store directory of the paths there. It is
// opened with each request, so that a file system that is not mounted is not taken for a
// cache that has nothing.
func NewDir(dir, storeDir string) *Dir { return &Dir{dir, storeDir} }

// Name implements Source.
func (d *Dir) Name() string { return (&url.URL{Scheme: "file", Path: d.dir}).String() }

// NarInfo implements Source.
func (d *Dir) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	f, err := d.File(ctx, hashPart+".narinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := readNarInfo(f, hashPart, d.storeDir)
	if err != nil {
		return nil, fmt.Errorf("%s/%s.narinfo: %w", d.Name(), hashPart, err)
	}
	return info, nil
}

// NAR implements Source.
func (d *Dir) NAR(_ context.Context, info *narinfo.NarInfo, off int64) (io.ReadCloser, int64, error) {
	name, err := narFile(info)
	if err != nil {
		return nil, 0, fmt.Errorf("NAR of %s in %s: %w", info.StorePath, d.Name(), err)
	}
	f, size, err := d.open(name)
	if err != nil {
		return nil, 0, err
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		f.Close()
		return nil, 0, err
	}
	return &wholeFile{f, off, size}, size, nil
}

// narFile returns the name of the NAR of info in a cache that may be a copy: of an absolute
// URL the path, since the server that it names has served the same files.
func narFile(info *narinfo.NarInfo) (string, error) {
	u, err := url.Parse(info.URL)
	if err != nil || u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "" {
		return "", fmt.Errorf("%w: the URL %q is not in it", ErrNotFound, info.URL)
	}
	return strings.TrimPrefix(u.Path, "/"), nil
}

// File implements Source.
func (d *Dir) File(_ context.Context, name string) (io.ReadCloser, error) {
	f, _, err := d.open(name)
	if err != nil {
		return nil, err
	}
	body, err := decode("", f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s/%s: %w", d.Name(), name, err)
	}
	return body, nil
}

// List implements Lister.
func (d *Dir) List(ctx context.Context, dir string, fn func(name string, modified time.Time) error) error {
	root, err := os.OpenRoot(d.dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer root.Close()
	f, err := root.Open(cmp.Or(filepath.FromSlash(dir), "."))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: %w", d.Name(), err)
	}
	defer f.Close()
	for {
		entries, err := f.ReadDir(listStep)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("list %s/%s: %w", d.Name(), dir, err)
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := d.listEntry(ctx, dir, e, fn); err != nil {
				return err
			}
		}
	}
}

func (d *Dir) listEntry(ctx context.Context, dir string, e fs.DirEntry, fn func(name string, modified time.Time) error) error {
	name := path.Join(dir, e.Name())
	if e.IsDir() {
		if dir == "" {
			return nil
		}
		return d.List(ctx, name, fn)
	}
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is gone since
	} else if err != nil {
		return fmt.Errorf("%s: %w", d.Name(), err)
	}
	return fn(name, info.ModTime())
}

// listStep is how many entries of a directory are in memory at a time.
const listStep = 1000

// open opens a file of the cache, wherever below the directory it is.
func (d *Dir) open(name string) (*os.File, int64, error) {
	root, err := os.OpenRoot(d.dir)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer root.Close()
	name = filepath.FromSlash(strings.TrimPrefix(name, "/"))
	info, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := root.Stat("nix-cache-info"); err != nil {
			return nil, 0, fmt.Errorf("%w: %s is not a binary cache now: %w", ErrUnreachable, d.Name(), err)
		}
		return nil, 0, fmt.Errorf("%s/%s: %w", d.Name(), name, ErrNotFound)
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a file", name)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", d.Name(), err)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", d.Name(), err)
	}
	return f, info.Size(), nil
}

// A wholeFile is read up to size, and ends with an error where the file is shorter.
type wholeFile struct {
	*os.File
	off, size int64
}

func (f *wholeFile) Read(p []byte) (int, error) {
	if f.off >= f.size {
		return 0, io.EOF
	}
	n, err := f.File.Read(p[:min(int64(len(p)), f.size-f.off)])
	f.off += int64(n)
	if err == io.EOF && f.off < f.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
