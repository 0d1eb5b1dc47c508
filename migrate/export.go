package migrate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// ExportOptions are the settings of an export. Zero values mean the defaults.
type ExportOptions struct {
	// Compression of the NARs: none, zstd or xz; default zstd. xz runs the program of that
	// name.
	Compression compression.Type
	// Level is that of the compressor, 1 to 19 or 1 to 9; default 3 and 6.
	Level int
	// Paths are the hash parts of the paths to export, all of which must be here; none for
	// everything. Closure has all that they refer to exported as well.
	Paths   []string
	Closure bool
	// Match is a pattern, as of path.Match, for the names of the paths to export, which are
	// what follows the hash part; default all.
	Match string
	// Temp is the directory for NARs while they are compressed; default os.TempDir.
	Temp string
	// Jobs is the number of paths that are worked on at a time; default 4.
	Jobs int
	// Priority is that of the cache, in nix-cache-info; default 40.
	Priority int
	// DryRun only looks what is missing there.
	DryRun bool
	// Failed is told of what is not exported, by one goroutine at a time.
	Failed func(path string, err error)
}

func (o *ExportOptions) setDefaults() error {
	switch o.Compression {
	case "":
		o.Compression = compression.Zstd
	case compression.None, compression.Zstd:
	case compression.XZ:
		if _, err := exec.LookPath("xz"); err != nil {
			return fmt.Errorf("compression xz: install xz, or use zstd: %w", err)
		}
	default:
		return fmt.Errorf("compression is %q, not none, zstd or xz", o.Compression)
	}
	if o.Level == 0 {
		o.Level = 3
		if o.Compression == compression.XZ {
			o.Level = 6
		}
	}
	if most := map[compression.Type]int{compression.XZ: 9, compression.Zstd: 19}[o.Compression]; o.Level < 1 || most > 0 && o.Level > most {
		return fmt.Errorf("level is %d, not 1 to %d", o.Level, most)
	}
	if o.Jobs == 0 {
		o.Jobs = 4
	}
	if o.Failed == nil {
		o.Failed = func(string, error) {}
	}
	if o.Priority == 0 {
		o.Priority = 40
	}
	if _, err := path.Match(o.Match, ""); err != nil {
		return fmt.Errorf("pattern %q: %w", o.Match, err)
	}
	return nil
}

// An ExportReport says what an export has done.
type ExportReport struct {
	DryRun   bool    `json:"dry_run"`
	Paths    int64   `json:"paths"`    // that were looked at
	Present  int64   `json:"present"`  // were there
	Exported int64   `json:"exported"` // of a dry run: would be
	Failed   int64   `json:"failed"`
	Missing  int64   `json:"missing"`    // paths that are referred to, and that the store does not have
	NARBytes int64   `json:"nar_bytes"`  // of the NARs that were exported
	Written  int64   `json:"file_bytes"` // of these, compressed
	Seconds  float64 `json:"seconds"`
}

