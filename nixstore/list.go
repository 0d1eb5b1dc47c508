//go:build unix

package nixstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

var _ upstream.Lister = (*Store)(nil)

// List implements upstream.Lister. There are the narinfos of all valid paths, from when Nix
// registered them, and log. Listings are made of any path that is asked for, and not listed.
func (s *Store) List(ctx context.Context, dir string, fn func(name string, modified time.Time) error) error {
	switch dir {
	case "":
		return s.listPaths(ctx, fn)
	case "log":
		return s.listLogs(ctx, fn)
	}
	return nil
}

// listStep is how many paths are read of the database at a time.
const listStep = 1000

// listPaths reads the database in steps, so that Nix need not keep what was deleted meanwhile
// until fn has worked on everything.
func (s *Store) listPaths(ctx context.Context, fn func(name string, modified time.Time) error) error {
	for last := int64(0); ; {
		rows, err := s.db.list(ctx, last, listStep)
		if err != nil {
			return fmt.Errorf("list the paths of %s: %w", s.real, err)
		}
		if len(rows) == 0 {
			return nil
		}
		last = rows[len(rows)-1].id
		for _, r := range rows {
			p, err := narinfo.ParseStorePath(s.dir, r.path)
			if err != nil {
				return fmt.Errorf("list the paths of %s: %w", s.real, err)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := fn(p.HashPart()+".narinfo", time.Unix(r.registered, 0)); err != nil {
				return err
			}
		}
	}
}

// A listRow is what a list needs of a valid path.
type listRow struct {
	id, registered int64 // the latter in seconds since 1970
	path           string
}

// list returns up to n rows behind the one with the id last, in order.
func (d *database) list(ctx context.Context, last int64, n int) (list []listRow, err error) {
	err = d.query(ctx, func(db *sql.DB) error {
		list = nil
		rows, err := db.QueryContext(ctx, "select id, path, registrationTime from ValidPaths where id > ? order by id limit ?", last, n)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r listRow
			if err := rows.Scan(&r.id, &r.path, &r.registered); err != nil {
				return err
			}
			list = append(list, r)
		}
		return rows.Err()
	})
	return list, err
}

// listLogs lists the directories that buildLog reads.
func (s *Store) listLogs(ctx context.Context, fn func(name string, modified time.Time) error) error {
	dirs, err := os.ReadDir(s.logs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("list logs: %w", err)
	}
	for _, dir := range dirs {
		if !dir.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(s.logs, dir.Name()))
		if err != nil {
			return fmt.Errorf("list logs: %w", err)
		}
		for _, file := range files {
			base := dir.Name() + strings.TrimSuffix(file.Name(), ".bz2")
			info, err := file.Info()
			if drv, bad := narinfo.ParseBaseName(base); bad != nil || !drv.IsDerivation() || errors.Is(err, fs.ErrNotExist) {
				continue // not a log, or not any more
			} else if err != nil {
				return fmt.Errorf("list logs: %w", err)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := fn("log/"+base, info.ModTime()); err != nil {
				return err
			}
		}
	}
	return nil
}
