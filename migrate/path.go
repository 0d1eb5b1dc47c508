package migrate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	gopath "path"
	"sync/atomic"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/pull"
	"github.com/dedupd/dedupd/upstream"
)

// path imports one path, and returns what it refers to. An error is one after which
// nothing can be imported any more.
func (im *importer) path(ctx context.Context, hashPart string) ([]narinfo.StorePath, error) {
	im.progress.paths.Add(1)
	if has, err := im.store.HasPath(ctx, hashPart); err != nil {
		return nil, err
	} else if has {
		im.progress.present.Add(1)
		if !im.opts.Closure {
			return nil, nil
		}
		info, err := im.store.NarInfo(ctx, hashPart)
		if err != nil {
			return nil, err
		}
		return info.References, nil
	}
	info, err := im.source.NarInfo(ctx, hashPart)
	switch {
	case errors.Is(err, upstream.ErrNotFound):
		return nil, im.skip(ctx, hashPart, NoNarInfo, err)
	case errors.Is(err, narinfo.ErrCorrupt), errors.Is(err, upstream.ErrPage), undecodable(err):
		return nil, im.skip(ctx, hashPart, BadNarInfo, err)
	case err != nil:
		return nil, im.skip(ctx, hashPart, Unreachable, err)
	}
	im.worked()
	if ok, _ := gopath.Match(im.opts.Match, info.StorePath.Name()); !ok && im.opts.Match != "" {
		return info.References, nil
	}
	if _, ok := info.Verify(im.storeDir, im.opts.Keys); !ok && len(im.opts.Keys) > 0 {
		return info.References, im.skip(ctx, info.StorePath.String(), BadSignature, errors.New("no key that is trusted has signed it"))
	}
	if im.opts.DryRun {
		im.progress.imported.Add(1)
		im.progress.narBytes.Add(int64(info.NarSize))
		return info.References, nil
	}
	if reason, err := im.nar(ctx, info); reason != "" {
		return info.References, im.skip(ctx, info.StorePath.String(), reason, err)
	} else if err != nil {
		return nil, err
	}
	return info.References, im.publish(ctx, info)
}

// publish makes a path visible whose NAR is there.
func (im *importer) publish(ctx context.Context, info *narinfo.NarInfo) error {
	for _, key := range im.opts.SigningKeys {
		info.Sign(im.storeDir, key)
	}
	if err := im.store.PutNarInfo(ctx, info); err != nil {
		if reason := reasonOf(nil, err); reason != "" {
			return im.skip(ctx, info.StorePath.String(), reason, err)
		}
		return fmt.Errorf("narinfo of %s: %w", info.StorePath, err)
	}
	im.progress.imported.Add(1)
	im.progress.narBytes.Add(int64(info.NarSize))
	return im.noteAbsent(ctx, info)
}

// undecodable says whether an error is about an encoding.
func undecodable(err error) bool {
	return errors.Is(err, compression.ErrCorrupt) || errors.Is(err, compression.ErrUnknown) || errors.Is(err, compression.ErrUnsupported)
}

// maxAbsent bounds the references that are remembered. Of an import in which more of them
// come later than what refers to them it is not known how many paths are incomplete.
const maxAbsent = 1 << 20

// noteAbsent remembers what a path refers to that is not here yet.
func (im *importer) noteAbsent(ctx context.Context, info *narinfo.NarInfo) error {
	for _, ref := range info.References {
		has, err := im.store.HasPath(ctx, ref.HashPart())
		if err != nil {
			return err
		}
		if !has {
			im.mu.Lock()
			if _, known := im.absent[ref.HashPart()]; known || len(im.absent) < maxAbsent {
				im.absent[ref.HashPart()]++
			}
			im.mu.Unlock()
			return nil
		}
	}
	return nil
}

// errWrong says that a NAR is not the one that its narinfo is about.
var errWrong = errors.New("not the NAR of its narinfo")

// nar makes sure that the store has the NAR of info under its old name, and lets info name
// it. A NAR that several paths have is read once. If there is a reason, the path cannot be
// imported, and the error says more; without one, the error is one of the store.
func (im *importer) nar(ctx context.Context, info *narinfo.NarInfo) (Reason, error) {
	free, err := im.claim(ctx, info.NarHash)
	if err != nil {
		return "", err
	}
	defer free()
	file := pull.FileName(info)
	name := "nar/" + file
	known, err := im.known(ctx, info, name)
	if err != nil || known {
		return "", err
	}
	body, size, err := im.source.NAR(ctx, info, 0)
	switch {
	case errors.Is(err, upstream.ErrNotFound):
		return NoNAR, err
	case errors.Is(err, upstream.ErrPage):
		return BadNAR, err
	case err != nil:
		return Unreachable, err
	}
	defer body.Close()
	if size > im.store.MaxNAR() {
		return TooLarge, fmt.Errorf("%d bytes: %w", size, chunkstore.ErrTooLarge)
	}
	src := &sourceReader{r: body, read: &im.progress.read}
	r, bzip2, err := decodeBzip2(file, src)
	if err != nil {
		return reasonOf(src.err, err), err
	}
	if bzip2 {
		plain(info)
		name = info.URL
	}
	f, err := im.store.PutNAR(ctx, name, r, func(f *chunkstore.File) error { return im.accept(info, f) })
	if err != nil {
		return reasonOf(src.err, err), err
	}
	im.worked()
	info.URL, info.Compression = f.Name, f.Compression
	info.FileHash, info.FileSize = narinfo.NewHash(narinfo.SHA256, f.FileHash[:]), uint64(f.FileSize)
	return "", nil
}

