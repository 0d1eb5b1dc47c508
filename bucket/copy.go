package bucket

import (
	"context"
	"io"
	"os"
)

// copyStep is how much is copied, in bytes, between two looks at ctx.
const copyStep = 8 << 20

// copyAt writes the size bytes at the start of r to dst. Where the system can, it
// has a file copied by the kernel, which on some file systems only shares blocks.
func copyAt(ctx context.Context, dst *os.File, r io.ReaderAt, size int64) error {
	var done int64
	for done < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		step := min(copyStep, size-done)
		n := cloneRange(dst, r, done, step)
		if n == 0 {
			var err error
			if n, err = io.Copy(dst, io.NewSectionReader(r, done, step)); err != nil {
				return err
			}
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		done += n
	}
	return nil
}
