//go:build unix

package nixstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// maxLinks is how many symbolic links lead to a store path at most.
const maxLinks = 40

// Resolve returns the store path that a file's path means, as Nix's commands take it: one
// in the store, or a symbolic link that leads there, such as result. Whether it is valid it
// does not say.
func (s *Store) Resolve(path string) (narinfo.StorePath, error) {
	file, err := filepath.Abs(path)
	if err != nil {
		return narinfo.StorePath{}, err
	}
	for range maxLinks {
		for _, dir := range []string{s.dir, s.real} {
			if rest, ok := strings.CutPrefix(file, dir+"/"); ok {
				base, _, _ := strings.Cut(rest, "/")
				return narinfo.ParseBaseName(base)
			}
		}
		target, err := os.Readlink(file)
		if err != nil {
			return narinfo.StorePath{}, fmt.Errorf("%s is not in %s", path, s.dir)
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(file), target)
		}
		file = filepath.Clean(target)
	}
	return narinfo.StorePath{}, fmt.Errorf("%s: too many symbolic links", path)
}

// PathInfos returns the narinfos of paths, as NarInfo does, in their order.
func (s *Store) PathInfos(ctx context.Context, paths []narinfo.StorePath) ([]*narinfo.NarInfo, error) {
	var infos []*narinfo.NarInfo
	for _, p := range paths {
		info, err := s.NarInfo(ctx, p.HashPart())
		if err != nil {
			return nil, err
		}
		if info.StorePath != p {
			return nil, fmt.Errorf("%s is not valid; %s is: %w", p, info.StorePath, upstream.ErrNotFound)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Closure returns the narinfos of paths and of everything that they refer to, each behind
// all that it refers to itself.
func (s *Store) Closure(ctx context.Context, paths []narinfo.StorePath) ([]*narinfo.NarInfo, error) {
	var names []string
	for _, p := range paths {
		names = append(names, p.Path(s.dir))
	}
	rows, err := s.db.closure(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("look up a closure: %w", err)
	}
	infos := make(map[narinfo.StorePath]*narinfo.NarInfo, len(rows))
	for _, r := range rows {
		info, err := r.narInfo(s.dir)
		if err != nil {
			return nil, fmt.Errorf("look up a closure: %w", err)
		}
		infos[info.StorePath] = info
	}
	sorted := make([]*narinfo.NarInfo, 0, len(infos))
	var visit func(p narinfo.StorePath)
	visit = func(p narinfo.StorePath) {
		info := infos[p]
		if info == nil {
			return // it has been visited
		}
		infos[p] = nil
		for _, ref := range info.References {
			visit(ref)
		}
		sorted = append(sorted, info)
	}
	for _, p := range paths {
		if _, ok := infos[p]; !ok {
			return nil, fmt.Errorf("%s is not valid: %w", p.Path(s.dir), upstream.ErrNotFound)
		}
		visit(p)
	}
	return sorted, nil
}
