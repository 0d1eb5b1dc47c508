package chunkstore

import (
	"fmt"
	"io"
	"os"

	"github.com/dedupd/dedupd/packfile"
)

// A stage holds the new frames of one upload until it is committed: in memory as long
// as they are few, then in a file that has no name, so that an upload that is dropped,
// or a crash, leaves nothing.
type stage struct {
	dir    string
	mem    []byte
	file   *os.File
	size   int64
	frames []stagedFrame
}

type stagedFrame struct {
	packfile.FrameInfo
	off   int64 // in the stage
	again bool  // of a chunk that is known, in a pack that is far; see scatter
}

// stageMemory is how much of an upload is held in memory.
const stageMemory = 512 << 10

// add appends a frame of a chunk that is new, or is stored again. The stage does not keep
// stored.
func (s *stage) add(info packfile.FrameInfo, stored []byte, again bool) error {
	if s.file == nil && len(s.mem)+len(stored) > stageMemory {
		if err := s.spill(); err != nil {
			return err
		}
	}
	if s.file == nil {
		s.mem = append(s.mem, stored...)
	} else if _, err := s.file.Write(stored); err != nil {
		return fmt.Errorf("stage upload: %w", err)
	}
	s.frames = append(s.frames, stagedFrame{info, s.size, again})
	s.size += int64(len(stored))
	return nil
}

func (s *stage) spill() error {
	f, err := os.CreateTemp(s.dir, "upload-*")
	if err != nil {
		return fmt.Errorf("stage upload: %w", err)
	}
	s.file = f
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("stage upload: %w", err)
	}
	if _, err := f.Write(s.mem); err != nil {
		return fmt.Errorf("stage upload: %w", err)
	}
	s.mem = nil
	return nil
}

// copyTo appends the n bytes at off to dst.
func (s *stage) copyTo(dst *os.File, off, n int64) error {
	if s.file == nil {
		_, err := dst.Write(s.mem[off : off+n])
		return err
	}
	if _, err := s.file.Seek(off, io.SeekStart); err != nil {
		return err
	}
	// Between two files the kernel copies.
	got, err := io.Copy(dst, io.LimitReader(s.file, n))
	if err == nil && got != n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// empty says that there are no new frames.
func (s *stage) empty() bool { return s == nil || len(s.frames) == 0 }

func (s *stage) close() {
	if s.file != nil {
		s.file.Close()
	}
	s.mem, s.file = nil, nil
}
