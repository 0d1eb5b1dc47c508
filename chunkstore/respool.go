package chunkstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dedupd/dedupd/packfile"
)

// readSpool finds the packs in the spool and seals those that were open.
func (r *recovery) readSpool(ctx context.Context) error {
	if err := os.RemoveAll(r.staging); err != nil {
		return err
	}
	if err := os.MkdirAll(r.staging, 0o700); err != nil {
		return err
	}
	found, err := r.listSpool()
	if err != nil {
		return err
	}
	names := slices.Collect(maps.Keys(found))
	sortNames(names)
	for _, name := range names {
		if err := r.readSpooled(ctx, name, found[name]); err != nil {
			return fmt.Errorf("pack %s in the spool: %w", name, err)
		}
	}
	return nil
}

// listSpool returns the suffixes of the files that each pack has in the spool, and makes
// sure that these names are on disk.
func (r *recovery) listSpool() (map[packfile.Name][]string, error) {
	found := map[packfile.Name][]string{}
	return found, fs.WalkDir(os.DirFS(r.spool.dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return syncDir(filepath.Join(r.spool.dir, path))
		}
		ext := filepath.Ext(path)
		if ext == damagedSuffix {
			r.report.Aside = append(r.report.Aside, filepath.Join(r.spool.dir, path))
			path = strings.TrimSuffix(path, ext)
		}
		name, err := packfile.ParseName(strings.TrimSuffix(path, filepath.Ext(path)))
		if err == nil && ext == damagedSuffix {
			r.aside[name] = true
			return nil
		}
		if err != nil {
			r.log.Warn("spool holds a file that is not dedupd's", "path", path)
			return nil
		}
		found[name] = append(found[name], ext)
		return nil
	})
}

func (r *recovery) readSpooled(ctx context.Context, name packfile.Name, suffixes []string) error {
	has := func(suffix string) bool { return slices.Contains(suffixes, suffix) }
	if has(newSuffix) {
		if err := os.Remove(r.spool.path(name, newSuffix)); err != nil {
			return err
		}
	}
	if r.spooled[name] {
		return nil // it was salvaged just now, and before a crash
	}
	// What the bucket has was sealed durably, and so was a pack without a journal. What else
	// there is a power cut has brought back.
	if _, uploaded := r.bucket[name]; uploaded || has(packSuffix) && !has(journalSuffix) {
		if err := r.removeHalf(name); err != nil || !has(packSuffix) {
			return err
		}
		return r.addSealed(ctx, name)
	}
	return r.reseal(ctx, name)
}

// addSealed takes a pack that is complete.
func (r *recovery) addSealed(ctx context.Context, name packfile.Name) error {
	path := r.spool.path(name, packSuffix)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		var pack *packfile.Pack
		if pack, err = packfile.Read(name, f, info.Size()); err == nil {
			return r.addPack(ctx, pack, path, f)
		}
	}
	defer f.Close()
	if !isDamage(err) {
		return err
	}
	if _, uploaded := r.bucket[name]; uploaded {
		r.log.Error("a pack in the spool is damaged; that in the bucket is used instead", "pack", name, "err", err)
		return r.setAside(name)
	}
	return r.salvage(ctx, &halfPack{name: name, frames: f, size: info.Size(), damage: err})
}

