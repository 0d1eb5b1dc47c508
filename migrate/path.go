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

// path imports one path, and returns what it refers to, or another file. An error is one after
// which nothing can be imported any more.
func (im *importer) path(ctx context.Context, hashPart string) ([]narinfo.StorePath, error) {
	if IsFile(hashPart) {
		return nil, im.file(ctx, hashPart)
	}
	im.progress.paths.Add(1)
	have, err := im.have(ctx, hashPart)
	if err != nil {
		return nil, err
	}
	if have != nil && im.settled(have) {
		im.progress.present.Add(1)
		return have.References, nil
	}
	info, err := im.source.NarInfo(ctx, hashPart)
	if reason := narInfoReason(err); have != nil && reason != "" && reason != Unreachable {
		im.progress.present.Add(1) // there is nothing that clients can remember
		return have.References, nil
	} else if reason != "" {
		return nil, im.skip(ctx, hashPart, reason, err)
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
	if reason, err := im.nar(ctx, info, have == nil); reason != "" {
		return info.References, im.skip(ctx, info.StorePath.String(), reason, err)
	} else if err != nil {
		return nil, err
	}
	if err := im.publish(ctx, info, have == nil); err != nil || have != nil || !im.opts.WithFiles || im.opts.Paths == nil {
		return info.References, err
	}
	return info.References, im.filesOf(ctx, info)
}

// publish makes a path visible whose NAR is there; one that is not fresh gets what signatures
// it lacks.
func (im *importer) publish(ctx context.Context, info *narinfo.NarInfo, fresh bool) error {
	for _, key := range im.opts.SigningKeys {
		info.Sign(im.storeDir, key)
	}
	if err := im.store.PutNarInfo(ctx, info); err != nil {
		if reason := reasonOf(nil, err); reason != "" {
			return im.skip(ctx, info.StorePath.String(), reason, err)
		}
		return fmt.Errorf("narinfo of %s: %w", info.StorePath, err)
	}
	if !fresh {
		im.progress.present.Add(1)
		return nil
	}
	im.progress.imported.Add(1)
	im.progress.narBytes.Add(int64(info.NarSize))
	return im.noteAbsent(ctx, info)
}

// have returns the narinfo of a path that is here with all of its NAR, or nil. There is
// nothing in it if nobody needs to know.
func (im *importer) have(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	if has, err := im.store.HasPath(ctx, hashPart); err != nil || !has {
		return nil, err
	}
	if im.linker == nil && !im.opts.Closure {
		return new(narinfo.NarInfo), nil
	}
	return im.store.NarInfo(ctx, hashPart)
}

// narInfoReason returns why there is no narinfo, "" if there is.
func narInfoReason(err error) Reason {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, upstream.ErrNotFound):
		return NoNarInfo
	case errors.Is(err, narinfo.ErrCorrupt), errors.Is(err, upstream.ErrPage), undecodable(err):
		return BadNarInfo
	}
	return Unreachable
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
	var absent []string
	for _, ref := range info.References {
		has, err := im.store.HasPath(ctx, ref.HashPart())
		if err != nil {
			return err
		}
		if !has {
			absent = append(absent, ref.HashPart())
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.noted += len(absent); len(absent) > 0 && im.noted <= maxAbsent {
		im.absent = append(im.absent, absent)
	}
	return nil
}

// errWrong says that a NAR is not the one that its narinfo is about.
var errWrong = errors.New("not the NAR of its narinfo")

// nar makes sure that the store has the NAR of info under its old name, and lets info name
// it. A NAR that is here, of another path or of this one if that is not fresh, is not read. If
// there is a reason, the path cannot be imported, and the error says more; without one, the
// error is one of the store.
func (im *importer) nar(ctx context.Context, info *narinfo.NarInfo, fresh bool) (Reason, error) {
	free, err := im.claim(ctx, info.NarHash)
	if err != nil {
		return "", err
	}
	defer free()
	name, err := im.fileName(ctx, info)
	if err != nil {
		return "", err
	}
	was := *info
	has, err := im.store.HasNAR(ctx, info.NarHash, int64(info.NarSize))
	if err != nil {
		return "", err
	}
	if has {
		if fresh {
			im.mu.Lock()
			im.report.Shared++
			im.mu.Unlock()
		}
		err = im.share(ctx, info, name)
	} else if reason, err := im.fetch(ctx, info, name); err != nil {
		return reason, err
	}
	if err == nil && im.linker != nil {
		err = im.link(ctx, &was)
		info.URL = im.origin + info.URL
	}
	return "", err
}

// fetch reads the NAR of info, stores it as a file of that name, or of another one if it is
// not what it should be, and lets info name it.
func (im *importer) fetch(ctx context.Context, info *narinfo.NarInfo, name string) (Reason, error) {
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
	r, bzip2, err := decodeBzip2(name, src)
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

// share lets info name the NAR that is here.
func (im *importer) share(ctx context.Context, info *narinfo.NarInfo, name string) error {
	f, err := im.store.File(ctx, name)
	switch {
	case err == nil && f.Content == info.NarHash:
		info.URL, info.Compression = f.Name, f.Compression
		info.FileHash, info.FileSize = narinfo.NewHash(narinfo.SHA256, f.FileHash[:]), uint64(f.FileSize)
	case err == nil, errors.Is(err, chunkstore.ErrNotFound):
		plain(info)
	default:
		return err
	}
	return nil
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
	narHash, fileHash := narinfo.NewHash(narinfo.SHA256, f.Content[:]), narinfo.NewHash(narinfo.SHA256, f.FileHash[:])
	if f.Content != info.NarHash || uint64(f.Size) != info.NarSize {
		return fmt.Errorf("%w: it has NarHash %s and NarSize %d, the narinfo says %s and %d", errWrong,
			narHash, f.Size, narinfo.NewHash(narinfo.SHA256, info.NarHash[:]), info.NarSize)
	}
	if info.FileHash.Algo() == narinfo.SHA256 && info.FileHash != fileHash || f.Compression != info.Compression {
		im.opts.Warn("the file of a NAR is not what the narinfo says, though the NAR is right",
			"path", info.StorePath, "FileHash", fileHash, "said", info.FileHash, "Compression", f.Compression, "said", info.Compression)
	}
	hash, isHash := hashName(f.Name)
	if isHash && hash != fileHash && hash != narHash || f.Compression != info.Compression {
		other := *info
		other.FileHash, other.Compression = fileHash, f.Compression
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
