package pull

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/maypok86/otter/v2"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// A path is a store path that an upstream has, with a narinfo that was checked; or only a
// NAR with a name, whose info has no NarHash.
type path struct {
	source *source
	info   *narinfo.NarInfo // as the upstream has it
	file   string           // name of the NAR here, without nar/
}

// plain says whether the file is the NAR itself.
func (t *path) plain() bool {
	return t.info.Compression == string(compression.None) && !t.info.StorePath.IsZero()
}

func newPathCache() *otter.Cache[string, *path] {
	return otter.Must(&otter.Options[string, *path]{
		MaximumWeight: memory,
		Weigher: func(_ string, t *path) uint32 {
			return uint32(600 + 100*len(t.info.References) + 150*len(t.info.Sigs))
		},
		ExpiryCalculator: otter.ExpiryWriting[string, *path](pathAge),
	})
}

// NarInfo returns the narinfo of a path that the store lacks, as the first upstream that
// has it under a good signature says it, but for the URL, which is the name by which NAR
// has the file. If the store has the NAR already, from another path, the narinfo is stored,
// which the second result says.
func (p *Puller) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, bool, error) {
	t, err := p.path(ctx, hashPart)
	if err != nil {
		return nil, false, err
	}
	for _, key := range t.source.Sign {
		p.log.Info("narinfo signed", "path", t.info.StorePath, "key", key.Name, "upstream", t.source.Name())
	}
	if t.source.Keep && p.hasNAR(ctx, t.info) {
		if err := p.store.PutNarInfo(ctx, t.info); err == nil {
			p.forget(t)
			return t.info, true, nil
		} else if ctx.Err() == nil {
			p.log.Warn("pulled narinfo is not stored", "path", t.info.StorePath, "err", err)
		}
	}
	info := *t.info
	info.URL = "nar/" + t.file
	return &info, false, nil
}

// hasNAR says whether the store has the whole NAR of info.
func (p *Puller) hasNAR(ctx context.Context, info *narinfo.NarInfo) bool {
	o, err := p.store.Object(ctx, info.NarHash)
	return err == nil && o.NAR() && uint64(o.Size()) == info.NarSize
}

