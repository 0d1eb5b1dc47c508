// Package encodings keeps files on a disk that are what a name stands for in a smaller
// form: NARs, compressed, under the names of their uploads. Their other form, which
// compression.Stored makes, costs no work and no disk, but is as large as the NAR.
//
// A name has one form at a time, as far as clients can tell. A Nix whose download breaks
// asks for the rest by position alone, so that a name may change its form only when
// nobody can be in the middle of the old one:
//
//	state     what who begins gets   a range is of       until
//	absent    the other form         the other form      it is asked for often, and encoded
//	fresh     the file, no ranges    the other form      nobody is in the middle of that any more
//	settled   the file               the file            it has to go, or is damaged
//	leaving   other form, no ranges  nobody knows what   nobody is in the middle of the file any more
//
// "No ranges" tells Nix not to ask for the rest. An If-Range says what a range is of, in
// every state. The state is on the disk, and what is not settled begins anew with the
// process, so that all of this holds for downloads which a restart has cut.
package encodings

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Options are the settings of a cache. Zero values mean the defaults, but for Size.
type Options struct {
	// Dir is the directory of the cache, which is made. It belongs to one process.
	Dir string
	// Size is how many bytes of files are kept at most. With 0, those that are there go,
	// and no more are made.
	Size int64
	// Often is the number of the download with which a name is worth a file, of those
	// that it has had in about a day; default 3.
	Often int
	// Grace is how long after the end of a download its client may come back for the
	// rest; default one hour. A proxy may have taken all of it long before the client.
	Grace time.Duration
	// Room says whether the disk has room for more; nil for always. Without room nothing
	// is encoded, and files go until there is.
	Room func() bool
	// Log takes what an operator should know; default slog.Default().
	Log *slog.Logger
}

func (o *Options) setDefaults() {
	if o.Often == 0 {
		o.Often = 3
	}
	if o.Grace == 0 {
		o.Grace = time.Hour
	}
	if o.Room == nil {
		o.Room = func() bool { return true }
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
}

// Stats say what a cache has done since it was opened, and how large it is.
type Stats struct {
	Hits      int64 `json:"hits"`       // downloads that began with a file
	HitBytes  int64 `json:"hit_bytes"`  // sent of files
	Misses    int64 `json:"misses"`     // downloads that began with the other form
	MissBytes int64 `json:"miss_bytes"` // sent of the other form
	Encoded   int64 `json:"encoded"`    // files that were made
	Failures  int64 `json:"failures"`   // files that could not be made
	Evictions int64 `json:"evictions"`  // files that went for others, or for room
	Damaged   int64 `json:"damaged"`    // files that went since they were not as written
	Waiting   int64 `json:"waiting"`    // files that are being made, or wait to be, now
	Files     int64 `json:"files"`      // that are there
	Bytes     int64 `json:"bytes"`      // of the disk that they take
	Limit     int64 `json:"limit"`      // that these may come to
}

// A Cache holds files. Its methods may be called concurrently.
type Cache struct {
	opts Options
	jobs chan job
	stop context.CancelFunc
	done sync.WaitGroup

	dir  dir
	disk sync.Mutex // held by whoever changes names of files, before mu

	mu      sync.Mutex // guards what follows
	entries map[key]*entry
	stats   Stats
	aged    time.Time
}

// A state is one of those of the package's comment.
type state uint8

const (
	absent state = iota
	fresh
	settled
	leaving
)

// A Form is one of the two that a name can have.
type Form uint8

const (
	Stored  Form = iota // the one that is made as it is sent
	Encoded             // the file
	Unknown             // either
)

// An entry is a name that is asked for, or has a file.
type entry struct {
	key       key
	name      string    // "" if it is not known yet
	downloads uint32    // begun, halved once a day
	used      time.Time // when the last began
	state     state
	since     time.Time // that it has the state, or the process runs
	file      *file     // of fresh and settled
	removed   bool      // of leaving: the file is not on the disk any more
	queued    bool      // to be encoded
	useless   bool      // to encode: it fails, or is not smaller

	uses    int          // that are not closed
	running [2]int       // downloads by Form
	ended   [2]time.Time // the last of them
}

const (
	// maxEntries bounds the names without a file, at some 300 bytes each.
	maxEntries = 1 << 16
	// maxQueue is how many names wait to be encoded. Others are looked at again when they
	// are asked for again.
	maxQueue = 64
	// day is the time in which a download comes to count half.
	day = 24 * time.Hour
)

// Open opens the cache in opts.Dir, or makes one. What it cannot use of what is there, it
// removes.
func Open(opts Options) (*Cache, error) {
	opts.setDefaults()
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("old names: %w", err)
	}
	c := &Cache{opts: opts, dir: dir(opts.Dir), jobs: make(chan job, maxQueue), entries: map[key]*entry{}, aged: time.Now()}
	c.stats.Limit = opts.Size
	err := c.dir.load(func(k key, s state, f *file) {
		e := &entry{key: k, state: s, since: time.Now(), file: f, removed: true}
		if f != nil {
			e.downloads = uint32(opts.Often) // it was worth that
			c.stats.Files++
			c.stats.Bytes += f.size
		}
		c.entries[k] = e
	})
	if err != nil {
		return nil, fmt.Errorf("old names: %w", err)
	}
	c.tidy() // it may have become smaller
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	c.done.Go(func() { c.encodeAll(ctx) })
	c.done.Go(func() { c.keep(ctx) })
	return c, nil
}

