package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// LinkNAR gives a NAR that is here, f.Content, a further name, f.Name, under which it is
// served in f.Compression: so that a name which others remember is alive without its file.
// What f says of that file is believed. A compression that cannot be served is written down
// all the same.
//
// When LinkNAR returns nil the commit is on disk and visible. The error wraps ErrConflict if
// something else has the name, and ErrNotFound if the NAR is not here.
func (s *Store) LinkNAR(ctx context.Context, f File) error {
	if err := s.Writable(); err != nil {
		return err
	}
	o, err := s.Object(ctx, f.Content)
	if err == nil && !o.NAR() {
		err = fmt.Errorf("%s: %w", hashText(f.Content), ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", f.Name, err)
	}
	f.NAR, f.Size, f.inline = true, o.Size(), nil
	if f.Compression == string(compression.Gzip) { // its stored mode needs it
		crc := crc32.NewIEEE()
		if err := o.WritePlain(ctx, crc, 0, o.Size()); err != nil {
			return fmt.Errorf("link %s: %w", f.Name, err)
		}
		f.CRC32 = crc.Sum32()
	}
	r := &request{relies: map[packfile.Name]struct{}{}}
	r.records = func(ctx context.Context, a *applier) ([]packfile.Record, error) {
		row, err := a.get(ctx, index.Contents, f.Content[:])
		if errors.Is(err, index.ErrNotFound) {
			return nil, fmt.Errorf("link %s: %w", f.Name, ErrNotFound)
		} else if err != nil {
			return nil, err
		}
		id, _ := splitRow(row)
		r.relies[id.pack()] = struct{}{}
		return a.addName(ctx, nil, &f)
	}
	return s.commit(ctx, r)
}
