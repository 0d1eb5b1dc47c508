package bucket

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"
)

// S3 is a Bucket in an object store that speaks S3's protocol, or below a prefix in one.
// An object is put by one request, however large it is (S3 takes up to 5 GB), whose body
// the server checks against the SHA-256 that the request is signed with.
type S3 struct {
	core   minio.Core
	cfg    *s3Config
	counts requestCounts
	budget retryBudget
}

// OpenS3 opens the bucket that an s3 URL names, which must exist:
//
//	s3://<bucket>[/<prefix>][?<setting>=<value>&…]
//
//	endpoint        host[:port] or URL of the server; default s3.amazonaws.com
//	region          default: AWS_REGION, or what the server says
//	style           path or virtual, for where requests name the bucket; default auto
//	ca              file with the certificates, in PEM, that the server's must come from
//	credentials     file in the format of ~/.aws/credentials
//	profile         section of that file
//	requester-pays  1 to be charged for requests to somebody else's bucket
//	storage-class   of new objects
//	sse             AES256 or aws:kms, for encryption by the server
//	sse-kms-key     ID of the key for aws:kms
//	overwrites      1 to use a server that does not honour If-None-Match: *
//	timeout         how long a request may move no byte before it is made again; default 90s
//
// Without credentials or profile they are taken from the environment (AWS_ACCESS_KEY_ID
// and so on), the file at its usual place, a web identity, or the machine's role.
//
// Whether the server refuses to overwrite an object is tried out. One that does not
// is refused, unless the URL says that it is to be used all the same: then Put looks
// first, which is no protection from another writer of the same key at the same moment.
func OpenS3(ctx context.Context, rawURL string) (*S3, error) {
	s, err := newS3(rawURL)
	if err != nil {
		return nil, err
	}
	if err := s.probe(ctx); err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", s, err)
	}
	return s, nil
}

func newS3(rawURL string) (*S3, error) {
	cfg, err := parseS3URL(rawURL)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	s := &S3{cfg: cfg}
	client, err := cfg.client(&s.counts)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", s, err)
	}
	s.core = minio.Core{Client: client}
	return s, nil
}

// probePrefix begins with a dot, so that no key of an object does like it.
const probePrefix = ".dedupd-probe/"

// errOverwrites says that a server replaced an object that it was told not to.
var errOverwrites = errors.New("the server ignores If-None-Match and overwrites objects; if nothing else writes to this bucket, add overwrites=1 to its URL")

// probe finds out whether the bucket is there, can be written, and honours If-None-Match.
func (s *S3) probe(ctx context.Context) error {
	key := probePrefix + rand.Text()
	// Nobody else has the key: what exists is the first attempt's, whose answer was lost.
	if err := s.put(ctx, key, strings.NewReader("first"), 5); err != nil && !errors.Is(err, ErrExists) {
		return fmt.Errorf("try to write: %w", err)
	}
	defer s.remove(context.WithoutCancel(ctx), key) // what stays is 5 bytes that nothing lists
	err := s.put(ctx, key, strings.NewReader("other"), 5)
	switch {
	case errors.Is(err, ErrExists):
		return nil
	case err != nil:
		return fmt.Errorf("try to write what is there: %w", err)
	case !s.cfg.overwrites:
		return errOverwrites
	}
	return nil
}

// Overwrites says whether b, or what is below wrappers, may replace an object when two Puts
// of it meet.
func Overwrites(b Bucket) bool {
	s, ok := find[*S3](b)
	return ok && s.cfg.overwrites
}

// String implements Bucket.
func (s *S3) String() string { return s.cfg.String() }

// Put implements Bucket.
func (s *S3) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if err := CheckKey(key); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if size < 0 {
		return fmt.Errorf("put %s: negative size %d", key, size)
	}
	if s.cfg.overwrites {
		if _, err := s.Stat(ctx, key); err == nil {
			return fmt.Errorf("put %s: %w", key, ErrExists)
		} else if !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("put: %w", err)
		}
	}
	if err := s.put(ctx, key, r, size); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// put writes an object. A first attempt that has arrived although its answer was lost
