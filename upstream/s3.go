package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/time/rate"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/narinfo"
)

// S3 is a binary cache in an object store, as Nix makes it at s3:// URLs. What has a
// Content-Encoding there comes as it is stored: the store does not undo it.
type S3 struct {
	objects  *bucket.S3Objects
	storeDir string
}

// NewS3 returns the cache at a URL as of bucket.OpenS3, for the store directory of the paths
// there. It does not connect to it.
func NewS3(rawURL, storeDir string) (*S3, error) {
	objects, err := bucket.OpenS3Objects(rawURL)
	if err != nil {
		return nil, err
	}
	return &S3{objects, storeDir}, nil
}

// Name implements Source.
func (s *S3) Name() string { return s.objects.String() }

// Requests returns what was sent so far.
func (s *S3) Requests() bucket.Requests { return s.objects.Requests() }

// Limit has requests wait for limit. It is called before anything is asked for.
func (s *S3) Limit(limit *rate.Limiter) { s.objects.Limit(limit) }

// NarInfo implements Source.
func (s *S3) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	body, err := s.File(ctx, hashPart+".narinfo")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	info, err := readNarInfo(body, hashPart, s.storeDir)
	if err != nil {
		return nil, fmt.Errorf("%s.narinfo in %s: %w", hashPart, s.Name(), err)
	}
	return info, nil
}

// NAR implements Source.
func (s *S3) NAR(ctx context.Context, info *narinfo.NarInfo, off int64) (io.ReadCloser, int64, error) {
	name, err := narFile(info)
	if err != nil {
		return nil, 0, fmt.Errorf("NAR of %s in %s: %w", info.StorePath, s.Name(), err)
	}
	o, err := s.open(ctx, name, off)
	if err != nil {
		return nil, 0, err
	}
	return o, o.Size, nil
}

// File implements Source.
func (s *S3) File(ctx context.Context, name string) (io.ReadCloser, error) {
	o, err := s.open(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	body, err := decode(o.Encoding, o)
	if err != nil {
		o.Close()
		return nil, fmt.Errorf("%s in %s: %w", name, s.Name(), err)
	}
	return body, nil
}

func (s *S3) open(ctx context.Context, name string, off int64) (*bucket.S3Object, error) {
	o, err := s.objects.Open(ctx, name, off)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		return nil, fmt.Errorf("%s in %s: %w", name, s.Name(), ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, s.Name(), err)
	}
	return o, nil
}

// List implements Lister.
func (s *S3) List(ctx context.Context, dir string, fn func(name string, modified time.Time) error) error {
	if dir == "" {
		return s.objects.List(ctx, "", false, fn)
	}
	return s.objects.List(ctx, dir+"/", true, fn)
}
