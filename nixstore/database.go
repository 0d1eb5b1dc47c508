//go:build unix

package nixstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// A database is Nix's. It is only read.
type database struct {
	file string
	live *sql.DB
}

const (
	// schemaVersion is that of Nix 2.0 and later. (Nix: src/libstore/local-store.hh.)
	schemaVersion = "10"
	// connections is how many queries run at a time. Each has a cache of 2 MB.
	connections = 8
	// busyTimeout is how long a query waits for Nix to let it read, in milliseconds. Nix
	// keeps the database in WAL mode, where nobody waits, unless use-sqlite-wal is off.
	busyTimeout = 10_000
)

func openDatabase(ctx context.Context, dir string) (*database, error) {
	version, err := os.ReadFile(filepath.Join(dir, "schema"))
	if err != nil {
		return nil, fmt.Errorf("read the schema's version: %w", err)
	}
	if v := strings.TrimSpace(string(version)); v != schemaVersion {
		return nil, fmt.Errorf("%s has schema %q; %s is known", dir, v, schemaVersion)
	}
	d := &database{file: filepath.Join(dir, "db.sqlite")}
	if d.live, err = sql.Open("sqlite", d.dsn("mode=ro")); err != nil {
		return nil, err
	}
	d.live.SetMaxOpenConns(connections)
	d.live.SetMaxIdleConns(connections)
	d.live.SetConnMaxIdleTime(time.Minute)
	err = d.query(ctx, func(db *sql.DB) error {
		var one int
		err := db.QueryRowContext(ctx, "select 1 from ValidPaths limit 1").Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		d.live.Close()
		return nil, fmt.Errorf("open %s: %w", d.file, err)
	}
	return d, nil
}

func (d *database) close() error { return d.live.Close() }

func (d *database) dsn(mode string) string {
	u := url.URL{Scheme: "file", Path: d.file, RawQuery: fmt.Sprintf("%s&_pragma=busy_timeout(%d)", mode, busyTimeout)}
	return u.String()
}

// query calls fn with the database, until what it saw holds together.
//
// SQLite reads a database in WAL mode, which Nix's is, together with two files beside it,
// that are only there while some process of Nix has it open. One who may not create them
// can do without as long as nobody else does either: SQLite calls that immutable.
func (d *database) query(ctx context.Context, fn func(*sql.DB) error) error {
	err := fn(d.live)
	var failed *sqlite.Error
	if !errors.As(err, &failed) {
		return err
	}
	if code := failed.Code() & 0xff; code != sqlite3.SQLITE_CANTOPEN && code != sqlite3.SQLITE_READONLY {
		return err
	}
	for range 3 {
		before, err2 := d.stamp()
		if err2 != nil {
			return errors.Join(err, err2)
		}
		if before.wal > 0 {
			return fmt.Errorf("what Nix writes cannot be read, with these permissions: %w", err)
		}
		err2 = d.queryImmutable(fn)
		if after, err := d.stamp(); err == nil && after == before {
			return err2
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("the database was written to each time that it was read: %w", err)
}

func (d *database) queryImmutable(fn func(*sql.DB) error) error {
	db, err := sql.Open("sqlite", d.dsn("immutable=1"))
	if err != nil {
		return err
	}
	defer db.Close()
	return fn(db)
}

// A stamp differs if somebody has written to the database in between.
type stamp struct {
	size, wal int64 // bytes
	time      time.Time
}

func (d *database) stamp() (s stamp, err error) {
	info, err := os.Stat(d.file)
	if err != nil {
		return s, err
	}
	s.size, s.time = info.Size(), info.ModTime()
	info, err = os.Stat(d.file + "-wal")
	if err == nil {
		s.wal = info.Size()
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return s, err
}

// A row is what the database says about a valid path.
type row struct {
	path, hash              string
	size                    sql.NullInt64
	deriver, sigs, ca, refs sql.NullString
}

// columns are those of a row, for a ValidPaths called v. One statement sees one state of
// the database. No store path has a space in it.
const columns = `v.path, v.hash, v.narSize, v.deriver, v.sigs, v.ca,
	(select group_concat(r.path, ' ') from Refs join ValidPaths r on r.id = Refs.reference where Refs.referrer = v.id)`

func (r *row) fields() []any {
	return []any{&r.path, &r.hash, &r.size, &r.deriver, &r.sigs, &r.ca, &r.refs}
}

// path returns the row of the path that begins with prefix, which ends with the dash
// behind the hash part.
func (d *database) path(ctx context.Context, prefix string) (*row, error) {
	end := prefix[:len(prefix)-1] + "." // the character behind the dash
	r := new(row)
	err := d.query(ctx, func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "select "+columns+" from ValidPaths v where v.path >= ? and v.path < ? order by v.path limit 1", prefix, end).Scan(r.fields()...)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("not a valid path: %w", upstream.ErrNotFound)
	}
	return r, err
}

// closure returns the rows of the paths and of all that they refer to, in any order.
func (d *database) closure(ctx context.Context, paths []string) (closure []*row, err error) {
	list, err := json.Marshal(paths)
	if err != nil {
		return nil, err
	}
	err = d.query(ctx, func(db *sql.DB) error {
		closure = nil
		rows, err := db.QueryContext(ctx, `with recursive c(id) as (
			select id from ValidPaths where path in (select value from json_each(?))
			union select reference from Refs join c on referrer = c.id)
			select `+columns+` from c join ValidPaths v on v.id = c.id`, string(list))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			r := new(row)
			if err := rows.Scan(r.fields()...); err != nil {
				return err
			}
			closure = append(closure, r)
		}
		return rows.Err()
	})
	return closure, err
}

// narInfo returns the row as the narinfo that Nix would make of it. Paths whose hash or
// size is not known, as very old versions of Nix left them, are not found.
func (r *row) narInfo(dir string) (*narinfo.NarInfo, error) {
	path, err := narinfo.ParseStorePath(dir, r.path)
	if err != nil {
		return nil, err
	}
	hash, err := narinfo.ParseHash(r.hash)
	if err != nil || hash.Algo() != narinfo.SHA256 || r.size.Int64 <= 0 {
		return nil, fmt.Errorf("%s has no hash and size in the database: %w", path, upstream.ErrNotFound)
	}
	info := &narinfo.NarInfo{
		StorePath: path, URL: "nar/" + path.HashPart() + "-" + hash.Nix32() + ".nar", Compression: "none",
		FileHash: hash, FileSize: uint64(r.size.Int64), NarHash: [32]byte(hash.Sum()), NarSize: uint64(r.size.Int64), CA: r.ca.String,
	}
	for ref := range strings.FieldsSeq(r.refs.String) {
		p, err := narinfo.ParseStorePath(dir, ref)
		if err != nil {
			return nil, fmt.Errorf("reference of %s: %w", path, err)
		}
		info.References = append(info.References, p)
	}
	// What is not signed and malformed is not worth losing the path for.
	if p, err := narinfo.ParseStorePath(dir, r.deriver.String); err == nil {
		info.Deriver = p
	}
	for text := range strings.FieldsSeq(r.sigs.String) {
		if sig, err := narinfo.ParseSignature(text); err == nil {
			info.Sigs = append(info.Sigs, sig)
		}
	}
	// The text is what counts for clients: it brings order into the lists, and finds what
	// Nix would not read.
	return narinfo.Parse(info.Append(nil, dir), dir)
}
