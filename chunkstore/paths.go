package chunkstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// PutNarInfo commits the narinfo of a store path. Its NAR must be in the store, by the
// NarHash, with the same size; if it is not, the error wraps ErrBadUpload. If the path
// has a narinfo already that says the same, the signatures are merged; if one that says
// something else, that one stays, unless its NAR is damaged.
//
// When PutNarInfo returns nil the commit is on disk and visible.
func (s *Store) PutNarInfo(ctx context.Context, info *narinfo.NarInfo) error {
	if err := s.Writable(); err != nil {
		return err
	}
	r := &request{relies: map[packfile.Name]struct{}{}}
	damages := s.damages.Load()
	p, err := s.plan(ctx, info.NarHash)
	switch {
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%w: the NAR %s of %s was not uploaded", ErrBadUpload, hashText(info.NarHash), info.StorePath)
	case err != nil:
		return err
	case !p.nar:
		return fmt.Errorf("%w: %s is the hash of a file that is no NAR", ErrBadUpload, hashText(info.NarHash))
	case uint64(p.size) != info.NarSize:
		return fmt.Errorf("%w: the NAR of %s has %d bytes, not NarSize %d", ErrBadUpload, info.StorePath, p.size, info.NarSize)
	}
	for i := range p.pieces {
		if n := p.pieces[i].loc.Pack; n != 0 {
			name, err := s.packs.name(ctx, n)
			if err != nil {
				return err
			}
			r.relies[name] = struct{}{}
		}
	}
	r.records = func(ctx context.Context, a *applier) ([]packfile.Record, error) {
		if s.damages.Load() != damages {
			return nil, fmt.Errorf("the NAR of %s may have been found damaged just now; try again: %w", info.StorePath, packfile.ErrCorrupt)
		}
		return s.narInfoRecords(ctx, a, info, r.relies)
	}
	if err := s.commit(ctx, r); err != nil {
		return err
	}
	s.counts.paths.Add(1)
	return nil
}

func (s *Store) narInfoRecords(ctx context.Context, a *applier, info *narinfo.NarInfo, relies map[packfile.Name]struct{}) ([]packfile.Record, error) {
	row, err := a.get(ctx, index.Contents, info.NarHash[:])
	if err != nil {
		return nil, err
	}
	id, body := splitRow(row)
	relies[id.pack()] = struct{}{}
	c, err := decodeContent(body)
	if err != nil {
		return nil, err
	}
	if row, err = a.get(ctx, index.Recipes, c.recipe[:]); err != nil {
		return nil, err
	}
	id, _ = splitRow(row)
	relies[id.pack()] = struct{}{}

	have, err := a.get(ctx, index.Paths, []byte(info.StorePath.HashPart()))
	if err != nil && !errors.Is(err, index.ErrNotFound) {
		return nil, err
	}
	vs, err := decodeVariants(have, s.repo.StoreDir)
	if err != nil {
		return nil, err
	}
	for _, v := range vs {
		if v.info.Fingerprint(s.repo.StoreDir) == info.Fingerprint(s.repo.StoreDir) {
			if hasSigs(v.info, info.Sigs) {
				return nil, nil
			}
			break
		}
		_, err := s.plan(ctx, v.info.NarHash)
		if err == nil {
			s.log.Warn("path has another narinfo already, which stays", "path", info.StorePath, "kept", hashText(v.info.NarHash), "new", hashText(info.NarHash))
			return nil, nil
		}
		if !errors.Is(err, packfile.ErrCorrupt) && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	return []packfile.Record{{Type: packfile.RecordNarInfo, Body: info.Append(nil, s.repo.StoreDir)}}, nil
}

func hasSigs(info *narinfo.NarInfo, sigs []narinfo.Signature) bool {
	have := map[string]bool{}
	for _, s := range info.Sigs {
		have[s.String()] = true
	}
	for _, s := range sigs {
		if !have[s.String()] {
			return false
		}
	}
	return true
}

// NarInfo returns the narinfo of the path with a hash part as it was uploaded: URL,
// Compression and the file's fields are those of the upload. If there are several, it is
// the first whose NAR is whole. The error wraps ErrNotFound if there is none.
func (s *Store) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	row, err := s.ix.Get(ctx, index.Paths, []byte(hashPart))
	if errors.Is(err, index.ErrNotFound) && s.follower != nil {
		s.follower.refresh(ctx)
		row, err = s.ix.Get(ctx, index.Paths, []byte(hashPart))
	}
	if errors.Is(err, index.ErrNotFound) {
		return nil, fmt.Errorf("path %s: %w", hashPart, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("look up path %s: %w", hashPart, err)
	}
	vs, err := decodeVariants(row, s.repo.StoreDir)
	if err != nil || len(vs) == 0 {
		return nil, fmt.Errorf("path %s: %w: %w", hashPart, packfile.ErrCorrupt, err)
	}
	for _, v := range vs {
		if len(vs) == 1 {
			break
		}
		if _, err := s.plan(ctx, v.info.NarHash); err == nil {
			return v.info, nil
		} else if !errors.Is(err, packfile.ErrCorrupt) && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	return vs[0].info, nil
}

// HasPath says whether a store path is here, by its hash part, with all of its NAR.
func (s *Store) HasPath(ctx context.Context, hashPart string) (bool, error) {
	info, err := s.NarInfo(ctx, hashPart)
	if err == nil {
		err = s.hasObject(ctx, info.NarHash)
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, index.ErrDamaged): // nothing can be said of what it does not find
		return false, err
	case errors.Is(err, ErrNotFound), errors.Is(err, packfile.ErrCorrupt):
		return false, nil
	}
	return false, err
}

// HasNAR says whether a NAR is here, all of it, with this hash and this size in bytes.
func (s *Store) HasNAR(ctx context.Context, hash Hash, size int64) (bool, error) {
	p, err := s.plan(ctx, hash)
	if errors.Is(err, ErrNotFound) || errors.Is(err, packfile.ErrCorrupt) {
		return false, nil
	}
	return err == nil && p.nar && p.size == size, err
}

// hasObject returns an error that wraps ErrNotFound or packfile.ErrCorrupt if the store
// does not have an object, or not all of it. Where nothing was ever damaged it need not
// look for each chunk, which is most of what a plan costs.
func (s *Store) hasObject(ctx context.Context, hash Hash) error {
	intact, err := s.intact(ctx)
	if err != nil {
		return err
	}
	if !intact {
		_, err = s.plan(ctx, hash)
		return err
	}
	if _, err = s.ix.Get(ctx, index.Contents, hash[:]); errors.Is(err, index.ErrNotFound) {
		return fmt.Errorf("object %x: %w", hash, ErrNotFound)
	}
	return err
}

func hashText(h Hash) string { return "sha256:" + hex.EncodeToString(h[:]) }