func (r *recovery) addPack(ctx context.Context, pack *packfile.Pack, path string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	number, err := r.packs.number(ctx, pack.Name)
	if err != nil {
		f.Close()
		return err
	}
	r.packs.addLocal(number, f)
	relies := map[packfile.Name]bool{}
	err = pack.ForEachCommit(func(_ int, c *packfile.Commit) error {
		for _, name := range c.Packs {
			relies[name] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.spooled[pack.Name] = true
	r.sealed = append(r.sealed, &sealedPack{name: pack.Name, number: number, path: path, size: pack.Size, entries: pack.Entries, relies: relies, since: info.ModTime()})
	return nil
}

// A halfPack is what a crash, or damage, has left of a pack in the spool.
type halfPack struct {
	name    packfile.Name
	frames  *os.File // nil if they are gone
	size    int64    // of frames
	entries []placedEntry
	damage  error // why it is not whole, as a crash leaves it; nil if it is
}

// A placedEntry is one of a journal whose frames begin at an offset, negative if that is
// not known.
type placedEntry struct {
	packfile.Entry
	at int64
}

// end returns where the frames of an entry end.
func (e *placedEntry) end() int64 {
	at := e.at
	for _, f := range e.Frames {
		at += f.Size()
	}
	return at
}

func (p *halfPack) close() {
	if p.frames != nil {
		p.frames.Close()
	}
}

// reseal completes a pack that was open, or whose sealing was not finished. It writes a
// file of its own: after a sync that failed, the pages of the old one need not be on disk,
// although they can be read, and the next sync does not say so.
func (r *recovery) reseal(ctx context.Context, name packfile.Name) error {
	p, err := r.readHalf(name)
	if err != nil {
		return err
	}
	defer p.close()
	switch {
	case p.damage != nil:
		return r.salvage(ctx, p)
	case len(p.entries) == 0:
		return r.removeHalf(name)
	}
	w, err := r.newPack(p)
	if err != nil {
		return err
	}
	defer w.close()
	for _, e := range p.entries {
		if err := w.entry(e); err != nil {
			return err
		}
	}
	if w.bad != nil {
		p.damage = w.bad
		return r.salvage(ctx, p)
	}
	if err := w.publish(name); err != nil {
		return err
	}
	r.report.Packs++
	for _, e := range p.entries {
		r.report.Entries++
		if e.Commit != nil {
			r.report.Commits++
		}
	}
	// What the journal says counts from now on, on disk or not. So it must not come back: a
	// power cut may take what was not synced when the process before was killed.
	if err := errors.Join(r.removeHalf(name), syncDir(filepath.Dir(r.spool.path(name, packSuffix)))); err != nil {
		return err
	}
	return r.addSealed(ctx, name)
}

// removeHalf removes what there may be beside a sealed pack. The journal goes last: while
// it is there the pack's file is not believed to be on disk.
func (r *recovery) removeHalf(name packfile.Name) error {
	return errors.Join(removeIfThere(r.spool.path(name, framesSuffix)), removeIfThere(r.spool.path(name, journalSuffix)))
}

// readHalf reads the journal of a pack and opens its frames. What lies behind the journal's
// end was never acknowledged. If there is less than there was, somebody may have the rest:
// that is an error, but for a store that is to be repaired.
func (r *recovery) readHalf(name packfile.Name) (*halfPack, error) {
	p := &halfPack{name: name}
	gone := false
	journal, err := os.Open(r.spool.path(name, journalSuffix))
	if err == nil {
		err = p.readJournal(journal, r)
		err = errors.Join(err, journal.Close())
	} else if gone = errors.Is(err, fs.ErrNotExist); gone {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	incomplete := func(err error) error {
		if !r.opts.AllowMissingPacks {
			return fmt.Errorf("%w: bring back the files of this pack in %s, or see what check --repair can save",
				err, filepath.Dir(r.spool.path(name, "")))
		}
		p.damage = err
		return nil
	}
	if mark := r.marks[name.String()]; p.damage == nil && uint64(len(p.entries)) < mark {
		err := incomplete(fmt.Errorf("journal has %d entries and the index applied %d: %w", len(p.entries), mark, packfile.ErrCorrupt))
		if err != nil {
			return nil, err
		}
	}
	if err := p.openFrames(r.spool); err != nil {
		return nil, err
	}
	end := int64(packfile.HeaderSize)
	if n := len(p.entries); n > 0 {
		end = p.entries[n-1].end()
	}
	switch {
	case p.damage != nil || gone:
	case p.size < end && end > packfile.HeaderSize: // the header is written anew
		if err := incomplete(fmt.Errorf("frames end at %d, the journal names them up to %d: %w", p.size, end, packfile.ErrCorrupt)); err != nil {
			p.close()
			return nil, err
		}
	default:
		r.report.Dropped += max(0, p.size-end)
	}
	return p, nil
}

// openFrames opens the frames; sealing may have got as far as giving them their last name.
func (p *halfPack) openFrames(s *spool) (err error) {
	for _, suffix := range []string{framesSuffix, packSuffix} {
		p.frames, err = os.Open(s.path(p.name, suffix))
		if errors.Is(err, fs.ErrNotExist) {
			p.frames = nil
			continue
		} else if err != nil {
			return err
		}
		info, err := p.frames.Stat()
		if err != nil {
			p.frames.Close()
			return err
		}
		p.size = info.Size()
		return nil
	}
	return nil
}

// readJournal reads the entries of the journal up to the first that is not whole, which
// is mostly a write that a crash cut short. If it is something else it notes the damage,
// and goes on behind it.
func (p *halfPack) readJournal(f *os.File, r *recovery) error {
	j, err := packfile.NewJournalReader(f)
	at, off := int64(packfile.HeaderSize), int64(0)
	header := err == nil
	for err == nil {
		var e packfile.Entry
		if e, err = j.Next(); err == nil {
			p.entries = append(p.entries, placedEntry{e, at})
			at = p.entries[len(p.entries)-1].end()
		}
		off = j.Offset()
	}
	switch {
	case header && j.Name != p.name:
		p.entries, p.damage = nil, fmt.Errorf("%w: the journal is that of pack %s", packfile.ErrCorrupt, j.Name)
		return nil
	case err == io.EOF:
		return nil
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, packfile.ErrCorrupt):
		return err
	}
	info, statErr := f.Stat()
	if statErr != nil {
		return statErr
	}
	rest := make([]byte, info.Size()-off)
	if _, err := f.ReadAt(rest, off); err != nil {
		return err
	}
	n := uint64(len(p.entries))
	found := packfile.FindEntries(rest, n)
	torn := func(e packfile.FoundEntry) bool { return !e.Synced || e.Seq <= n }
	switch {
	case header && !slices.ContainsFunc(found, func(e packfile.FoundEntry) bool { return !torn(e) }),
		!header && len(found) == 0 && len(strings.Trim(string(rest), "\x00")) == 0,
		errors.Is(err, io.ErrUnexpectedEOF) && !header:
		r.log.Warn("journal ends in a write that is not whole; what follows is dropped", "pack", p.name, "entries", n, "bytes", len(rest), "err", err)
		r.report.Dropped += int64(len(rest))
		return nil
	}
	p.damage = err
	for _, e := range found {
		if e.Seq != n {
			at = -1
		}
		p.entries = append(p.entries, placedEntry{e.Entry, at})
		if at, n = -1, e.Seq+1; p.entries[len(p.entries)-1].at >= 0 {
			at = p.entries[len(p.entries)-1].end()
		}
	}
	return nil
}

// A packWriter writes a pack to a file of its own.
type packWriter struct {
	spool   *spool
	from    *halfPack
	file    *os.File
	w       *bufio.Writer
	buf     []byte
	entries []packfile.Entry
	copied  map[packfile.ID]bool
	bad     error // of the first frame that was left out
}

func (r *recovery) newPack(from *halfPack) (*packWriter, error) {
	f, err := os.Create(r.spool.path(from.name, newSuffix))
	if err != nil {
		return nil, err
	}
	w := &packWriter{spool: r.spool, from: from, file: f, w: bufio.NewWriterSize(f, 1<<20), copied: map[packfile.ID]bool{}}
	w.w.Write(make([]byte, packfile.HeaderSize)) // the name is known at the end
	return w, nil
}

// close drops the file unless it was published.
func (w *packWriter) close() {
	w.file.Close()
	os.Remove(w.file.Name())
}

// entry takes an entry of the journal, with those of its frames that are whole.
func (w *packWriter) entry(e placedEntry) error {
	var frames []packfile.FrameInfo
	at := e.at
	for _, f := range e.Frames {
		whole, err := w.frame(at, f)
		if err != nil {
			return err
		}
		if whole {
			frames = append(frames, f)
		}
		at += f.Size()
	}
	w.entries = append(w.entries, packfile.Entry{Frames: frames, Commit: e.Commit})
	return nil
}

// frame copies a frame, unless it is damaged.
func (w *packWriter) frame(at int64, f packfile.FrameInfo) (whole bool, err error) {
	err = io.ErrUnexpectedEOF
	if w.from.frames != nil && at >= packfile.HeaderSize && f.Size() <= w.from.size-at {
		w.buf = slices.Grow(w.buf[:0], int(f.Size()))[:f.Size()]
		if _, err := w.from.frames.ReadAt(w.buf, at); err != nil {
			return false, fmt.Errorf("read frames: %w", err)
		}
		_, err = packfile.ParseFrame(f.Kind, len(f.Chunks), w.buf, f.Prefix, f.CRC)
	}
	if isDamage(err) {
		if w.bad == nil {
			w.bad = fmt.Errorf("frame at %d: %w", at, err)
		}
		return false, nil
	} else if err != nil {
		return false, err
	}
	for _, c := range f.Chunks {
		w.copied[c.ID] = true
	}
	_, err = w.w.Write(w.buf)
	return true, err
}

// publish completes the pack and gives it its name.
func (w *packWriter) publish(name packfile.Name) error {
	tail, err := packfile.AppendTail(nil, name, w.entries)
	if err != nil {
		return err
	}
	w.w.Write(tail)
	if err := w.w.Flush(); err != nil {
		return err
	}
	if _, err := w.file.WriteAt(packfile.Header(name), 0); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		return err
	}
	path := w.spool.path(name, packSuffix)
	if err := os.Rename(w.file.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
