package chunkstore

import (
	"context"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/packfile"
)

// A frameReader reads frames and proves that they are what was written. It is for one
// goroutine.
type frameReader struct {
	packs *packTable
	dec   *packfile.Decoder
	buf   []byte
	quick bool // what ingest has proven of a frame, and its checksum keeps, is not proven again
}

// verify reads the frame at an offset of a pack, decodes it, and compares the IDs of its
// chunks. If it fails it tries again: what is written down as damaged stays that. The
// frame is in r.buf until the next call. isDamage tells the errors apart.
func (r *frameReader) verify(ctx context.Context, pack uint32, at int64, f packfile.FrameInfo) error {
	err := r.verifyOnce(ctx, pack, at, f)
	if isDamage(err) {
		err = r.verifyOnce(ctx, pack, at, f)
	}
	return err
}

func (r *frameReader) verifyOnce(ctx context.Context, pack uint32, at int64, f packfile.FrameInfo) error {
	if err := r.read(ctx, pack, at, f.Size()); err != nil {
		return err
	}
	return r.prove(r.buf, f)
}

func (r *frameReader) read(ctx context.Context, pack uint32, at, n int64) error {
	r.buf = slices.Grow(r.buf[:0], int(n))[:n]
	return r.packs.readAt(ctx, pack, r.buf, at)
}

func (r *frameReader) prove(stored []byte, f packfile.FrameInfo) error {
	v, err := packfile.ParseFrame(f.Kind, len(f.Chunks), stored, f.Prefix, f.CRC)
	if err != nil {
		return err
	}
	if r.quick {
		return r.dec.VerifyChunks(&v, f.Chunks)
	}
	return r.dec.Verify(&v, f.Chunks)
}

// maxReaders bounds the memory that frames take while they are verified: each reader has
// buffers for a frame and for what it decodes to.
const maxReaders = 8

// frameReaders are as many as there are processors, up to maxReaders. One goroutine at a
// time uses them.
type frameReaders []*frameReader

func newFrameReaders(packs *packTable) (frameReaders, error) {
	readers := make(frameReaders, min(runtime.GOMAXPROCS(0), maxReaders))
	for i := range readers {
		dec, err := packfile.NewDecoder()
		if err != nil {
			return nil, err
		}
		readers[i] = &frameReader{packs: packs, dec: dec}
	}
	return readers, nil
}

// A placedFrame is a frame of a pack, and what is wrong with it.
type placedFrame struct {
	packfile.FrameInfo
	at  int64
	err error // isDamage, or nil
}

// verifyAll verifies frames of one pack, in the order in which they lie there, and sets
// their errors. The error that it returns is one that is no damage. It keeps the rate of
// pace, if that is not nil.
func (readers frameReaders) verifyAll(ctx context.Context, pack uint32, frames []placedFrame, pace *pacer) error {
	atOnce := int64(maxRun)
	if pace != nil {
		atOnce = min(atOnce, pace.rate/10)
	}
	runs := make(chan []placedFrame)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(runs)
		for len(frames) > 0 {
			n, size := nextRun(frames, atOnce)
			if pace != nil {
				if err := pace.wait(ctx, size); err != nil {
					return err
				}
			}
			select {
			case runs <- frames[:n]:
			case <-ctx.Done():
				return ctx.Err()
			}
			frames = frames[n:]
		}
		return nil
	})
	for _, r := range readers {
		group.Go(func() error {
			for run := range runs {
				if err := r.verifyRun(ctx, pack, run); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// maxRun is how many bytes of frames that lie one after another are read at once, if it
// is not one frame that is larger.
const maxRun = 1 << 20

// nextRun returns how many of frames are to be read at once, and their bytes: up to
// atOnce, but one frame at least.
func nextRun(frames []placedFrame, atOnce int64) (n int, size int64) {
	for _, f := range frames {
		if n > 0 && (f.at != frames[0].at+size || size+f.Size() > atOnce) {
			break
		}
		n++
		size += f.Size()
	}
	return n, size
}

// verifyRun verifies frames that lie one after another. If one fails it is read again by
// itself, so that what is wrong with it is nobody else's.
func (r *frameReader) verifyRun(ctx context.Context, pack uint32, run []placedFrame) error {
	start, last := run[0].at, &run[len(run)-1]
	err := r.read(ctx, pack, start, last.at+last.Size()-start)
	if err != nil && !isDamage(err) {
		return err
	}
	readable := err == nil
	var again []*placedFrame
	for i := range run {
		f := &run[i]
		if !readable || r.prove(r.buf[f.at-start:][:f.Size()], f.FrameInfo) != nil {
			again = append(again, f)
		}
	}
	for _, f := range again {
		err := r.verify(ctx, pack, f.at, f.FrameInfo)
		if err != nil && !isDamage(err) {
			return err
		}
		f.err = err
	}
	return nil
}
