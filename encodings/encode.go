package encodings

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/pierrec/lz4/v4"

	"github.com/dedupd/dedupd/compression"
)

// Making is how a file is made.
type Making struct {
	// Size is about how many bytes the file will have, and Limit how many it may have to
	// be of use.
	Size, Limit int64
	// Encode writes the file.
	Encode func(ctx context.Context, w io.Writer) error
	// Verify reads what was written, and says whether it is right.
	Verify func(r io.Reader) error
}

// A job is a file to be made.
type job struct {
	entry *entry
	Making
}

// encodeAll makes files, one after another, until ctx ends.
func (c *Cache) encodeAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-c.jobs:
			err := c.encode(ctx, &j)
			c.mu.Lock()
			e := j.entry
			e.queued = false
			c.stats.Waiting--
			if err != nil && ctx.Err() == nil && !errors.Is(err, errNoRoom) {
				e.downloads = 0 // until as many have asked for it again
				e.useless = errors.Is(err, errTooLarge) || errors.Is(err, ErrNoEncoder)
				c.stats.Failures++
				c.opts.Log.Warn("an old name stays as large as its NAR", "name", e.name, "err", err)
			}
			c.mu.Unlock()
		}
	}
}

// encode makes a file, if it is worth the room.
func (c *Cache) encode(ctx context.Context, j *job) error {
	c.mu.Lock()
	downloads := j.entry.downloads
	c.mu.Unlock()
	if !c.reserve(j.Size, downloads) {
		return nil
	}
	m, err := c.dir.make(min(j.Limit, c.opts.Size), c.opts.Room)
	if err != nil {
		return err
	}
	defer m.close()
	if err := j.Encode(ctx, m); err != nil {
		return err
	}
	if err := m.finish(j.entry.key); err != nil {
		return err
	}
	if err := j.Verify(untilDone{ctx, io.NewSectionReader(m.out, 0, m.size)}); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	c.disk.Lock()
	defer c.disk.Unlock()
	if !c.makeRoom(m.size, downloads) {
		return nil
	}
	if err := c.dir.publish(m.out.Name(), j.entry.key); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	j.entry.file = &m.file
	j.entry.enter(fresh)
	c.stats.Encoded++
	c.stats.Files++
	c.stats.Bytes += m.size
	return nil
}

// untilDone reads while its context has not ended.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// reserve is makeRoom before anything is done for it.
func (c *Cache) reserve(size int64, downloads uint32) bool {
	c.disk.Lock()
	defer c.disk.Unlock()
	return c.opts.Room() && c.makeRoom(size, downloads)
}

// ErrNoEncoder says that there is nothing that encodes.
var ErrNoEncoder = errors.New("no encoder")

// Compress writes what write writes to w, compressed. It is for those compressions that
// there is an encoder for; others give an error that wraps ErrNoEncoder. xz is the program
// of that name, with the lowest priority.
func Compress(ctx context.Context, t compression.Type, w io.Writer, write func(io.Writer) error) error {
	var z io.WriteCloser
	switch t {
	case compression.XZ:
		return xz(ctx, w, write)
	case compression.Gzip:
		z = gzip.NewWriter(w)
	case compression.Brotli:
		z = brotli.NewWriterLevel(w, 4)
	case compression.LZ4:
		z = lz4.NewWriter(w)
	default:
		return fmt.Errorf("%w for %s", ErrNoEncoder, t)
	}
	if err := write(z); err != nil {
		return err
	}
	return z.Close()
}

// xzPreset takes a fifth of the CPU time of xz -6, and 32 MiB of memory, for files that
// are 15 % larger; -1, with a smaller dictionary, makes them a third larger.
const xzPreset = "--lzma2=preset=1,dict=4MiB"

func xz(ctx context.Context, w io.Writer, write func(io.Writer) error) error {
	cmd := exec.CommandContext(ctx, "xz", "--compress", "--stdout", "--threads=1", xzPreset)
	var message bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &message
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrNoEncoder, err)
	} else if err != nil {
		return err
	}
	setLowPriority(cmd.Process.Pid)
	err = write(in)
	in.Close()
	if waitErr := cmd.Wait(); waitErr != nil {
		return fmt.Errorf("xz: %w: %s", waitErr, bytes.TrimSpace(message.Bytes()))
	}
	return err
}