// makes a later one find the object: ErrExists, as if it were another's.
func (s *S3) put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	sum, err := sumOf(ctx, r, size)
	if err != nil {
		return err
	}
	opts := s.cfg.putOptions()
	return s.retry(ctx, func(ctx context.Context, alive func()) error {
		body := &activeReader{r: io.NewSectionReader(r, 0, size), alive: alive}
		_, err := s.core.PutObject(ctx, s.cfg.bucket, s.cfg.prefix+key, body, size, "", sum, opts)
		if code := minio.ToErrorResponse(err).StatusCode; code == http.StatusPreconditionFailed {
			return permanent(ErrExists)
		}
		return err
	})
}

// sumOf returns the SHA-256 of a body in hexadecimal.
func sumOf(ctx context.Context, r io.ReaderAt, size int64) (string, error) {
	h := sha256.New()
	for done := int64(0); done < size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := io.Copy(h, io.NewSectionReader(r, done, min(copyStep, size-done)))
		if err != nil {
			return "", err
		}
		if n == 0 {
			return "", io.ErrUnexpectedEOF
		}
		done += n
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ReadAt implements Bucket. It is one request, unless that fails.
func (s *S3) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	return s.Read(ctx, key, off, int64(len(p)), &sliceWriter{p})
}

// Read implements Bucket. It is one request, unless that fails.
func (s *S3) Read(ctx context.Context, key string, off, n int64, w io.Writer) error {
	if n == 0 {
		_, err := s.Stat(ctx, key)
		return err
	}
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	done := int64(0) // what a broken attempt has read is not asked for again
	err := s.retry(ctx, func(ctx context.Context, alive func()) error {
		k, err := s.readRange(ctx, key, off+done, n-done, w, alive)
		done += k
		return err
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	return nil
}

// readRange writes n bytes from off on to w, by one request, and returns how many it has
// written.
func (s *S3) readRange(ctx context.Context, key string, off, n int64, w io.Writer, alive func()) (int64, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+n-1); err != nil {
		return 0, permanent(err)
	}
	s.cfg.payer(opts.Set)
	body, _, header, err := s.core.GetObject(ctx, s.cfg.bucket, s.cfg.prefix+key, opts)
	if err != nil {
		return 0, s.readError(ctx, key, err)
	}
	defer body.Close()
	size, err := checkRange(header, off)
	if err != nil {
		return 0, err
	}
	if size < off+n {
		return 0, permanent(io.ErrUnexpectedEOF)
	}
	from := &activeReader{r: io.LimitReader(body, n), alive: alive}
	done, err := io.Copy(w, from)
	switch {
	case from.err != nil && from.err != io.EOF:
		err = from.err
	case err != nil:
		err = permanent(err) // of w
	case done < n:
		err = errors.New("the response ended early") // the object does not
	}
	return done, err
}

// A sliceWriter fills a slice.
type sliceWriter struct{ rest []byte }

func (s *sliceWriter) Write(p []byte) (int, error) {
	n := copy(s.rest, p)
	s.rest = s.rest[n:]
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// ReadFrom implements io.ReaderFrom.
func (s *sliceWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.ReadFull(r, s.rest)
	s.rest = s.rest[n:]
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil // of r, which is no error here
	}
	return int64(n), err
}

// checkRange checks that a response begins at off, and returns the size of its object.
func checkRange(h http.Header, off int64) (size int64, err error) {
	text := h.Get("Content-Range")
	if text == "" && off == 0 { // all of it
		return strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	}
	var first, last int64
	if _, err := fmt.Sscanf(text, "bytes %d-%d/%d", &first, &last, &size); err != nil || first != off {
		return 0, permanent(fmt.Errorf("the server was asked for the bytes from %d on, and sent the range %q", off, text))
	}
	return size, nil
}

// readError gives the errors of reading their meaning.
func (s *S3) readError(ctx context.Context, key string, err error) error {
	switch resp := minio.ToErrorResponse(err); resp.StatusCode {
	case http.StatusNotFound:
		if resp.Code == minio.NoSuchBucket {
			return permanent(err)
		}
		return s.sureAbsent(ctx, key)
	case http.StatusRequestedRangeNotSatisfiable:
		return permanent(io.ErrUnexpectedEOF)
	}
	return err
}

// Stat implements Bucket.
func (s *S3) Stat(ctx context.Context, key string) (Info, error) {
	if err := check(ctx, key); err != nil {
		return Info{}, fmt.Errorf("stat: %w", err)
	}
	info := Info{Key: key}
	err := s.retry(ctx, func(ctx context.Context, _ func()) error {
		var opts minio.StatObjectOptions
		s.cfg.payer(opts.Set)
		o, err := s.core.StatObject(ctx, s.cfg.bucket, s.cfg.prefix+key, opts)
		info.Size = o.Size
		if minio.ToErrorResponse(err).StatusCode == http.StatusForbidden {
			// The reason would be in the body, which the answer to a HEAD does not have.
			return errors.New("the server forbids it, or its clock is another one")
		}
		return s.readError(ctx, key, err)
	})
	if err != nil {
		return Info{}, fmt.Errorf("stat %s: %w", key, err)
	}
	return info, nil
}

// sureAbsent returns ErrNotFound if the bucket answers and does not list key. A 404 alone
// may be about the bucket, or come from something else between here and there.
func (s *S3) sureAbsent(ctx context.Context, key string) error {
	opts := minio.ListObjectsOptions{Prefix: s.cfg.prefix + key, Recursive: true, MaxKeys: 1}
	s.cfg.payer(opts.Set)
	for o := range s.core.ListObjectsIter(ctx, s.cfg.bucket, opts) {
		if o.Err != nil {
			return o.Err
		}
		if o.Key == s.cfg.prefix+key {
			return errors.New("the object is listed, but cannot be found")
		}
		break
	}
	return permanent(ErrNotFound)
}

// List implements Bucket.
func (s *S3) List(ctx context.Context, prefix, after string, fn func(Info) error) error {
	if CheckKey(prefix+"x") != nil {
		return ctx.Err() // no key begins like that, and MinIO refuses to look
	}
	opts := minio.ListObjectsOptions{Prefix: s.cfg.prefix + prefix, Recursive: true}
	if after != "" {
		opts.StartAfter = s.cfg.prefix + after
	}
	return s.list(ctx, opts, func(key string, o *minio.ObjectInfo) error {
		if CheckKey(key) != nil {
			return nil // somebody else's
		}
		return fn(Info{Key: key, Size: o.Size})
	})
}

// list calls fn for what opts asks for, with keys without the bucket's prefix, and goes on
// behind the last one after a failure.
func (s *S3) list(ctx context.Context, opts minio.ListObjectsOptions, fn func(key string, o *minio.ObjectInfo) error) error {
	prefix := strings.TrimPrefix(opts.Prefix, s.cfg.prefix)
	s.cfg.payer(opts.Set)
	var fnErr error
	err := s.retry(ctx, func(ctx context.Context, alive func()) error {
		for o := range s.core.ListObjectsIter(ctx, s.cfg.bucket, opts) {
			alive()
			if o.Err != nil {
				return o.Err
			}
			opts.StartAfter = o.Key
			if fnErr = fn(strings.TrimPrefix(o.Key, s.cfg.prefix), &o); fnErr != nil {
				return permanent(fnErr)
			}
		}
		return ctx.Err()
	})
	if fnErr != nil {
		return fnErr
	}
	if err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	return nil
}

// Delete implements Bucket.
func (s *S3) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if err := s.remove(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

func (s *S3) remove(ctx context.Context, key string) error {
	return s.retry(ctx, func(ctx context.Context, _ func()) error {
		err := s.core.RemoveObject(ctx, s.cfg.bucket, s.cfg.prefix+key, minio.RemoveObjectOptions{})
		if minio.ToErrorResponse(err).Code == minio.NoSuchKey {
			return nil
		}
		return err
	})
}
