package site

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// maxReferences is how many references of a path are listed.
const maxReferences = 500

// pathPage is what the page of a store path says.
type pathPage struct {
	*narinfo.NarInfo
	Dir        string // the store directory
	HashPart   string
	NarHash    string // as Nix writes it
	NARFile    string // URL of the NAR without compression
	Damaged    bool   // a part of the NAR is lost
	Download   int64  // bytes as zstd frames
	Stored     int64  // bytes of the distinct frames
	Chunks     int
	References []reference
	MoreRefs   int    // that are not listed
	Self       bool   // it refers to itself
	LogURL     string // "" if there is no log
}

// A reference is a store path that another one needs.
type reference struct {
	narinfo.StorePath
	Here bool // in the cache
}

func (s *Site) path(ctx context.Context, p *page, hashPart string, who *access.Identity) (*page, error) {
	info, err := s.find(ctx, hashPart, who)
	if err != nil {
		return nil, err
	}
	if info == nil {
		return s.notFound(p, s.storeDir+"/"+hashPart+"-…"), nil
	}
	hash := narinfo.EncodeNix32(info.NarHash[:])
	pp := &pathPage{NarInfo: info, Dir: s.storeDir, HashPart: hashPart, NarHash: "sha256:" + hash, NARFile: "/nar/" + hash + ".nar"}
	o, err := s.cfg.Store.Object(ctx, info.NarHash)
	switch {
	case err == nil:
		pp.Download = o.FrameSize()
		pp.Chunks, pp.Stored = o.Stored()
	case errors.Is(err, chunkstore.ErrNotFound), errors.Is(err, packfile.ErrCorrupt):
		pp.Damaged = true
	default:
		return nil, err
	}
	for _, ref := range info.References {
		if ref == info.StorePath {
			pp.Self = true
			continue
		}
		if len(pp.References) == maxReferences {
			pp.MoreRefs++
			continue
		}
		have, err := s.find(ctx, ref.HashPart(), who)
		if err != nil {
			return nil, err
		}
		pp.References = append(pp.References, reference{ref, have != nil})
	}
	slices.SortStableFunc(pp.References, func(a, b reference) int { return strings.Compare(a.Name(), b.Name()) })
	if pp.LogURL, err = s.logURL(ctx, info); err != nil {
		return nil, err
	}
	p.template, p.Title, p.Data = "path", info.StorePath.Name(), pp
	return p, nil
}

// logURL returns the URL of the log of the derivation that made a path, "" for none.
func (s *Site) logURL(ctx context.Context, info *narinfo.NarInfo) (string, error) {
	if info.Deriver == (narinfo.StorePath{}) {
		return "", nil
	}
	name := "log/" + info.Deriver.String()
	if _, err := s.cfg.Store.File(ctx, name); errors.Is(err, chunkstore.ErrNotFound) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	return "/" + name, nil
}

// Package is the name without the version.
func (p *pathPage) Package() string { return p.StorePath.Package() }

// Rest is what follows that in the name.
func (p *pathPage) Rest() string { return strings.TrimPrefix(p.StorePath.Name(), p.Package()) }
