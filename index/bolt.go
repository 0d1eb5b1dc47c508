package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
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
	// LockTimeout is how long to wait while another process has the index open.
	// Default 2 s.
	LockTimeout time.Duration
}

const (
	defaultMemtable = 64 << 20
	maxMemtable     = 1 << 30
	defaultLockWait = 2 * time.Second
)

// format is the version of all that is in the file. A change that older code would
// misread gets a new number.
const format = 1

// Names of bbolt buckets beside those of the tables, and their keys.
var (
	headBucket  = []byte("index")
	formatKey   = []byte("format") // version, 8 bytes big-endian
	marksBucket = []byte("marks")  // name → position, 8 bytes big-endian
)

// mmapSize is how much address space the file is mapped into from the start. When a
// file outgrows its mapping, bbolt waits for every reader before it maps anew, and a
// snapshot's reader may be waiting for the writer: 64 GiB are far beyond the size
// at which another engine is due. A mapping costs nothing where there is no file.
const mmapSize = 1 << (30 + 6*(^uint(0)>>63))

// minFile is the size of the smallest file: bbolt's two heads.
const minFile = 2 * 4096

// Bolt is an Index in one bbolt file. bbolt is good at large sorted transactions
// and slow at small random ones, so changes gather in a memtable; when that is full it
// is frozen, and written by a goroutine while the next one fills. Reads ask the
// active memtable, the frozen one, the filter (for chunks), and bbolt, in this order:
// a row moves along it, and is dropped behind only when it can be seen ahead.
type Bolt struct {
	path   string
	db     *bbolt.DB
	limit  int // size at which a memtable is frozen, bytes
	filter *filter
	rows   [numTables]atomic.Uint64 // on disk; changed by writeLoop

	// turn holds a token while nobody is applying, freezing or taking a snapshot.
	turn     chan struct{}
	lastPack uint32 // greatest number in use; for the holder of the turn

	mu     sync.RWMutex      // guards what follows
	active *memtable         // replaced, and added to, by the holder of the turn
	frozen *memtable         // nil if none; set by the holder of the turn, cleared by writeLoop
	marks  map[string]uint64 // durable ones
	err    error             // ErrBroken or ErrClosed, once that happened
	closed bool

	work        chan *memtable // to writeLoop: frozen ones, hence one at a time
	writeDone   chan struct{}  // closed when writeLoop has returned
	stopFill    context.CancelFunc
	fillDone    chan struct{} // closed when fill has returned
	fillErr     error         // fill's result, to be read after that
	filterReady atomic.Bool
}

var _ Index = (*Bolt)(nil)

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
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createBolt(path, o); err != nil {
			return nil, fmt.Errorf("create: %w", err)
		}
	} else if err == nil && info.Mode().IsRegular() && info.Size() < minFile {
		return nil, fmt.Errorf("%w: the file has %d bytes", ErrDamaged, info.Size())
	}
	db, err := openDB(path, o)
	if err != nil {
		return nil, err
	}
	b := &Bolt{
		path:      path,
		db:        db,
		limit:     o.Memtable,
		active:    newMemtable(),
		marks:     make(map[string]uint64),
		turn:      make(chan struct{}, 1),
		work:      make(chan *memtable, 1),
		writeDone: make(chan struct{}),
		fillDone:  make(chan struct{}),
	}
	if err := b.view(b.load); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	chunks := int64(b.rows[Chunks].Load())
	b.filter = newFilter(max(minFilter, chunks+chunks/2))
	ctx, cancel := context.WithCancel(context.Background())
	b.stopFill = cancel
	go b.fill(ctx)
	go b.writeLoop()
	b.turn <- struct{}{}
	return b, nil
}

