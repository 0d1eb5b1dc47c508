// Package index says what is where: in which frame of which pack a chunk lies,
// and small rows beside that (recipes, paths, names). Everything in it can be
// rebuilt from the packs, and what was applied last may be lost in a crash: each
// batch carries a mark of how far its caller's journal got, and the journal is
// replayed from the durable marks.
package index

import (
	"context"
	"errors"
	"fmt"
)

// Callers branch on these; they come wrapped.
var (
	// ErrNotFound says that the index was read, and has no such row.
	ErrNotFound = errors.New("not in the index")
	// ErrClosed is the answer to every call after Close.
	ErrClosed = errors.New("index is closed")
	// ErrBroken is the answer to every write after one has failed. Reads go on
	// (from memory too, for what could not be written); reopen to recover.
	ErrBroken = errors.New("index is broken by a failed write")
	// ErrDamaged says that the file is not what was written, or cannot be read, or that it was
	// found so before: whoever opens the index after that gets it, too. Nothing is
	// lost by putting the file aside and making a new one from the packs.
	ErrDamaged = errors.New("index is damaged")
	// ErrNewer says that the index is of a format of the future.
	ErrNewer = errors.New("index has a newer format")
)

// Key is a chunk's whole ID. Keys are hashes, hence uniformly distributed; the
// filter relies on it.
type Key [32]byte

// Table names a set of rows. Those of Chunks are Locations under Keys, with methods of
// their own; the others hold what callers like.
type Table uint8

const (
	Chunks   Table = iota // chunk ID → Location
	Recipes               // recipe ID, 32 bytes
	Contents              // SHA-256 of a NAR, 32 bytes
	Paths                 // hash part of a store path, 32 characters
	Names                 // file name as uploaded
	Packs                 // what is known of each pack
	Meta                  // anything else

	// How names of packs and their numbers are found; see Index.PackNumber.
	packNumbers // name → number, 4 bytes big-endian
	packNames   // number → name

	numTables
)

var tableNames = [numTables]string{"chunks", "recipes", "contents", "paths", "names", "packs", "meta", "pack-numbers", "pack-names"}

// String is the table's name, which is also its name on disk.
func (t Table) String() string {
	if t >= numTables {
		return fmt.Sprintf("table-%d", uint8(t))
	}
	return tableNames[t]
}

// check says whether callers may use the table with plain keys and values.
func (t Table) check() error {
	if t == Chunks || t > Meta {
		return fmt.Errorf("table %v has no plain rows", t)
	}
	return nil
}

// MaxKey is how long a row's key may be, in bytes.
const MaxKey = 4096

// Reader looks rows up.
type Reader interface {
	// Chunks sets out[i] to where chunk ids[i] lies, or to the zero Location if
	// that is unknown. The slices have the same length; ids may repeat. Many at
	// once cost much less than one by one. After an error out is unspecified.
	Chunks(ctx context.Context, ids []Key, out []Location) error

	// Get returns the value under key, which the caller may keep and change, or
	// ErrNotFound. What cannot be read is never "not found".
	Get(ctx context.Context, t Table, key []byte) ([]byte, error)
}

// Index is a durable set of tables. All methods may be called concurrently.
type Index interface {
	Reader

	// PackNumber returns the number that stands for the named pack in Locations,
	// and gives it one first if it has none. Numbers begin at 1. One stays with
	// its name for good once a batch that was applied after is durable; until then a
	// crash may free it, together with all rows that mention it.
	PackNumber(ctx context.Context, name string) (uint32, error)
	// PackName returns the name of the pack with that number, or ErrNotFound.
	PackName(ctx context.Context, number uint32) (string, error)

	// Apply makes the batch's changes, all at once: every later read sees all of
	// them. On error it made none. They are durable when Marks shows the batch's
	// marks, or when a later Flush has returned. Apply may wait until earlier
	// batches are written. The batch can be applied again, but not be changed.
	Apply(ctx context.Context, b *Batch) error

	// Flush returns when every batch that was applied before is durable.
	Flush(ctx context.Context) error

	// Marks returns, for each name, the greatest position of a mark whose batch is
	// durable, along with all batches applied before that one. (Later batches
	// may be there, too, in whole or in part: replaying them all, in order, gives
	// the right state.)
	Marks(ctx context.Context) (map[string]uint64, error)

	// Snapshot returns a view of all that is applied now, and makes it durable.
	Snapshot(ctx context.Context) (Snapshot, error)

	// Stats describes the index, at no cost worth mentioning.
	Stats() Stats

	// Close flushes, and closes. It waits for open snapshots.
	Close() error
}

// Snapshot is the index as it was at one moment between two batches. It is for one
// goroutine; the index may be used and changed meanwhile, also from the callbacks.
// While it is open the space of changed rows is not reused: do not keep it long.
type Snapshot interface {
	Reader

	// Marks returns the marks of all that the snapshot contains.
	Marks() map[string]uint64

	// ForEachPack calls fn for every pack that has a number, in order of the numbers. An
	// error of fn ends it and is returned as it is.
	ForEachPack(ctx context.Context, fn func(number uint32, name string) error) error

	// ForEachChunk calls fn for every chunk, in order of the keys. An error of fn
	// ends it and is returned as it is.
	ForEachChunk(ctx context.Context, fn func(Key, Location) error) error

	// ForEach calls fn for the rows of t whose keys are not less than from, in
	// order of the keys. The slices are valid during the call, for reading only. An
	// error of fn ends it and is returned as it is.
	ForEach(ctx context.Context, t Table, from []byte, fn func(key, value []byte) error) error

	// Verify reads all of the file, and returns ErrDamaged with what it finds. Rows are
	// checked whenever they are read; rows that are gone, and damage that has not got
	// to any row yet, only here.
	Verify(ctx context.Context) error

	// Close must be called once, and before Index.Close.
	Close() error
}

// Stats describes an index.
type Stats struct {
	Rows     map[Table]uint64 // rows on disk, by table; exact
	Pending  uint64           // changed rows in memory, or waiting to be merged
	Disk     int64            // size of the file, bytes
	Memtable int64            // memory of the pending rows, bytes, estimated
	Filter   int64            // memory of the filter, bytes
	// FilterReady says that the filter knows every chunk. Until then, for a while
	// after opening, unknown chunks are looked up on disk.
	FilterReady bool
	// WriteErr says why changes stay in memory: the disk is full. They are written as
	// soon as there is room; while there is none, batches wait.
	WriteErr error
	// Err says why nothing can be written any more, if so; it wraps ErrBroken or ErrClosed.
	Err error
	// Damage is the first thing that was read and was not what had been written, if any;
	// it wraps ErrDamaged.
	Damage error
}