func (p *Puller) path(ctx context.Context, hashPart string) (*path, error) {
	if t, ok := p.paths.GetIfPresent(hashPart); ok && !t.source.Local {
		return t, nil
	}
	var t *path
	err := p.first(ctx, hashPart+".narinfo", func(s *source) error {
		info, err := s.NarInfo(ctx, hashPart)
		if err != nil {
			return err
		}
		if _, ok := info.Verify(p.storeDir, s.Keys); !ok && len(s.Keys) > 0 {
			p.log.Warn("upstream has a path without a good signature", "upstream", s.Name(), "path", info.StorePath, "signatures", len(info.Sigs))
			return fmt.Errorf("%w: no good signature", upstream.ErrNotFound)
		}
		for _, key := range s.Sign {
			info.Sign(p.storeDir, key)
		}
		t = &path{s, info, FileName(info)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	p.paths.Set(hashPart, t)
	p.files.Set(t.file, t)
	return t, nil
}

// forget drops what is remembered of a path.
func (p *Puller) forget(t *path) {
	if !t.info.StorePath.IsZero() {
		p.paths.Invalidate(t.info.StorePath.HashPart())
	}
	p.files.Invalidate(t.file)
}

// FileName returns the name by which the NAR of info is served, and stored. It is that
// of the upstream if that is a hash of what it names, as nearly everywhere. Else it begins
// with the hash part of the path, so that a client may come back with it when nothing is
// remembered. (Names that occur: harmonia's nar/<NarHash>.nar?hash=<hash part>, attic's
// nar/<hash part>.nar, nix-push's, which are not in nar/, and absolute URLs.)
func FileName(info *narinfo.NarInfo) string {
	typ := compression.Type(info.Compression)
	ext := ".nar" + typ.Extension()
	if file, ok := strings.CutPrefix(info.URL, "nar/"); ok {
		stem, ok := strings.CutSuffix(file, ext)
		sum, isHash := parseHash(stem)
		isNAR := sum == info.NarHash && (typ == compression.None || typ.Extension() != "")
		isFile := info.FileHash == narinfo.NewHash(narinfo.SHA256, sum[:])
		if ok && isHash && (isNAR || isFile) {
			return file
		}
	}
	return info.StorePath.HashPart() + "-" + narinfo.EncodeNix32(info.NarHash[:]) + ext
}

// parseHash parses a SHA-256 in nix32 or hexadecimal.
func parseHash(s string) (sum chunkstore.Hash, ok bool) {
	if len(s) != narinfo.Nix32Len(len(sum)) && len(s) != 2*len(sum) {
		return sum, false
	}
	h, err := narinfo.ParseHash("sha256:" + s)
	if err != nil {
		return sum, false
	}
	return chunkstore.Hash(h.Sum()), true
}

// find returns the path whose NAR is file. What is not remembered is asked for: clients
// remember narinfos for 30 days.
func (p *Puller) find(ctx context.Context, file string) (*path, error) {
	if t, ok := p.files.GetIfPresent(file); ok && !t.source.Local {
		return t, nil
	}
	if hashPart, _, ok := strings.Cut(file, "-"); ok {
		if !narinfo.IsHashPart(hashPart) {
			return nil, fmt.Errorf("NAR %s: %w", file, chunkstore.ErrNotFound)
		}
		t, err := p.path(ctx, hashPart)
		if err == nil && t.file != file {
			err = fmt.Errorf("NAR %s: %w", file, chunkstore.ErrNotFound)
		}
		return t, err
	}
	stem, _, _ := strings.Cut(file, ".")
	if _, ok := parseHash(stem); !ok {
		return nil, fmt.Errorf("NAR %s: %w", file, chunkstore.ErrNotFound)
	}
	t, err := p.probe(ctx, file, "nar/"+file)
	if errors.Is(err, chunkstore.ErrNotFound) {
		t, err = p.probe(ctx, file, file) // where nix-push has put NARs
	}
	if err != nil {
		return nil, err
	}
	p.files.Set(file, t)
	return t, nil
}

// probe looks for an upstream that has a NAR at a URL below its own.
func (p *Puller) probe(ctx context.Context, file, url string) (*path, error) {
	t := &path{file: file, info: &narinfo.NarInfo{URL: url}}
	err := p.first(ctx, url, func(s *source) error {
		body, _, err := s.NAR(ctx, t.info, 0)
		if err != nil {
			return err
		}
		t.source = s
		return body.Close()
	})
	return t, err
}

// errWrong is wrapped by what is wrong with a file that an upstream sent.
var errWrong = errors.New("the upstream has sent something else than it should")

// check returns an error if f is not the file that it should be.
func (t *path) check(f *chunkstore.File) error {
	stem, _, _ := strings.Cut(t.file, ".")
	sum, isHash := parseHash(stem)
	fileHash := narinfo.NewHash(narinfo.SHA256, f.FileHash[:])
	byName := t.info.StorePath.IsZero()
	switch {
	case isHash && sum != f.FileHash && (sum != f.Content || strings.HasSuffix(t.file, ".nar")):
		return fmt.Errorf("%w: the name is not its hash, %v", errWrong, fileHash)
	case byName && !isHash:
		return fmt.Errorf("%w: the name is no hash", errWrong)
	case byName:
		return nil
	case f.Content != t.info.NarHash || uint64(f.Size) != t.info.NarSize:
		return fmt.Errorf("%w: NarHash %v and NarSize %d", errWrong, narinfo.NewHash(narinfo.SHA256, f.Content[:]), f.Size)
	case t.info.FileHash.Algo() == narinfo.SHA256 && fileHash != t.info.FileHash:
		return fmt.Errorf("%w: FileHash %v", errWrong, fileHash)
	case f.Compression != t.info.Compression:
		return fmt.Errorf("%w: compression %s", errWrong, f.Compression)
	}
	return nil
}
