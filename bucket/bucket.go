// Package bucket is object storage as dedupd needs it: objects that are written
// once, read in ranges, listed and deleted. It knows nothing of packs.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
)

// Callers branch on these; every implementation returns them wrapped.
var (
	// ErrNotFound says that the bucket answered, and that it has no such object.
	// A bucket that cannot be reached, or is not mounted, never answers with it.
	ErrNotFound = errors.New("object not found")
	// ErrExists says that Put found an object under its key.
	ErrExists = errors.New("object exists already")
)

// Info describes one object.
type Info struct {
	Key  string
	Size int64 // bytes
}

// Bucket holds immutable objects under keys (see CheckKey).
//
// All methods may be called concurrently, also by other processes on the same
// bucket, and a change is visible to every call that starts after it returned.
// Transient failures are retried inside, as long as ctx allows: an error is
// the last word on that call. A cancelled ctx ends a call soon, with ctx's error.
// No key may continue another one as if that were a directory ("a" and "a/b"
// exclude each other), for file systems cannot hold both.
type Bucket interface {
	// Put creates key with the size bytes at the start of r, which may be read
	// more than once. It never replaces: if key is taken, it is left as it is and
	// the error is ErrExists; of several racing Puts at most one returns nil.
	//
	// On nil and on ErrExists the object that is there is durable and complete
	// (after ErrExists the caller still has to compare it with its own). After any
	// other error the object is either absent or complete, never partial, and it
	// may still appear: a Put whose answer was lost has arrived all the same. So a Put
	// may also find, with ErrExists, what it has written itself.
	// If r has fewer than size bytes the error is io.ErrUnexpectedEOF, and the
	// object is absent.
	Put(ctx context.Context, key string, r io.ReaderAt, size int64) error

	// ReadAt fills all of p with the object's bytes from off. If the object
	// ends before that, the error is io.ErrUnexpectedEOF and p's content is
	// unspecified. If it is absent, ErrNotFound. An empty p only asks whether
	// the object is there.
	ReadAt(ctx context.Context, key string, p []byte, off int64) error

	// Read writes n bytes of the object from off to w as they come, the first ones before
	// the last are there. What breaks goes on where it was: w gets each byte once, in
	// order. If the object ends before off+n, the error is io.ErrUnexpectedEOF; after that
	// and any other error w may have got the first of the bytes. An error of w ends the
	// reading and is returned, wrapped. Where w is an io.ReaderFrom it is read into. w
	// should not block for long, since servers hang up on those who do not read.
	Read(ctx context.Context, key string, off, n int64, w io.Writer) error

	// Stat describes the object, or answers ErrNotFound.
	Stat(ctx context.Context, key string) (Info, error)

	// List calls fn, on the caller's goroutine, for every object whose key begins
	// with prefix and comes behind after (any strings; they need not end at a slash,
	// nor name an object; "" is before all keys), in lexical order of the keys'
	// bytes. What comes before is not looked at: a list that ends soon is cheap.
	// Objects that come or go meanwhile may or may not be among them. An error of fn
	// ends the list and is returned as it is.
	List(ctx context.Context, prefix, after string, fn func(Info) error) error

	// Delete removes the object, durably. It is no error if there is none.
	Delete(ctx context.Context, key string) error

	// String is the bucket's URL without secrets, for logs and messages.
	String() string
}

// redacted returns the error of url.Parse without the URL, which may hold a password.
func redacted(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return fmt.Errorf("parse its URL: %w", err)
}

// Limits of a key and of each segment, in bytes. S3 ends at 1024, and callers may
// put the bucket's keys below a prefix; file names end at 255.
const (
	maxKey     = 512
	maxSegment = 255
)

// CheckKey says whether key may name an object: segments of letters, digits,
// '.', '_' and '-', joined by single slashes. No segment is empty or starts
// with a dot: this excludes "..", and leaves such names to the implementations.
func CheckKey(key string) error {
	if key == "" || len(key) > maxKey {
		return fmt.Errorf("bad object key %.64q: %d bytes long, must be 1 to %d", key, len(key), maxKey)
	}
	for segment := range strings.SplitSeq(key, "/") {
		if !goodSegment(segment) {
			return fmt.Errorf("bad object key %q: segment %q", key, segment)
		}
	}
	return nil
}

func goodSegment(s string) bool {
	if s == "" || s[0] == '.' || len(s) > maxSegment {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// Open opens the bucket that rawURL names:
//
//	file:///srv/bucket         a directory; see OpenDir
//	s3://bucket/prefix?…       an object store; see OpenS3
func Open(ctx context.Context, rawURL string) (Bucket, error) { return open(ctx, rawURL, false) }

// OpenReader opens a bucket for reading only, with rights for no more than that: Open tries
// out how an object store writes.
func OpenReader(ctx context.Context, rawURL string) (Bucket, error) { return open(ctx, rawURL, true) }

func open(ctx context.Context, rawURL string, readOnly bool) (Bucket, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", redacted(err))
	}
	switch u.Scheme {
	case "s3":
		if readOnly {
			return newS3(rawURL)
		}
		return OpenS3(ctx, rawURL)
	case "file":
	default:
		return nil, fmt.Errorf("open bucket: scheme %q is not supported; use file:///absolute/path or s3://bucket/prefix", u.Scheme)
	}
	if u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !strings.HasPrefix(u.Path, "/") {
		return nil, fmt.Errorf("open bucket: %s: a file URL has the form file:///absolute/path and nothing more", u.Redacted())
	}
	return OpenDir(u.Path)
}
