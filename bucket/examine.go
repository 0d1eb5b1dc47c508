package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// A Finding is what came of one check of a bucket.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Found  string `json:"found"`
	Advice string `json:"advice,omitempty"` // what it means and what to do; empty if it is ok
}

// A Status says how serious a Finding is.
type Status string

// Statuses. A bucket with a failure cannot be used, or would lose something.
const (
	StatusOK   Status = "ok"
	StatusWarn Status = "warn"
	StatusFail Status = "FAIL"
)

// Limits of what is reported as ok.
const (
	examineSize = 32 << 20 // bytes, as a pack
	smallSize   = 1 << 10
	smallReads  = 5
)

// Examine tries out what dedupd needs of the bucket that rawURL names, and reports each
// check when it is done. It ends at a failure that leaves nothing more to try. What
// it writes lies where no object of a repository does, and is removed. Each request is made
// once: what a retry would hide is to be seen.
//
// It returns the bucket if it can be read, nil otherwise and for a directory that is no
// bucket yet, and whether nothing has failed.
func Examine(ctx context.Context, rawURL string, report func(Finding)) (Bucket, bool) {
	e := &examination{report: report, ok: true}
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		e.fail("url", redacted(err).Error(), "write file:///directory or s3://bucket/prefix?…")
	case u.Scheme == "s3":
		e.s3(ctx, rawURL)
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
		e.dir(ctx, filepath.Clean(u.Path))
	default:
		e.fail("url", fmt.Sprintf("scheme %q", u.Scheme), "write file:///directory or s3://bucket/prefix?…")
	}
	return e.bucket, e.ok
}

type examination struct {
	report func(Finding)
	ok     bool
	bucket Bucket
}

func (e *examination) good(check, format string, args ...any) {
	e.report(Finding{check, StatusOK, fmt.Sprintf(format, args...), ""})
}

func (e *examination) warn(check, found, advice string) {
	e.report(Finding{check, StatusWarn, found, advice})
}

func (e *examination) fail(check, found, advice string) {
	e.ok = false
	e.report(Finding{check, StatusFail, found, advice})
}

// try reports whether err is nil, as a failure if not.
func (e *examination) try(check string, err error, found, advice string) bool {
	if err != nil {
		e.fail(check, err.Error(), advice)
		return false
	}
	e.good(check, "%s", found)
	return true
}

// dir examines a directory without making a bucket of it.
func (e *examination) dir(ctx context.Context, path string) {
	parent := path
	text, err := os.ReadFile(filepath.Join(path, markerFile))
	switch {
	case err == nil && string(text) == markerText:
		b, err := OpenDir(path)
		if !e.try("directory", err, path+" is a bucket", "the user of the server must be able to write there") {
			return
		}
		e.bucket, parent = b, filepath.Join(path, tmpDir)
	case err == nil:
		e.fail("directory", markerFile+" is another one", "the bucket is of a newer dedupd, or the file is damaged")
		return
	case !errors.Is(err, fs.ErrNotExist):
		e.fail("directory", err.Error(), "the user of the server must be able to read it")
		return
	default:
		if _, err := os.Stat(path); !e.try("directory", err, path+" is no bucket yet: the server makes it one if it is empty", "make the directory, or mount its disk") {
			return
		}
	}
	tmp, err := os.MkdirTemp(parent, ".doctor-*")
	if err != nil {
		e.fail("write", err.Error(), "the user of the server must be able to write there")
		return
	}
	defer os.RemoveAll(tmp)
	e.dirWrites(ctx, tmp)
}

func (e *examination) dirWrites(ctx context.Context, tmp string) {
	file, other := filepath.Join(tmp, "a"), filepath.Join(tmp, "b")
	data := make([]byte, examineSize)
	rand.Read(data) // never fails
	start := time.Now()
	if !e.try("write", writeSynced(file, data), fmt.Sprintf("%d MiB with fsync %s", examineSize>>20, speed(examineSize, start)), "the disk is full, or fails") {
		return
	}
	if !e.try("link", os.Link(file, other), "a file can have a second name", "packs are published by hard links: use a file system that has them") {
		return
	}
	if err := os.Link(file, other); !errors.Is(err, fs.ErrExist) {
		e.fail("create-only", fmt.Sprintf("a link replaced what was there (%v)", err), "packs could be overwritten: use another file system")
	} else {
		e.good("create-only", "a name that is taken stays as it is")
	}
	d, err := os.Open(tmp)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	e.try("sync of a directory", err, "names reach the disk", "after a power cut a pack could be missing that was acknowledged")
	start = time.Now()
	got, err := os.ReadFile(other)
	if err == nil && !bytes.Equal(got, data) {
		err = errors.New("other bytes than were written")
	}
	e.try("read", err, fmt.Sprintf("the same bytes, %s", speed(examineSize, start)), "the disk loses data: do not use it")
	e.try("delete", errors.Join(os.Remove(file), os.Remove(other)), "removed what was written", "nothing could be collected")
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// speed says how fast so many bytes went since start.
func speed(n int, start time.Time) string {
	took := time.Since(start)
	return fmt.Sprintf("in %v, %.1f MB/s", took.Round(time.Millisecond), float64(n)/1e6/took.Seconds())
}
