package chunkstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dedupd/dedupd/packfile"
)

// The spool is a directory with the packs that are not in the bucket yet, each under
// its name:
//
//	<writer>/<sequence>-<random>.frames   an open pack: header and frames, and
//	<writer>/<sequence>-<random>.journal  its journal
//	<writer>/<sequence>-<random>.pack     a sealed pack
//	<writer>/<sequence>-<random>.new      one that recovery writes
//	….damaged                             one of these that recovery set aside
//
// Sealing completes the .frames file, syncs it and renames it, then removes the journal.
// While there is a journal the pack's file is not believed to be on disk.
type spool struct {
	dir    string
	writer [10]byte // this process
	next   uint64
}

const (
	framesSuffix  = ".frames"
	journalSuffix = ".journal"
	packSuffix    = ".pack"
	newSuffix     = ".new"
	damagedSuffix = ".damaged"
)

func newSpool(dir string) (*spool, error) {
	s := &spool{dir: dir}
	binary.BigEndian.PutUint64(s.writer[:], uint64(time.Now().UnixMilli())<<16)
	rand.Read(s.writer[6:]) // never fails
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The names of the directories must be on disk before anything in them counts.
	for range 2 {
		dir = filepath.Dir(dir)
		if err := syncDir(dir); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// follow makes the packs of this process sort behind those of an earlier writer, whatever
// the clocks of their machines say. It is called before the first of them has a name.
func (s *spool) follow(writer [10]byte) {
	if slices.Compare(s.writer[:6], writer[:6]) <= 0 {
		random := binary.BigEndian.Uint16(s.writer[6:])
		binary.BigEndian.PutUint64(s.writer[:], (binary.BigEndian.Uint64(writer[:])>>16+1)<<16|uint64(random))
	}
}

func (s *spool) path(name packfile.Name, suffix string) string {
	return filepath.Join(s.dir, filepath.FromSlash(name.String())+suffix)
}

// newName returns a name that no pack ever had.
func (s *spool) newName() packfile.Name {
	var r [4]byte
	rand.Read(r[:])
	s.next++
	return packfile.Name{Writer: s.writer, Seq: s.next, Rand: binary.BigEndian.Uint32(r[:])}
}

// sequence returns the number of a pack among those of this process, 0 for an earlier one.
func (s *spool) sequence(name packfile.Name) uint64 {
	if name.Writer != s.writer {
		return 0
	}
	return name.Seq
}

// An openPack is the pack that commits go to. Only the committer uses it, but for
// reader, from which anybody reads frames that are committed.
type openPack struct {
	spool   *spool
	name    packfile.Name
	number  uint32
	file    *os.File // header and frames; its position is at their end
	reader  *os.File
	journal *os.File

	frames    int64 // end of the frames
	synced    int64 // end of the frames, with their header, that are on disk; 0 at first
	entries   []packfile.Entry
	metadata  int64 // bytes of the entries' commits
	written   int   // entries that are in the journal, on disk
	journaled int64 // end of those entries
	commits   int
	relies    map[packfile.Name]bool // packs that the commits rely on, and maybe some more
}

// create makes the files of a new pack and puts their names on disk.
func (s *spool) create() (*openPack, error) {
	p := &openPack{spool: s, name: s.newName(), frames: packfile.HeaderSize, relies: map[packfile.Name]bool{}}
	if err := p.createFiles(); err != nil {
		p.discard()
		return nil, fmt.Errorf("create pack %s: %w", p.name, err)
	}
	return p, nil
}

func (p *openPack) createFiles() (err error) {
	dir := filepath.Dir(p.spool.path(p.name, ""))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	flags := os.O_CREATE | os.O_EXCL | os.O_WRONLY
	if p.file, err = os.OpenFile(p.spool.path(p.name, framesSuffix), flags, 0o600); err != nil {
		return err
	}
	if p.reader, err = os.Open(p.file.Name()); err != nil {
		return err
	}
	if p.journal, err = os.OpenFile(p.spool.path(p.name, journalSuffix), flags, 0o600); err != nil {
		return err
	}
	if _, err := p.file.Write(packfile.Header(p.name)); err != nil {
		return err
	}
	header := packfile.JournalHeader(p.name)
	if _, err := p.journal.Write(header); err != nil {
		return err
	}
	p.journaled = int64(len(header)) // the header of the frames is synced with the first of them
	if err := syncDir(dir); err != nil {
		return err
	}
	return syncDir(p.spool.dir)
}

// discard gives up a pack that nothing was added to.
func (p *openPack) discard() {
	p.close()
	for _, suffix := range []string{framesSuffix, journalSuffix} {
		os.Remove(p.spool.path(p.name, suffix)) // else recovery does
	}
}

// close closes the files, but for the one that readers may be using.
func (p *openPack) close() {
	for _, f := range []*os.File{p.file, p.journal} {
		if f != nil {
			f.Close()
		}
	}
}

// add adds an entry whose frames are in the file already.
func (p *openPack) add(e packfile.Entry) {
	p.entries = append(p.entries, e)
	if e.Commit != nil {
		p.commits++
	}
	p.metadata += int64(len(e.Commit))
}

// size is about how large the pack will be.
func (p *openPack) size() int64 { return p.frames + p.metadata }

func (p *openPack) empty() bool { return p.frames == packfile.HeaderSize && len(p.entries) == 0 }

// write puts everything that was added on disk: the frames, then the journal.
func (p *openPack) write() error {
	// With the first entry the header, which has to be there even if there are no frames.
	if p.synced < p.frames || p.written == 0 {
		if err := p.file.Sync(); err != nil {
			return fmt.Errorf("%w: sync frames of pack %s: %w", errUnknown, p.name, err)
		}
	}
	if p.written == len(p.entries) {
		return nil
	}
	b := packfile.AppendJournalGroup(nil, uint64(p.written), p.entries[p.written:])
	if _, err := p.journal.Write(b); err != nil {
		return fmt.Errorf("write journal of pack %s: %w", p.name, err)
	}
	if err := p.journal.Sync(); err != nil {
		return fmt.Errorf("%w: sync journal of pack %s: %w", errUnknown, p.name, err)
	}
	p.written, p.journaled, p.synced = len(p.entries), p.journaled+int64(len(b)), p.frames
	return nil
}

// rollback drops what was added and is not in the journal on disk.
func (p *openPack) rollback() error {
	for _, e := range p.entries[p.written:] {
		p.metadata -= int64(len(e.Commit))
		if e.Commit != nil {
			p.commits--
		}
	}
	p.entries = p.entries[:p.written]
	p.frames = max(p.synced, packfile.HeaderSize)
	if err := errors.Join(cut(p.file, p.frames), cut(p.journal, p.journaled)); err != nil {
		return fmt.Errorf("%w: roll back pack %s: %w", errUnknown, p.name, err)
	}
	return nil
}

// cut shortens f to size bytes, where the next write goes.
func cut(f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	_, err := f.Seek(size, io.SeekStart)
	return err
}

// A sealedPack is a complete pack in the spool.
type sealedPack struct {
	name    packfile.Name
	number  uint32
	path    string
	size    int64
	entries int
	relies  map[packfile.Name]bool // other packs that its commits rely on
	since   time.Time              // of its first commit, or when recovery found it written
	attempt attempt                // to upload it; the uploader's
}

// seal completes the pack. All its entries must be written. After an error the pack is
// still open, unless that wraps errUnknown.
func (p *openPack) seal() (*sealedPack, error) {
	tail, err := packfile.AppendTail(nil, p.name, p.entries)
	if err != nil {
		return nil, fmt.Errorf("seal pack %s: %w", p.name, err)
	}
	path := p.spool.path(p.name, packSuffix)
	if _, err := p.file.Write(tail); err != nil {
		return nil, fmt.Errorf("seal pack %s: %w", p.name, err)
	}
	if err := p.file.Sync(); err != nil {
		return nil, fmt.Errorf("%w: seal pack %s: %w", errUnknown, p.name, err)
	}
	if err := os.Rename(p.file.Name(), path); err != nil {
		return nil, fmt.Errorf("seal pack %s: %w", p.name, err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%w: seal pack %s: %w", errUnknown, p.name, err)
	}
	os.Remove(p.journal.Name()) // else recovery does
	p.close()
	return &sealedPack{name: p.name, number: p.number, path: path, size: p.frames + int64(len(tail)), entries: len(p.entries), relies: p.relies}, nil
}

// remove takes a sealed pack out of the spool.
func (s *spool) remove(p *sealedPack) error {
	if err := os.Remove(p.path); err != nil {
		return err
	}
	if p.name.Writer != s.writer {
		os.Remove(filepath.Dir(p.path)) // succeeds when it was that writer's last
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func sortNames(names []packfile.Name) {
	slices.SortFunc(names, comparePacks)
}

func comparePacks(a, b packfile.Name) int { return slices.Compare(a.Append(nil), b.Append(nil)) }
