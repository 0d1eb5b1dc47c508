package index

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Options tune OpenBolt. The zero value stands for the defaults.
type Options struct {
	// Memtable is how much memory changes may take, in bytes, before they are
	// written; as much again may be taken by those being written. Default 64 MiB,
	// at most 1 GiB. A larger one writes fewer pages for a given number of chunks.
	Memtable int
	// Bulk is for applying much at once, as when the index is rebuilt: until the first
	// Flush, memtables that are full are written in order beside the file, and merged into it
	// by Flush or Snapshot. What was not merged when the process ended is after the
	// next opening, with or without Bulk.
	Bulk bool
	// LockTimeout is how long to wait while another process has the index open.
	// Default 2 s.
	LockTimeout time.Duration
	// RoomWait is how long to wait before a full disk is tried again; default 100 ms.
	// Each further failure doubles that, up to 50 times as long.
	RoomWait time.Duration
}

const (
	defaultMemtable = 64 << 20
	maxMemtable     = 1 << 30
	defaultLockWait = 2 * time.Second
	defaultRoomWait = 100 * time.Millisecond
	maxRoomWait     = 50 // times Options.RoomWait
)

// format is the version of all that is in the file. A change that older code would
// misread gets a new number.
//
//	1: rows without sums. It is not read any more: the packs are.
//	2: rows with sums, between two that are nobody's.
const format = 2

// Names of bbolt buckets beside those of the tables, and their keys.
var (
	headBucket  = []byte("index")
	formatKey   = []byte("format") // version, 8 bytes big-endian
	idKey       = []byte("id")     // 16 bytes, drawn when the file was created
	marksBucket = []byte("marks")  // name → position, 8 bytes big-endian
)

const newSuffix = ".new" // of a file that is being created

// mmapSize is how much address space the file is mapped into from the start. When a
// file outgrows its mapping, bbolt waits for every reader before it maps anew, and a
// snapshot's reader may be waiting for the writer: 64 GiB are far beyond the size
// at which another engine is due. A mapping costs nothing where there is no file.
const mmapSize = 1 << (30 + 6*(^uint(0)>>63))

// minFile is the size of the smallest file: bbolt's two heads.
const minFile = 2 * 4096

// OpenBolt opens the index in the file at path, and creates it, durably, if there is
// none. It fails if another process has it open, or with ErrNewer or ErrDamaged.
func OpenBolt(path string, o Options) (*Bolt, error) {
	b, err := openBolt(path, o)
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", path, err)
	}
	return b, nil
}