// Close breaks off what is encoded, and waits for it. Downloads may go on.
func (c *Cache) Close() {
	c.stop()
	c.done.Wait()
}

// Stats returns what the cache has done.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// A Use is one request for a name. It is for one goroutine, which closes it.
type Use struct {
	// Began is the form whose download a client goes on with that asks for a range by
	// position alone. Who begins with another must not be told that there are ranges.
	Began Form

	c    *Cache
	e    *entry
	file *file
	open *os.File // nil if there is no file
	sent Form     // Unknown before Send
	n    int64
}

// Use returns how a request for a name is to be answered. The file, if there is one, can be
// read until the Use is closed.
func (c *Cache) Use(name string) *Use {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entry(name)
	e.used = time.Now()
	e.uses++
	u := &Use{c: c, e: e, sent: Unknown}
	if e.file != nil {
		var err error
		if u.open, err = os.Open(c.dir.path(e.key)); err == nil {
			u.file = e.file
		} else if errors.Is(err, fs.ErrNotExist) {
			c.damaged(e, err)
		}
	}
	switch e.state {
	case settled:
		u.Began = Encoded
	case leaving:
		u.Began = Unknown
	}
	return u
}

// damaged has nobody use an entry's file any more. c.mu is held.
func (c *Cache) damaged(e *entry, err error) {
	c.opts.Log.Error("a file of an old name is damaged, and is not used any more", "name", e.name, "err", err)
	c.stats.Damaged++
	c.drop(e)
}

// entry returns that of a name. c.mu is held.
func (c *Cache) entry(name string) *entry {
	k := key(sha256.Sum256([]byte(name)))
	e := c.entries[k]
	if e == nil {
		for n := 0; len(c.entries) >= maxEntries && n < 8; n++ {
			c.age()
		}
		e = &entry{key: k}
		c.entries[k] = e
	}
	e.name = name
	return e
}

// age has all downloads count half, and forgets names. c.mu is held.
func (c *Cache) age() {
	c.aged = time.Now()
	for k, e := range c.entries {
		e.downloads /= 2
		if e.downloads == 0 && e.state == absent && e.uses == 0 && !e.queued {
			delete(c.entries, k)
		}
	}
}

// File returns the size in bytes of the file, and the SHA-256 of its bytes; false if
// there is no file.
func (u *Use) File() (size int64, sum [sha256.Size]byte, ok bool) {
	if u.file == nil {
		return 0, sum, false
	}
	return u.file.size, u.file.sum, true
}

// Begin counts a download from the first byte on. If the name is worth a file, and has
// none, it is made in the background.
func (u *Use) Begin(m Making) {
	c, e := u.c, u.e
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.downloads++; u.file != nil {
		c.stats.Hits++
		return
	}
	c.stats.Misses++
	if e.state != absent || e.queued || e.useless || int(e.downloads) < c.opts.Often || m.Size > min(m.Limit, c.opts.Size) {
		return
	}
	select {
	case c.jobs <- job{e, m}:
		e.queued = true
		c.stats.Waiting++
	default:
	}
}

// Send says which form is sent.
func (u *Use) Send(f Form) {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	u.sent = f
	u.e.running[f]++
}

// Sent says how many bytes were sent.
func (u *Use) Sent(n int64) { u.n = n }

// Close ends the request.
func (u *Use) Close() {
	if u.open != nil {
		u.open.Close()
	}
	c := u.c
	c.mu.Lock()
	defer c.mu.Unlock()
	u.e.uses--
	if u.sent == Unknown {
		return
	}
	u.e.running[u.sent]--
	u.e.ended[u.sent] = time.Now()
	if u.sent == Encoded {
		c.stats.HitBytes += u.n
	} else {
		c.stats.MissBytes += u.n
	}
}

// Write writes the bytes [off, off+n) of the file to w. Each block is checked before any
// byte of it is written. Once there is something wrong with a file, nobody gets it any
// more.
func (u *Use) Write(ctx context.Context, w io.Writer, off, n int64) error {
	err := u.file.copy(ctx, u.open, w, off, n)
	if errors.Is(err, errDamaged) {
		u.c.mu.Lock()
		defer u.c.mu.Unlock()
		if u.e.file == u.file {
			u.c.damaged(u.e, err)
		}
	}
	return err
}