// WriteText writes the report for people.
func (r *ExportReport) WriteText(w io.Writer) error {
	b := new(strings.Builder)
	if r.DryRun {
		fmt.Fprintf(b, "%d paths: %d to export, %d were there: %.1f MB of NARs\n", r.Paths, r.Exported, r.Present, float64(r.NARBytes)/1e6)
	} else {
		fmt.Fprintf(b, "%d paths: %d exported, %d were there, %d failed\n", r.Paths, r.Exported, r.Present, r.Failed)
		fmt.Fprintf(b, "%.1f MB of NARs in %.1f MB, in %.1f s\n", float64(r.NARBytes)/1e6, float64(r.Written)/1e6, r.Seconds)
	}
	if r.Missing > 0 {
		fmt.Fprintf(b, "%d paths that are referred to are not here\n", r.Missing)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// ExportProgress is how far an export is. It may be read at any time.
type ExportProgress struct {
	paths, present, exported, failed, missing, narBytes, written atomic.Int64
}

// Report returns what there is now.
func (p *ExportProgress) Report() ExportReport {
	return ExportReport{
		Paths: p.paths.Load(), Present: p.present.Load(), Exported: p.exported.Load(), Failed: p.failed.Load(), Missing: p.missing.Load(),
		NARBytes: p.narBytes.Load(), Written: p.written.Load(),
	}
}

// Export writes paths of the store into a bucket as a plain binary cache, which needs no
// dedupd: nix-cache-info, narinfos with their signatures, and NARs. Each path becomes visible
// when its NAR is there. An export that was interrupted goes on where it was. The error says
// that it could not go on; what is wrong with single paths is told to Failed.
func Export(ctx context.Context, store *chunkstore.Store, to bucket.Bucket, opts ExportOptions, progress *ExportProgress) (*ExportReport, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	e := &exporter{store: store, to: to, opts: opts, progress: progress, storeDir: store.Repository().StoreDir}
	begun := time.Now()
	err := e.run(ctx)
	report := progress.Report()
	report.DryRun, report.Seconds = opts.DryRun, time.Since(begun).Seconds()
	return &report, err
}

type exporter struct {
	store    *chunkstore.Store
	to       bucket.Bucket
	opts     ExportOptions
	progress *ExportProgress
	storeDir string
	mu       sync.Mutex // guards calls of Failed
}

func (e *exporter) run(ctx context.Context) error {
	if err := e.checkPaths(ctx); err != nil {
		return err
	}
	if !e.opts.DryRun {
		text := fmt.Appendf(nil, "StoreDir: %s\nWantMassQuery: 1\nPriority: %d\n", e.storeDir, e.opts.Priority)
		if err := e.put(ctx, "nix-cache-info", bytes.NewReader(text), int64(len(text))); err != nil {
			return err
		}
	}
	all := func(ctx context.Context, fn func(string) error) error {
		return e.store.EachPath(ctx, func(path narinfo.StorePath, _ int64) error { return fn(path.HashPart()) })
	}
	if len(e.opts.Paths) > 0 {
		all = listOf(e.opts.Paths)
	}
	return walk(ctx, e.opts.Jobs, all, e.opts.Closure, nil, e.path)
}

// checkPaths returns an error if a path that was named is not here.
func (e *exporter) checkPaths(ctx context.Context) error {
	for _, hashPart := range e.opts.Paths {
		if _, err := e.store.NarInfo(ctx, hashPart); err != nil {
			return fmt.Errorf("path %s: %w", hashPart, err)
		}
	}
	return nil
}

// path exports one path, and returns what it refers to.
func (e *exporter) path(ctx context.Context, hashPart string) ([]narinfo.StorePath, error) {
	info, err := e.store.NarInfo(ctx, hashPart)
	if errors.Is(err, chunkstore.ErrNotFound) {
		e.progress.missing.Add(1)
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if ok, _ := path.Match(e.opts.Match, info.StorePath.Name()); !ok && e.opts.Match != "" {
		return info.References, nil
	}
	e.progress.paths.Add(1)
	key := hashPart + ".narinfo"
	if _, err := e.to.Stat(ctx, key); err == nil {
		e.progress.present.Add(1)
		return info.References, nil
	} else if !errors.Is(err, bucket.ErrNotFound) {
		return nil, err
	}
	if !e.opts.DryRun {
		err = e.nar(ctx, info)
		switch {
		case errors.Is(err, chunkstore.ErrNotFound), errors.Is(err, packfile.ErrCorrupt):
			e.fail(info, err)
			return info.References, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %w", info.StorePath, err)
		}
		text := info.Append(nil, e.storeDir)
		if err := e.put(ctx, key, bytes.NewReader(text), int64(len(text))); err != nil {
			return nil, err
		}
	}
	e.progress.exported.Add(1)
	e.progress.narBytes.Add(int64(info.NarSize))
	return info.References, nil
}

// fail notes that a path is not exported.
func (e *exporter) fail(info *narinfo.NarInfo, err error) {
	e.progress.failed.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.opts.Failed(info.StorePath.String(), err)
}

// put puts an object, unless it is there: what has the same name was written by an export, too.
func (e *exporter) put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if err := e.to.Put(ctx, key, r, size); err != nil && !errors.Is(err, bucket.ErrExists) {
		return err
	}
	return nil
}

// nar puts the NAR of info, and lets info name it. A NAR that another path has, too, becomes
// the same file.
func (e *exporter) nar(ctx context.Context, info *narinfo.NarInfo) error {
	o, err := e.store.Object(ctx, info.NarHash)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(e.opts.Temp, "dedupd-export-*")
	if err != nil {
		return err
	}
	defer file.Close()
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	hash := sha256.New()
	if err := e.compress(ctx, o, io.MultiWriter(file, hash)); err != nil {
		return err
	}
	size, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	info.FileHash, info.FileSize = narinfo.NewHash(narinfo.SHA256, hash.Sum(nil)), uint64(size)
	info.Compression = string(e.opts.Compression)
	info.URL = "nar/" + info.FileHash.Nix32() + ".nar" + e.opts.Compression.Extension()
	e.progress.written.Add(size)
	return e.put(ctx, info.URL, file, size)
}

// compress writes the object to w, compressed.
func (e *exporter) compress(ctx context.Context, o *chunkstore.Object, w io.Writer) error {
	switch e.opts.Compression {
	case compression.None:
		return o.WritePlain(ctx, w, 0, o.Size())
	case compression.XZ:
		return e.xz(ctx, o, w)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(e.opts.Level)))
	if err != nil {
		return err
	}
	if err := o.WritePlain(ctx, z, 0, o.Size()); err != nil {
		z.Close()
		return err
	}
	return z.Close()
}

func (e *exporter) xz(ctx context.Context, o *chunkstore.Object, w io.Writer) error {
	cmd := exec.CommandContext(ctx, "xz", "--compress", "--stdout", "--threads=1", fmt.Sprintf("-%d", e.opts.Level))
	var message bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &message
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = o.WritePlain(ctx, in, 0, o.Size())
	in.Close()
	if waitErr := cmd.Wait(); waitErr != nil && ctx.Err() == nil {
		return fmt.Errorf("xz: %w: %s", waitErr, bytes.TrimSpace(message.Bytes()))
	}
	return err
}
