package pull

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// A fetch is one NAR on its way from an upstream into the store. What has come is in a
// file, from which the ingest and all clients read, each at its own pace, while it grows.
// The file stays for a while: a client whose download breaks comes back for the rest of
// these bytes, and those that the store makes of the NAR are others.
type fetch struct {
	p    *Puller
	path *path
	name string // nar/<file>
	etag string

	opened chan struct{} // closed when file and size are there, or err
	file   *os.File
	size   int64         // bytes, or -1 if the upstream does not say
	begun  atomic.Bool   // the store has asked for the first byte
	done   chan struct{} // closed when the store has it, or err is there
	bad    bool          // err is about what the upstream has sent; set before ended

	// Guarded by Puller.mu.
	users int       // who read the file
	used  time.Time // when the last of them began or ended
	ended bool

	mu       sync.Mutex
	written  int64         // bytes
	complete bool          // all of it is written
	verified bool          // and is what it should be: the last byte may go out
	err      error         // there will be no more
	changed  chan struct{} // closed when one of these changes; nil if nobody waits
}

const (
	copyBuffer = 256 << 10
	spaceStep  = 32 << 20 // bytes that are written between looks at the disk
	// patience is how long a file that is all there waits for the store to begin with it.
	patience = 5 * time.Second
	// badTime is how long what an upstream has sent wrongly is not asked for again.
	badTime = 30 * time.Second
)

// run fetches the file, stores it, and ends when both is done.
func (f *fetch) run(ctx context.Context) {
	defer f.p.running.Done()
	err := f.fetch(ctx)
	switch {
	case errors.Is(err, chunkstore.ErrNotFound):
		// The narinfo is of no use without it. Another upstream may have both.
		if !f.path.info.StorePath.IsZero() {
			f.path.source.absent.Set(f.path.info.StorePath.HashPart()+".narinfo", struct{}{})
		}
		f.p.forget(f.path)
	case err != nil:
		f.p.log.Warn("pull failed", "upstream", f.path.source.Name(), "file", f.name, "path", f.path.info.StorePath, "err", err)
		f.bad = errors.Is(err, errWrong)
		err = fmt.Errorf("%w: %v", ErrFailed, err)
	}
	f.update(func() { f.err = err })
	f.p.ended(f)
	if f.file == nil {
		close(f.opened)
	}
	close(f.done)
}

func (f *fetch) fetch(ctx context.Context) error {
	if err := f.p.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer f.p.slots.Release(1)
	ctx, cancel := context.WithCancel(ctx) // of the body, too
	defer cancel()
	body, size, err := f.path.source.open(ctx, f.path, 0)
	if err != nil {
		return err
	}
	defer body.Close()
	if f.size = size; size > f.p.store.MaxNAR() {
		return fmt.Errorf("%s: %w", f.name, chunkstore.ErrTooLarge)
	}
	if f.file, err = os.CreateTemp(f.p.cfg.Dir, "nar-*"); err != nil {
		f.file = nil
		return fmt.Errorf("file for pulled NAR: %w", err)
	}
	close(f.opened)
	if err := os.Remove(f.file.Name()); err != nil {
		return fmt.Errorf("file for pulled NAR: %w", err)
	}
	return f.take(ctx, body)
}

