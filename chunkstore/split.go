package chunkstore

import (
	"fmt"

	cdc "github.com/PlakarKorp/go-cdc-chunkers"
	"github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc"
	"github.com/restic/chunker"
)

// A splitter finds where a segment is cut. It is used by one goroutine at a time.
type splitter interface {
	// cut returns the length of the first piece of b, which holds the whole rest of the
	// segment or at least the maximum chunk size. Equal bytes give equal cuts, whatever
	// was cut before.
	cut(b []byte) int
}

// newSplitter returns a splitter for a repository whose settings are valid.
func newSplitter(r Repository) (splitter, error) {
	switch r.Splitter {
	case Rabin:
		return newRabin(r)
	case FastCDC:
		return newFastCDC(r)
	}
	return nil, fmt.Errorf("splitter %q is unknown: there are %s and %s", r.Splitter, Rabin, FastCDC)
}

// rabin cuts by Rabin fingerprints, as restic does.
type rabin struct {
	pol      chunker.Pol
	base     *chunker.BaseChunker
	min, max uint
	bits     int
	mid      bool // base is inside a piece
}

func newRabin(r Repository) (*rabin, error) {
	var pol chunker.Pol
	if err := pol.UnmarshalJSON([]byte(`"` + r.Polynomial + `"`)); err != nil {
		return nil, fmt.Errorf("polynomial %q: %w", r.Polynomial, err)
	}
	s := &rabin{pol: pol, min: uint(r.MinSize), max: uint(r.MaxSize), bits: r.AverageBits}
	s.base = chunker.NewBase(pol, chunker.WithBaseBoundaries(s.min, s.max), chunker.WithBaseAverageBits(s.bits))
	return s, nil
}

func (s *rabin) cut(b []byte) int {
	if len(b) <= int(s.min) {
		return len(b)
	}
	if s.mid {
		// Reset forgets every option that it is not given again.
		s.base.Reset(s.pol, chunker.WithBaseBoundaries(s.min, s.max), chunker.WithBaseAverageBits(s.bits))
	}
	n := s.base.NextSplitPoint(b)
	// After a split point the chunker is at the start of a piece by itself.
	if s.mid = n < 0; s.mid {
		return len(b)
	}
	return n
}

// gear cuts by FastCDC (Xia et al., USENIX ATC 2016).
type gear struct {
	impl cdc.ChunkerImplementation
	opts *cdc.ChunkerOpts
}

func newFastCDC(r Repository) (*gear, error) {
	s := &gear{
		impl: &fastcdc.FastCDC{},
		opts: &cdc.ChunkerOpts{MinSize: r.MinSize, NormalSize: 1 << r.AverageBits, MaxSize: r.MaxSize},
	}
	if err := s.impl.Setup(s.opts); err != nil {
		return nil, fmt.Errorf("set up fastcdc: %w", err)
	}
	return s, nil
}

func (s *gear) cut(b []byte) int {
	return s.impl.Algorithm(s.opts, b, len(b))
}