func openBolt(path string, o Options) (*Bolt, error) {
	if o.Memtable == 0 {
		o.Memtable = defaultMemtable
	}
	if o.Memtable < 0 || o.Memtable > maxMemtable {
		return nil, fmt.Errorf("memtable of %d bytes: must be at most %d", o.Memtable, maxMemtable)
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = defaultLockWait
	}
	if o.RoomWait == 0 {
		o.RoomWait = defaultRoomWait
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = createBolt(path, o)
		if err != nil {
			err = fmt.Errorf("create: %w", err)
		}
	} else if err == nil && info.Mode().IsRegular() && info.Size() < minFile {
		err = damagef("the file has %d bytes", info.Size())
	} else if err == nil {
		err = checkTrusted(path)
	}
	if err != nil {
		return nil, err
	}
	db, file, err := openDB(path, o)
	if err != nil {
		return nil, err
	}
	b := &Bolt{
		path:      path,
		db:        db,
		file:      file,
		heads:     imageOfHeads(db),
		limit:     o.Memtable,
		roomWait:  o.RoomWait,
		active:    newMemtable(),
		bulk:      o.Bulk,
		runs:      newRuns(),
		marks:     make(map[string]uint64),
		turn:      make(chan struct{}, 1),
		work:      make(chan *memtable, 1),
		closing:   make(chan struct{}),
		writeDone: make(chan struct{}),
		fillDone:  make(chan struct{}),
	}
	if err := errors.Join(confirm(file), guard(nil, func() error { return db.View(b.load) })); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	chunks := int64(b.rows[Chunks].Load())
	b.filter = newFilter(max(minFilter, chunks+chunks/2))
	if err := b.openRuns(); err != nil {
		b.runs.close()
		return nil, errors.Join(err, db.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.stopFill = cancel
	go b.fill(ctx)
	go b.writeLoop()
	b.turn <- struct{}{}
	return b, nil
}

// openDB opens the file. The list of free pages is stored: without it writing was
// 1 to 18 % faster (4 M chunks), but opening would read every page of the file.
// What bbolt reads of the file at once, and would take for granted, is checked before.
func openDB(path string, o Options) (db *bbolt.DB, file *os.File, err error) {
	defer func() {
		if err != nil && file != nil {
			file.Close() // bbolt leaves it open, and locked, where it panics
		}
	}()
	defer catchFault(debug.SetPanicOnFault(true), nil, &err)
	db, err = bbolt.Open(path, 0o644, &bbolt.Options{
		Timeout:         o.LockTimeout,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mmapSize,
		PageSize:        pageSize, // also where the system's pages are larger: rows are small and random
		NoStatistics:    true,     // they are counted under a lock
		OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
			if file, err = os.OpenFile(name, flag, mode); err == nil {
				err = checkFile(file)
			}
			return file, err
		},
	})
	for _, damage := range []error{berrors.ErrInvalid, berrors.ErrChecksum, berrors.ErrVersionMismatch} {
		if errors.Is(err, damage) {
			return nil, file, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, file, fmt.Errorf("another process has it open: %w", err)
	}
	return db, file, err
}

// checkFile checks the heads and the list of free pages of a file that is not new.
func checkFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	p := make([]byte, 2*pageSize)
	if _, err := f.ReadAt(p, 0); err != nil {
		return err
	}
	h, whole, err := readHeads(p)
	if err != nil {
		return fmt.Errorf("%w: invalid database", err)
	}
	if whole < 2 { // no crash does that: a head is far smaller than what a disk writes at once
		return damagef("a head is not what was written")
	}
	if size := uint64(info.Size()); h.pages > size/pageSize {
		return damagef("the file has %d bytes and not %d pages", size, h.pages)
	}
	at := h.freeList * pageSize
	if h.freeList >= h.pages {
		return damagef("the list of free pages is in page %d of %d", h.freeList, h.pages)
	}
	list := make([]byte, pageSize)
	if _, err := f.ReadAt(list, int64(at)); err != nil {
		return err
	}
	more := uint64(native.Uint32(list[12:]))
	if more >= h.pages-h.freeList {
		return damagef("the list of free pages has %d pages", more)
	}
	list = make([]byte, (1+more)*pageSize)
	if _, err := f.ReadAt(list, int64(at)); err != nil {
		return err
	}
	_, err = parseFreePages(list, h)
	return err
}

// confirm makes durable what the file says now. Its last writer may have been killed before
// it could, or been told that it could not: bbolt's next transaction would then write over
// pages of the head that the disk has.
func confirm(f *os.File) error {
	p := make([]byte, 2*pageSize)
	if _, err := f.ReadAt(p, 0); err != nil {
		return err
	}
	// The same bytes again: pages that could not be written count as written.
	if _, err := f.WriteAt(p, 0); err != nil && !isFull(err) {
		return err
	}
	return f.Sync()
}

// createBolt creates an empty index under a temporary name first: the file at
// path is whole from the start.
func createBolt(path string, o Options) error {
	tmp := path + newSuffix
	if err := errors.Join(removeIfThere(tmp), removeIfThere(path+distrustSuffix)); err != nil {
		return err
	}
	db, _, err := openDB(tmp, o)
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(initialize), db.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func initialize(tx *bbolt.Tx) error {
	put := func(b *bbolt.Bucket, t Table, key, value []byte) error {
		return b.Put(key, appendSummed(nil, t, key, value))
	}
	head, err := tx.CreateBucket(headBucket)
	if err != nil {
		return err
	}
	id := newID()
	if err := errors.Join(put(head, headTable, formatKey, binary.BigEndian.AppendUint64(nil, format)), put(head, headTable, idKey, id[:])); err != nil {
		return err
	}
	for t, name := range bucketNames() {
		b, err := tx.CreateBucket([]byte(name))
		if err == nil {
			err = errors.Join(put(b, t, lowKey, nil), put(b, t, highKey, nil))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// newID returns the id of an index that has no runs yet.
func newID() (id [16]byte) {
	rand.Read(id[:])
	return id
}

// bucketNames yields the buckets that have rows, with the tables that their sums name.
func bucketNames() iter.Seq2[Table, string] {
	return func(yield func(Table, string) bool) {
		for t, name := range tableNames {
			if !yield(Table(t), name) {
				return
			}
		}
		yield(marksTable, string(marksBucket))
	}
}

// load checks the format and reads what is kept in memory.
func (b *Bolt) load(tx *bbolt.Tx) error {
	b.txid.Store(uint64(tx.ID()))
	if err := errors.Join(b.noteFreeList(tx), b.loadHead(tx)); err != nil {
		return err
	}
	empty := true
	defer func() { b.empty.Store(empty) }()
	for t, name := range bucketNames() {
		tree, err := openTree(tx, name, t, true)
		if err != nil {
			return err
		}
		if empty = empty && tree.root.n == 2; empty {
			empty = tree.each(nil, func(_, _ []byte) error { return errors.New("a row") }) == nil
		}
		switch t {
		case marksTable:
			return loadMarks(tree, b.marks)
		case packNames:
			if b.lastPack, err = lastPack(tree); err != nil {
				return err
			}
		}
		if tree.sequence > uint64(tx.Size())/elementSize {
			return damagef("%v says that it has %d rows, in a file of %d bytes", t, tree.sequence, tx.Size())
		}
		b.rows[t].Store(tree.sequence) // see writer.commit
	}
	return nil
}

func (b *Bolt) loadHead(tx *bbolt.Tx) error {
	tree, err := openTree(tx, string(headBucket), headTable, true)
	if err != nil {
		return fmt.Errorf("%w: the file is not an index of dedupd", err)
	}
	i, found, err := tree.root.search(formatKey)
	if err != nil || !found {
		return errors.Join(damagef("the file is not an index of dedupd"), err)
	}
	stored, err := tree.root.value(i, 0)
	if err != nil {
		return err
	}
	version := stored
	if len(stored) != 8 { // which has no sum in format 1
		if version, err = summed(headTable, formatKey, stored); err != nil {
			return err
		}
	}
	if len(version) != 8 {
		return damagef("the file is not an index of dedupd")
	}
	switch v := binary.BigEndian.Uint64(version); {
	case v > format:
		return fmt.Errorf("%w (%d; this program knows up to %d): use a newer dedupd, or move the file away and rebuild it with \"dedupd index rebuild\"", ErrNewer, v, format)
	case v < format || len(stored) == 8:
		return damagef("its format %d is not read any more", v)
	}
	if i, found, err = tree.root.search(idKey); err != nil || !found {
		return errors.Join(damagef("the file has no id"), err)
	}
	if stored, err = tree.root.value(i, 0); err != nil {
		return err
	}
	id, err := summed(headTable, idKey, stored)
	b.id = [16]byte(append(clone(id), make([]byte, 16)...))
	return err
}

// lastPack returns the greatest number of a pack.
func lastPack(t *tree) (uint32, error) {
	key, err := t.last()
	if err != nil || bytes.Equal(key, lowKey) {
		return 0, err
	}
	if len(key) != 4 {
		return 0, damagef("a pack has the number %x", key)
	}
	return binary.BigEndian.Uint32(key), nil
}

func loadMarks(t *tree, marks map[string]uint64) error {
	return t.each(nil, func(name, position []byte) error {
		if len(position) != 8 {
			return damagef("mark %q", name)
		}
		marks[string(name)] = binary.BigEndian.Uint64(position)
		return nil
	})
}
