package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// salvage makes a new pack of all that can be proven of a damaged one: the whole entries
// of its journal, the whole frames of these, and what the index has of it. The new pack
// says in the log that the old one is lost, so that what relies on that counts all the
// same, and that what is not in the new one is damaged: absent until it is uploaded again.
// So no commit is lost for the damage of another, and none is there in part.
//
// The old files are set aside, not removed. A crash before that repeats it all.
func (r *recovery) salvage(ctx context.Context, p *halfPack) error {
	if err := p.locate(); err != nil {
		return err
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
	lost, err := r.salvageIndexed(ctx, p, w)
	if err != nil {
		return err
	}
	name := r.successor(p.name)
	if err := w.publish(name); err != nil {
		return err
	}
	if err := r.setAside(p.name); err != nil {
		return err
	}
	r.report.Salvaged++
	r.report.LostChunks += lost
	r.log.Error("a pack in the spool is damaged: what is whole of it is in a new one, its files are set aside; run dedupd check to see which paths are absent, and upload these again",
		"pack", p.name, "new", name, "aside", filepath.Dir(r.spool.path(p.name, "")), "entries", len(p.entries), "chunks lost", lost, "err", p.damage)
	return r.addSealed(ctx, name)
}

// successor returns the name of the pack that replaces a damaged one: the next higher, so
// that chunks that are in both are those of the new one, and commits keep their order
// among those of other packs.
func (r *recovery) successor(name packfile.Name) packfile.Name {
	for {
		if name.Rand == math.MaxUint32 {
			name.Seq, name.Rand = name.Seq+1, 0
		} else {
			name.Rand++
		}
		if _, taken := r.bucket[name]; !taken {
			return name
		}
	}
}

// setAside renames the files of a pack durably, so that recovery does not look at them.
func (r *recovery) setAside(name packfile.Name) error {
	r.aside[name] = true
	for _, suffix := range []string{framesSuffix, journalSuffix, packSuffix} {
		path := r.spool.path(name, suffix)
		err := os.Rename(path, path+damagedSuffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("set aside: %w", err)
		}
		r.report.Aside = append(r.report.Aside, path+damagedSuffix)
	}
	return syncDir(filepath.Dir(r.spool.path(name, "")))
}

// zstdMagic is what the payload of every frame begins with.
var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// locate finds the frames of entries that follow a lost one, by their checksums: how much
// room the lost one's take is not known.
func (p *halfPack) locate() error {
	var data []byte
	at := int64(packfile.HeaderSize)
	for i := range p.entries {
		e := &p.entries[i]
		if e.at < 0 && len(e.Frames) > 0 && p.frames != nil {
			if data == nil {
				data = make([]byte, p.size)
				if _, err := p.frames.ReadAt(data, 0); err != nil && err != io.EOF {
					return fmt.Errorf("read frames: %w", err)
				}
			}
			e.at = findFrame(data, at, e.Frames[0])
		}
		if e.at >= 0 {
			at = e.end()
		}
	}
	return nil
}

// findFrame returns the first offset from one on at which a frame lies, or -1.
func findFrame(data []byte, from int64, f packfile.FrameInfo) int64 {
	for at := from; at+f.Size() <= int64(len(data)); at++ {
		n := bytes.Index(data[at+int64(f.Prefix):], zstdMagic)
		if n < 0 {
			return -1
		}
		if at += int64(n); at+f.Size() > int64(len(data)) {
			return -1
		}
		if _, err := packfile.ParseFrame(f.Kind, len(f.Chunks), data[at:at+f.Size()], f.Prefix, f.CRC); err == nil {
			return at
		}
	}
	return -1
}

// salvageIndexed adds what only the index has of a damaged pack, and what there is to say
// of its damage. It returns the number of chunks that are lost, as far as they are known.
func (r *recovery) salvageIndexed(ctx context.Context, p *halfPack, w *packWriter) (lost int64, err error) {
	number, err := r.packs.number(ctx, p.name)
	if err != nil {
		return 0, err
	}
	known := map[string]bool{}
	for _, e := range p.entries {
		if err := forEachRecordOf(e.Commit, func(rec packfile.Record) { known[recordKey(rec)] = true }); err != nil {
			return 0, err
		}
	}
	snap, err := r.ix.Snapshot(ctx)
	if err != nil {
		return 0, err
	}
	defer snap.Close()
	damages := []*damage{wholePack(p.name)}
	var frames []packfile.FrameInfo
	err = snap.ForEachChunk(ctx, func(id index.Key, l index.Location) error {
		c := placedChunk{packfile.ID(id), l}
		if l.Pack != number || w.copied[c.id] {
			return nil
		}
		if l.Chunks == 1 { // else only the directory knows the others
			whole, err := w.frame(int64(l.Offset), c.frame())
			if err != nil {
				return err
			}
			if whole {
				frames = append(frames, c.frame())
				return nil
			}
		}
		damages = append(damages, &damage{p.name, l.Offset, c.id})
		return nil
	})
	if err != nil {
		return 0, err
	}
	w.entries = append(w.entries, packfile.Entry{Frames: frames})
	var records []packfile.Record
	for _, d := range damages {
		records = append(records, packfile.Record{Type: packfile.RecordDamage, Body: d.encode()})
	}
	past, err := readDamages(ctx, snap)
	if err != nil {
		return 0, err
	}
	past.packs[p.name] = true // see checker.copyRecords
	indexed := &checker{store: r.Store, snap: snap}
	err = indexed.forEachRecord(ctx, past.packs, func(rec packfile.Record) error {
		if !known[recordKey(rec)] {
			records = append(records, rec)
		}
		return nil
	})
	w.addRecords(records)
	return int64(len(damages) - 1), err
}

func recordKey(r packfile.Record) string { return string(rune(r.Type)) + string(r.Body) }

// forEachRecordOf calls fn for the records of an encoded commit, or of none.
func forEachRecordOf(commit []byte, fn func(packfile.Record)) error {
	if commit == nil {
		return nil
	}
	c, err := packfile.ParseCommit(commit)
	if err != nil {
		return err
	}
	for _, rec := range c.Records {
		fn(rec)
	}
	return nil
}

// addRecords adds commits of records.
func (w *packWriter) addRecords(records []packfile.Record) {
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) && n < maxMarks && size < 1<<20 {
			size += len(records[n].Body)
			n++
		}
		c := packfile.Commit{Records: records[:n]}
		w.entries = append(w.entries, packfile.Entry{Commit: c.Append(nil)})
		records = records[n:]
	}
}
