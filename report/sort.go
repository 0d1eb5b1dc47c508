package report

import (
	"bufio"
	"container/heap"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// A sorter sorts lines that find no room in memory: sorted runs go to files without names,
// so that a crash leaves nothing, and are merged when they are read.
type sorter struct {
	dir   string
	max   int // bytes of a run, about
	lines []string
	size  int
	runs  []*os.File
}

const lineCost = 32 // bytes of memory beside the text

func (s *sorter) add(line string) error {
	s.lines = append(s.lines, line)
	s.size += len(line) + lineCost
	if s.size < s.max {
		return nil
	}
	return s.flush()
}

func (s *sorter) flush() error {
	slices.Sort(s.lines)
	f, err := os.CreateTemp(s.dir, "report-*")
	if err != nil {
		return fmt.Errorf("sort paths: %w", err)
	}
	s.runs = append(s.runs, f)
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("sort paths: %w", err)
	}
	w := bufio.NewWriter(f)
	for _, line := range s.lines {
		w.WriteString(line)
		w.WriteByte('\n')
	}
	s.lines, s.size = s.lines[:0], 0
	if err := w.Flush(); err != nil {
		return fmt.Errorf("sort paths: %w", err)
	}
	return nil
}

// each calls fn with all lines in order, and may be called again. An error of fn ends it
// and is returned.
func (s *sorter) each(fn func(line string) error) error {
	if len(s.runs) > 0 && len(s.lines) > 0 {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if len(s.runs) == 0 {
		slices.Sort(s.lines)
		for _, line := range s.lines {
			if err := fn(line); err != nil {
				return err
			}
		}
		return nil
	}
	var h runs
	for _, f := range s.runs {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("sort paths: %w", err)
		}
		r := &run{lines: bufio.NewScanner(f)}
		if r.next() {
			h = append(h, r)
		} else if err := r.lines.Err(); err != nil {
			return fmt.Errorf("sort paths: %w", err)
		}
	}
	for heap.Init(&h); len(h) > 0; {
		r := h[0]
		if err := fn(r.line); err != nil {
			return err
		}
		if r.next() {
			heap.Fix(&h, 0)
		} else if err := r.lines.Err(); err != nil {
			return fmt.Errorf("sort paths: %w", err)
		} else {
			heap.Pop(&h)
		}
	}
	return nil
}

func (s *sorter) close() error {
	var errs []error
	for _, f := range s.runs {
		errs = append(errs, f.Close())
	}
	s.runs = nil
	return errors.Join(errs...)
}

// A run is a file of lines in order.
type run struct {
	lines *bufio.Scanner
	line  string
}

func (r *run) next() bool {
	ok := r.lines.Scan()
	r.line = r.lines.Text()
	return ok
}

// runs are a heap, the least line first.
type runs []*run

func (h runs) Len() int           { return len(h) }
func (h runs) Less(i, j int) bool { return h[i].line < h[j].line }
func (h runs) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *runs) Push(x any)        { *h = append(*h, x.(*run)) }
func (h *runs) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