// take writes body to the file, and has it stored.
func (f *fetch) take(ctx context.Context, body io.Reader) error {
	g, ctx := errgroup.WithContext(ctx)
	ingesting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var notStored error
	g.Go(func() error {
		if err := f.download(ctx, body); err != nil {
			return err
		}
		time.AfterFunc(patience, func() {
			if !f.begun.Load() {
				giveUp()
			}
		})
		return nil
	})
	g.Go(func() error {
		err := f.ingest(ingesting)
		if wrong(err) {
			return fmt.Errorf("%w: %w", errWrong, err) // no need to fetch the rest
		}
		notStored = err
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if notStored != nil {
		f.p.log.Warn("pulled NAR is not stored", "file", f.name, "path", f.path.info.StorePath, "err", notStored)
		return f.prove(ctx)
	}
	return nil
}

// open opens the NAR of a path at the upstream.
func (s *source) open(ctx context.Context, t *path, off int64) (body io.ReadCloser, size int64, err error) {
	err = s.ask(t.info.URL, func() error {
		body, size, err = s.NAR(ctx, t.info, off)
		return err
	})
	if errors.Is(err, upstream.ErrNotFound) {
		err = fmt.Errorf("NAR of %s at %s: %w", t.info.StorePath, s.Name(), chunkstore.ErrNotFound)
	}
	return body, size, err
}

// download writes body to the file.
func (f *fetch) download(ctx context.Context, body io.Reader) error {
	buf := make([]byte, copyBuffer)
	look := int64(spaceStep)
	for written := int64(0); ; {
		n, err := body.Read(buf)
		written += int64(n)
		if f.size >= 0 && written > f.size {
			return fmt.Errorf("%w: more than %d bytes", errWrong, f.size)
		}
		if limit := f.p.store.MaxNAR(); written > limit {
			return fmt.Errorf("pulled NAR is %w: %d bytes are allowed", chunkstore.ErrTooLarge, limit)
		}
		if _, err := f.file.Write(buf[:n]); err != nil {
			return fmt.Errorf("pulled NAR: %w", err)
		}
		if n > 0 {
			f.update(func() { f.written = written })
		}
		if err == io.EOF {
			if f.size >= 0 && written < f.size {
				return fmt.Errorf("%d of %d bytes: %w", written, f.size, io.ErrUnexpectedEOF)
			}
			f.update(func() { f.complete = true })
			return nil
		}
		if err != nil {
			return err
		}
		if written >= look {
			look = written + spaceStep
			if err := f.p.makeRoom(); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// ingest stores the NAR and its narinfo.
func (f *fetch) ingest(ctx context.Context) error {
	_, err := f.p.store.PutNAR(ctx, f.name, &reader{f: f, ctx: ctx}, func(file *chunkstore.File) error {
		if err := f.path.check(file); err != nil {
			return err
		}
		f.update(func() { f.verified = true })
		return nil
	})
	if err != nil || f.path.info.StorePath.IsZero() {
		return err
	}
	if err := f.p.store.PutNarInfo(ctx, f.path.info); err != nil {
		return err
	}
	f.p.forget(f.path)
	f.p.log.Info("pulled", "path", f.path.info.StorePath, "upstream", f.path.source.Name())
	return nil
}

// wrong says whether an ingest failed because of what the upstream has sent.
func wrong(err error) bool {
	return errors.Is(err, errWrong) || errors.Is(err, nar.ErrFormat) || errors.Is(err, compression.ErrCorrupt) ||
		errors.Is(err, compression.ErrMismatch) || errors.Is(err, compression.ErrUnknown) || errors.Is(err, io.ErrUnexpectedEOF)
}

// proveMemory is what decoding takes, in bytes, where it is not the store that does it.
const proveMemory = 72 << 20

// prove finds out whether a file that could not be stored is what it should be.
func (f *fetch) prove(ctx context.Context) error {
	f.mu.Lock()
	verified := f.verified
	f.mu.Unlock()
	if verified {
		return nil
	}
	f.p.proving.Lock()
	defer f.p.proving.Unlock()
	info := f.path.info
	file := chunkstore.File{Compression: info.Compression}
	fileSum, narSum := sha256.New(), sha256.New()
	raw := io.TeeReader(&reader{f: f, ctx: ctx}, fileSum)
	plain, err := compression.NewReader(compression.Type(info.Compression), raw, compression.Limits{MaxMemory: proveMemory})
	if err == nil {
		file.Size, err = io.Copy(narSum, io.LimitReader(plain, int64(info.NarSize)+1))
		narSum.Sum(file.Content[:0])
		plain.Close()
	} else if info.FileHash.Algo() == narinfo.SHA256 {
		// That will do for what cannot be decoded.
		file.Content, file.Size, err = info.NarHash, int64(info.NarSize), nil
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return err
	}
	fileSum.Sum(file.FileHash[:0])
	if err := f.path.check(&file); err != nil {
		return err
	}
	f.update(func() { f.verified = true })
	return nil
}
