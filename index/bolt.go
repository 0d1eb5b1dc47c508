package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

// Bolt is an Index in one bbolt file. bbolt is good at large sorted transactions
// and slow at small random ones, so changes gather in a memtable; when that is full it
// is frozen, and written by a goroutine while the next one fills. Reads ask the
// active memtable, the frozen one, the filter (for chunks), and bbolt, in this order:
// a row moves along it, and is dropped behind only when it can be seen ahead.
type Bolt struct {
	path     string
	id       [16]byte // of the file
	db       *bbolt.DB
	limit    int           // size at which a memtable is frozen, bytes
	roomWait time.Duration // see Options
	filter   *filter
	rows     [numTables]atomic.Uint64 // on disk; changed by writeLoop

	file     *os.File      // db's
	txid     atomic.Uint64 // of the last transaction that is in the file
	freeList freeListAt    // as the last transaction left it; writeLoop's
	stuck    bool          // db's lock for writing is lost; writeLoop's until it returns

	begin sync.RWMutex // held to begin transactions, and to set what follows
	heads []byte       // the file's first two pages; nil where it has outgrown its mapping
	ended bool         // db is closed, or about to be

	damage       atomic.Pointer[error] // the first one that was read
	distrustOnce sync.Once
	distrustErr  error

	// turn holds a token while nobody is applying, freezing or taking a snapshot.
	turn     chan struct{}
	lastPack uint32 // greatest number in use; for the holder of the turn, as the next two
	bulk     bool   // memtables become runs until Flush
	spilled  bool   // there are runs

	runs  *runs       // that are not in bbolt
	empty atomic.Bool // there is no row in bbolt, which was checked when it was opened

	mu     sync.RWMutex      // guards what follows
	active *memtable         // replaced, and added to, by the holder of the turn
	frozen *memtable         // nil if none; set by the holder of the turn, cleared by writeLoop
	marks  map[string]uint64 // durable ones
	err    error             // ErrBroken or ErrClosed, once that happened
	closed bool
	// writeErr says why the frozen memtable has to be written again; nil if it has not.
	writeErr error

	closing     chan struct{} // closed when Close begins
	closeOnce   sync.Once
	work        chan *memtable // to writeLoop: frozen ones, hence one at a time
	writeDone   chan struct{}  // closed when writeLoop has returned
	stopFill    context.CancelFunc
	fillDone    chan struct{} // closed when fill has returned
	fillErr     error         // fill's result, to be read after that
	filterReady atomic.Bool
}

var _ Index = (*Bolt)(nil)

// Close implements Index.
func (b *Bolt) Close() error {
	b.closeOnce.Do(func() { close(b.closing) }) // ends waiting for room on the disk
	<-b.turn
	defer func() { b.turn <- struct{}{} }()
	b.mu.RLock()
	closed := b.closed
	b.mu.RUnlock()
	if closed {
		return nil
	}
	err := b.flushed(context.Background(), !b.bulk)
	b.mu.Lock()
	b.closed, b.err = true, ErrClosed
	b.mu.Unlock()
	close(b.work)
	<-b.writeDone
	b.stopFill()
	<-b.fillDone
	b.begin.Lock()
	b.ended = true
	b.begin.Unlock()
	_, runsErr := b.runs.close()
	if err := errors.Join(err, b.fillErr, runsErr, b.closeDB()); err != nil {
		return fmt.Errorf("close index: %w", err)
	}
	return nil
}

// closeDB closes the file. bbolt would wait for its lock for ever if that is lost: then it
// stays mapped until the process ends, but another can open it.
func (b *Bolt) closeDB() error {
	if b.stuck {
		return b.file.Close()
	}
	return b.db.Close()
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
	if missed, err = b.chunksInRuns(ids, out, missed); err != nil || len(missed) == 0 || b.empty.Load() {
		return b.watch(err)
	}
	return b.view(func(tx *bbolt.Tx) error {
		c, err := tableCursor(tx, Chunks)
		if err != nil {
			return err
		}
		for n, i := range missed {
			if n%1024 == 1023 && ctx.Err() != nil {
				return ctx.Err()
			}
			if err := getChunk(c, &ids[i], &out[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// tableCursor returns a cursor for looking rows up.
func tableCursor(tx *bbolt.Tx, t Table) (*cursor, error) {
	tree, err := openTree(tx, t.String(), t, false)
	return &cursor{tree: tree}, err
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
			if out[i], err = ParseLocation(location); err != nil {
				return nil, err
			}
		}
	}
	return missed, nil
}

func getChunk(c *cursor, id *Key, out *Location) error {
	*out = Location{}
	value, err := c.get(id[:])
	if value != nil {
		*out, err = ParseLocation(value)
	}
	if err != nil {
		return fmt.Errorf("%x: %w", id[:], err)
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
		value, known, err = b.getFromRuns(t, key)
		err = b.watch(err)
	}
	if err == nil && !known && !b.empty.Load() {
		err = b.view(func(tx *bbolt.Tx) (err error) {
			value, err = getRow(tx, t, key)
			return err
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

// getRow returns a copy of the value, nil if there is none.
func getRow(tx *bbolt.Tx, t Table, key []byte) ([]byte, error) {
	if reserved(key) {
		return nil, nil
	}
	c, err := tableCursor(tx, t)
	if err != nil {
		return nil, err
	}
	value, err := c.get(key)
	return clone(value), err
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
	if damage := b.damage.Load(); damage != nil {
		s.Damage = *damage
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	s.WriteErr, s.Err = b.writeErr, b.err
	for _, m := range []*memtable{b.active, b.frozen} {
		if m != nil {
			s.Pending += uint64(m.rows)
			s.Memtable += int64(m.size)
		}
	}
	s.Pending += b.runs.count()
	return s
}

// view runs fn in a read transaction of bbolt.
func (b *Bolt) view(fn func(*bbolt.Tx) error) error {
	return b.watch(guard(nil, func() error {
		tx, err := b.beginTx(false)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		return fn(tx)
	}))
}

// beginTx begins a transaction on what was committed last. bbolt begins with the heads, under
// a lock, and must not panic there: they are read first. And where only the older one
// can be read it would go on with that, over pages of the newer.
func (b *Bolt) beginTx(writable bool) (*bbolt.Tx, error) {
	b.begin.RLock()
	defer b.begin.RUnlock()
	committed := b.txid.Load()
	if b.ended {
		return nil, ErrClosed
	}
	if b.heads != nil {
		if _, _, err := readHeads(b.heads); err != nil {
			return nil, err
		}
	}
	tx, err := b.db.Begin(writable)
	if err != nil {
		return nil, err
	}
	if is := uint64(tx.ID()); is < committed {
		return nil, errors.Join(damagef("its head is of transaction %d, not %d", is, committed), tx.Rollback())
	}
	return tx, nil
}

// guard runs fn, and turns the faults and panics that damaged pages cause into errors.
func guard(calling *bool, fn func() error) (err error) {
	defer catchFault(debug.SetPanicOnFault(true), calling, &err)
	return fn()
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