// known says whether there is no need to read the NAR, and lets info name the one that is
// here. A name of its own that it has at the source, and that clients may know, must be here too.
func (im *importer) known(ctx context.Context, info *narinfo.NarInfo, name string) (bool, error) {
	if has, err := im.store.HasNAR(ctx, info.NarHash, int64(info.NarSize)); err != nil || !has {
		return false, err
	}
	f, err := im.store.File(ctx, name)
	switch {
	case err == nil && f.Content == info.NarHash:
		info.URL, info.Compression = f.Name, f.Compression
		info.FileHash, info.FileSize = narinfo.NewHash(narinfo.SHA256, f.FileHash[:]), uint64(f.FileSize)
	case err == nil:
		return false, nil
	case !errors.Is(err, chunkstore.ErrNotFound):
		return false, err
	case info.URL == name:
		return false, nil
	default:
		plain(info)
	}
	im.mu.Lock()
	im.report.Shared++
	im.mu.Unlock()
	return true, nil
}

// plain lets info name the NAR itself.
func plain(info *narinfo.NarInfo) {
	info.URL, info.Compression = "nar/"+narinfo.EncodeNix32(info.NarHash[:])+".nar", string(compression.None)
	info.FileHash, info.FileSize = narinfo.NewHash(narinfo.SHA256, info.NarHash[:]), info.NarSize
}

// decodeBzip2 returns what r, the file of a NAR, is without bzip2, and whether that was its
// compression: the only one that can be decoded and not made again when somebody asks for it.
func decodeBzip2(file string, r io.Reader) (io.Reader, bool, error) {
	buf := bufio.NewReaderSize(r, compression.HeaderSize)
	head, err := buf.Peek(compression.HeaderSize)
	if err != nil && err != io.EOF {
		return nil, false, err
	}
	if typ, _ := compression.Detect(file, head); typ != compression.Bzip2 {
		return buf, false, nil
	}
	need, err := compression.Memory(compression.Bzip2, head)
	if err != nil {
		return nil, false, err
	}
	plain, err := compression.NewReader(compression.Bzip2, buf, compression.Limits{MaxMemory: need})
	return plain, true, err // closing it would only close r
}

// accept checks what has come for info. The NAR counts: Nix has never looked at FileHash. A
// file that is not what its name says gets another one.
func (im *importer) accept(info *narinfo.NarInfo, f *chunkstore.File) error {
	if f.Content != info.NarHash || uint64(f.Size) != info.NarSize {
		return fmt.Errorf("%w: it has NarHash %s and NarSize %d, the narinfo says %s and %d", errWrong,
			narinfo.NewHash(narinfo.SHA256, f.Content[:]), f.Size, narinfo.NewHash(narinfo.SHA256, info.NarHash[:]), info.NarSize)
	}
	fileHash := narinfo.NewHash(narinfo.SHA256, f.FileHash[:])
	if info.FileHash.Algo() == narinfo.SHA256 && info.FileHash != fileHash || f.Compression != info.Compression {
		im.opts.Warn("the file of a NAR is not what the narinfo says, though the NAR is right",
			"path", info.StorePath, "FileHash", fileHash, "said", info.FileHash, "Compression", f.Compression, "said", info.Compression)
		other := *info
		other.FileHash, other.URL, other.Compression = fileHash, "", f.Compression
		f.Name = "nar/" + pull.FileName(&other)
		im.mu.Lock()
		im.report.Renamed++
		im.mu.Unlock()
	}
	return nil
}

// reasonOf returns why a NAR is not imported, "" if that is an error of the store.
func reasonOf(source, err error) Reason {
	switch {
	case errors.Is(err, chunkstore.ErrTooLarge):
		return TooLarge
	case errors.Is(err, compression.ErrUnsupported):
		return Unsupported
	case errors.Is(err, chunkstore.ErrConflict):
		return Conflict
	case errors.Is(err, errRefused):
		return Refused
	case errors.Is(source, upstream.ErrDamaged):
		return BadNAR
	case source != nil:
		return Unreachable
	case errors.Is(err, errWrong), errors.Is(err, chunkstore.ErrBadUpload):
		return BadNAR
	}
	return ""
}

// claim waits until nobody else reads the NAR with a hash, and keeps others from it until
// the function that it returns is called.
func (im *importer) claim(ctx context.Context, hash chunkstore.Hash) (free func(), err error) {
	for {
		im.mu.Lock()
		busy, taken := im.busy[hash]
		if !taken {
			done := make(chan struct{})
			im.busy[hash] = done
			im.mu.Unlock()
			return func() {
				im.mu.Lock()
				delete(im.busy, hash)
				im.mu.Unlock()
				close(done)
			}, nil
		}
		im.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// A sourceReader counts what comes from the source, and remembers what went wrong with it,
// which is not what is wrong with what came.
type sourceReader struct {
	r    io.Reader
	read *atomic.Int64
	err  error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.read.Add(int64(n))
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