// openDB opens the file. The list of free pages is stored: without it writing was
// 1 to 18 % faster (4 M chunks), but opening would read every page of the file.
//
// Where bbolt gives up on a damaged file in the middle, it leaves that file open, and
// locked, until the process ends: its place can be taken by another, it cannot be tried again.
func openDB(path string, o Options) (db *bbolt.DB, err error) {
	defer catchFault(debug.SetPanicOnFault(true), nil, &err)
	db, err = bbolt.Open(path, 0o644, &bbolt.Options{
		Timeout:         o.LockTimeout,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mmapSize,
		PageSize:        4096, // also where the system's pages are larger: rows are small and random
		NoStatistics:    true, // they are counted under a lock
	})
	for _, damage := range []error{berrors.ErrInvalid, berrors.ErrChecksum, berrors.ErrVersionMismatch} {
		if errors.Is(err, damage) {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("another process has it open: %w", err)
	}
	return db, err
}

// createBolt creates an empty index under a temporary name first: the file at
// path is whole from the start.
func createBolt(path string, o Options) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := openDB(tmp, o)
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(initialize), db.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func initialize(tx *bbolt.Tx) error {
	head, err := tx.CreateBucket(headBucket)
	if err != nil {
		return err
	}
	if err := head.Put(formatKey, binary.BigEndian.AppendUint64(nil, format)); err != nil {
		return err
	}
	if _, err := tx.CreateBucket(marksBucket); err != nil {
		return err
	}
	for _, name := range tableNames {
		if _, err := tx.CreateBucket([]byte(name)); err != nil {
			return err
		}
	}
	return nil
}

// load checks the format and reads what is kept in memory.
func (b *Bolt) load(tx *bbolt.Tx) error {
	if info, err := os.Stat(b.path); err != nil {
		return err
	} else if info.Size() < tx.Size() {
		return fmt.Errorf("%w: the file has %d of %d bytes", ErrDamaged, info.Size(), tx.Size())
	}
	head := tx.Bucket(headBucket)
	if head == nil || len(head.Get(formatKey)) != 8 {
		return fmt.Errorf("%w: the file is not an index of dedupd", ErrDamaged)
	}
	if v := binary.BigEndian.Uint64(head.Get(formatKey)); v > format {
		return fmt.Errorf("%w (%d; this program knows up to %d): use a newer dedupd, or move the file away and rebuild it with \"dedupd index rebuild\"", ErrNewer, v, format)
	}
	for t := range numTables {
		bucket := tx.Bucket([]byte(tableNames[t]))
		if bucket == nil {
			return fmt.Errorf("%w: table %v is missing", ErrDamaged, t)
		}
		b.rows[t].Store(bucket.Sequence()) // see writer.commit
	}
	if last, _ := tx.Bucket([]byte(packNames.String())).Cursor().Last(); len(last) == 4 {
		b.lastPack = binary.BigEndian.Uint32(last)
	}
	return loadMarks(tx, b.marks)
}

func loadMarks(tx *bbolt.Tx, marks map[string]uint64) error {
	return tx.Bucket(marksBucket).ForEach(func(name, position []byte) error {
		if len(position) != 8 {
			return fmt.Errorf("%w: mark %q", ErrDamaged, name)
		}
		marks[string(name)] = binary.BigEndian.Uint64(position)
		return nil
	})
}

// Close implements Index.
func (b *Bolt) Close() error {
	<-b.turn
	defer func() { b.turn <- struct{}{} }()
	b.mu.RLock()
	closed := b.closed
	b.mu.RUnlock()
	if closed {
		return nil
	}
	err := b.flushed(context.Background())
	b.mu.Lock()
	b.closed, b.err = true, ErrClosed
	b.mu.Unlock()
	close(b.work)
	<-b.writeDone
	b.stopFill()
	<-b.fillDone
	if err := errors.Join(err, b.fillErr, b.db.Close()); err != nil {
		return fmt.Errorf("close index: %w", err)
	}
	return nil
}

// Chunks implements Reader.
func (b *Bolt) Chunks(ctx context.Context, ids []Key, out []Location) error {
	if err := b.chunks(ctx, ids, out); err != nil {
		return fmt.Errorf("look up chunks: %w", err)
	}
	return nil
}

func (b *Bolt) chunks(ctx context.Context, ids []Key, out []Location) error {
	if len(ids) != len(out) {
		return fmt.Errorf("%d keys and room for %d locations", len(ids), len(out))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	missed, err := b.chunksInMemory(ids, out)
	if err != nil {
		return err
	}
	if b.filterReady.Load() {
		kept := missed[:0]
		for _, i := range missed {
			if b.filter.mayHave(&ids[i]) {
				kept = append(kept, i)
			}
		}
		missed = kept
	}
	if len(missed) == 0 {
		return nil
	}
	return b.view(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(Chunks.String()))
		for n, i := range missed {
			if n%1024 == 1023 && ctx.Err() != nil {
				return ctx.Err()
			}
			if err := getChunk(bucket, &ids[i], &out[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// chunksInMemory sets what the memtables know, clears the rest of out, and
// returns the indices of the rest.
func (b *Bolt) chunksInMemory(ids []Key, out []Location) (missed []int, err error) {
	missed = make([]int, 0, len(ids))
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return nil, ErrClosed
	}
	for i := range ids {
		out[i] = Location{}
		location, ok := b.active.chunk(&ids[i])
		if !ok && b.frozen != nil {
			location, ok = b.frozen.chunk(&ids[i])
		}
		if !ok {
			missed = append(missed, i)
		}
		if location != nil {
			if out[i], err = parseLocation(location); err != nil {
				return nil, err
			}
		}
	}
	return missed, nil
}

func getChunk(bucket *bbolt.Bucket, id *Key, out *Location) (err error) {
	*out = Location{}
	if value := bucket.Get(id[:]); value != nil {
		if *out, err = parseLocation(value); err != nil {
			return fmt.Errorf("%x: %w", id[:], err)
		}
	}
	return nil
}

// Get implements Reader.
func (b *Bolt) Get(ctx context.Context, t Table, key []byte) ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("get from %v: %w", t, err)
	}
	return b.get(t, key)
}

func (b *Bolt) get(t Table, key []byte) ([]byte, error) {
	value, known, err := b.getFromMemory(t, key)
	if err == nil && !known {
		err = b.view(func(tx *bbolt.Tx) error {
			value = clone(tx.Bucket([]byte(t.String())).Get(key))
			return nil
		})
	}
	if err == nil && value == nil {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("get from %v: %w", t, err)
	}
	return value, nil
}

// getFromMemory asks the memtables. known with a nil value is a deleted row.
func (b *Bolt) getFromMemory(t Table, key []byte) (value []byte, known bool, err error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return nil, false, ErrClosed
	}
	value, known = b.active.tables[t][string(key)]
	if !known && b.frozen != nil {
		value, known = b.frozen.tables[t][string(key)]
	}
	return clone(value), known, nil
}

// clone copies p. Only nil gives nil: an empty value is one.
func clone(p []byte) []byte {
	if p == nil {
		return nil
	}
	return append(make([]byte, 0, len(p)), p...)
}

// Marks implements Index.
func (b *Bolt) Marks(ctx context.Context) (map[string]uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read marks: %w", err)
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return nil, fmt.Errorf("read marks: %w", ErrClosed)
	}
	return maps.Clone(b.marks), nil
}

// Stats implements Index.
func (b *Bolt) Stats() Stats {
	s := Stats{
		Rows:        make(map[Table]uint64),
		Filter:      b.filter.size(),
		FilterReady: b.filterReady.Load(),
	}
	for t := Chunks; t <= Meta; t++ {
		s.Rows[t] = b.rows[t].Load()
	}
	if info, err := os.Stat(b.path); err == nil {
		s.Disk = info.Size()
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, m := range []*memtable{b.active, b.frozen} {
		if m != nil {
			s.Pending += uint64(m.rows)
			s.Memtable += int64(m.size)
		}
	}
	return s
}

// view runs fn in a read transaction of bbolt.
func (b *Bolt) view(fn func(*bbolt.Tx) error) (err error) {
	defer catchFault(debug.SetPanicOnFault(true), nil, &err)
	return b.db.View(fn)
}

// catchFault is deferred around everything that touches bbolt's pages. They are
// mapped into memory: where the disk cannot read one, the access faults, and where one is
// not what was written, bbolt panics or gets lost in it. Either would end the process. Here
// it becomes ErrDamaged. old is the setting to go back to; calling, unless it is nil, is
// set while a function of the caller runs, whose own panics go on.
func catchFault(old bool, calling *bool, err *error) {
	debug.SetPanicOnFault(old)
	r := recover()
	if r == nil {
		return
	}
	_, fault := r.(interface { // runtime's type for a fault at an address, and only that
		error
		Addr() uintptr
	})
	if !fault && calling != nil && *calling {
		panic(r)
	}
	*err = fmt.Errorf("%w: read a page: %v", ErrDamaged, r)
}
