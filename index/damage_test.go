package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// storedModel writes an index file with every kind of page, and returns what is in it.
func storedModel(t *testing.T, path string) *model {
	t.Helper()
	rnd := rand.New(rand.NewPCG(7, 7))
	b := open(t, path, Options{Memtable: 64 << 10})
	m := newModel()
	for range 120 {
		apply(t, b, func(batch *Batch) {
			m.change(rnd, batch)
			long := strings.Repeat("long ", rnd.IntN(3000))
			batch.Put(Contents, []byte("row 199"), []byte(long)) // takes several pages
			m.rows[Contents]["row 199"] = long
		})
		if rnd.IntN(10) == 0 {
			must(t, b.Flush(t.Context()))
		}
	}
	must(t, verify(t.Context(), b))
	must(t, b.Close())
	return m
}

func verify(ctx context.Context, b *Bolt) error {
	s, err := b.Snapshot(ctx)
	if err != nil {
		return err
	}
	return errors.Join(s.Verify(ctx), s.Close())
}

// checkRight is model.check for a file with damage: what is returned is right, or it is
// ErrDamaged. It says whether there was any.
func (m *model) checkRight(t *testing.T, r Reader) (damaged error) {
	t.Helper()
	for n := range 3000 {
		id := key(n)
		var out [1]Location
		err := r.Chunks(t.Context(), []Key{id}, out[:])
		if errors.Is(err, ErrDamaged) {
			damaged = err
		} else if err != nil || out[0] != m.chunks[id] {
			t.Fatalf("chunk %d: got %+v, %v, want %+v", n, out[0], err, m.chunks[id])
		}
	}
	for table, rows := range m.rows {
		for n := range 200 {
			k := fmt.Sprintf("row %d", n)
			want, ok := rows[k]
			got, err := r.Get(t.Context(), table, []byte(k))
			switch {
			case errors.Is(err, ErrDamaged):
				damaged = err
			case ok && (err != nil || string(got) != want), !ok && !errors.Is(err, ErrNotFound):
				t.Fatalf("%v %q: got %q, %v, want %q (%v)", table, k, got, err, want, ok)
			}
		}
	}
	return damaged
}

// The number of chunks is what the filter is made for: it is not believed beyond reason.
func TestDamagedCount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	must(t, open(t, path, Options{}).Close())
	db, err := bbolt.Open(path, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(Chunks.String())).SetSequence(1 << 60) }))
	must(t, db.Close())
	if _, err := OpenBolt(path, Options{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want ErrDamaged", err)
	}
}

// A table that stands in another page has no number and no pages that follow: bbolt would
// free a page of that number.
func TestDamagedInlinePage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	must(t, open(t, path, Options{}).Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	for _, off := range []int{0, 3, 12, 15} {
		b := bytes.Clone(whole)
		n := 0
		for at := 0; ; n++ {
			i := bytes.Index(b[at:], []byte(Packs.String()+"\x00"))
			if i < 0 {
				break
			}
			at += i + len(Packs.String())
			b[at+16+off] ^= 1
		}
		must(t, os.WriteFile(path, b, 0o600))
		ix, err := OpenBolt(path, Options{})
		if err == nil {
			err = errors.Join(verify(t.Context(), ix), ix.Close())
		}
		if n == 0 || !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d of %d pages: got %v, want ErrDamaged", off, n, err)
		}
		os.Remove(path + distrustSuffix)
	}
}

// One flipped bit, anywhere: reading gives what was written, or ErrDamaged; writing does
// not make it worse; nothing panics, and nothing runs for ever.
func TestFlips(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "index")
	m := storedModel(t, path)
	whole, err := os.ReadFile(path)
	must(t, err)
	h, _, err := readHeads(whole)
	must(t, err)
	used := int(h.pages * pageSize)
	rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
	flips := benchSetting("DEDUPD_TEST_FLIPS", 200)
	if testing.Short() {
		flips = 60
	}
	var refused, read, verified, harmless int
	what := ""
	defer func() {
		if t.Failed() {
			t.Logf("the last flip was of %s", what)
		}
	}()
	for n := range flips {
		b := append([]byte(nil), whole...)
		at := rnd.IntN(used)
		if n%2 == 0 { // the heads of pages, and what is near, matter most
			at = at/pageSize*pageSize + rnd.IntN(96)
		}
		bit := byte(1) << rnd.IntN(8)
		b[at] ^= bit
		what = fmt.Sprintf("byte %d of page %d, bit %#x", at%pageSize, at/pageSize, bit)
		path := filepath.Join(dir, fmt.Sprint(n))
		must(t, os.WriteFile(path, b, 0o600))
		ix, err := OpenBolt(path, Options{})
		switch {
		case errors.Is(err, ErrNewer):
			t.Fatal(err)
		case errors.Is(err, ErrDamaged):
			refused++
			continue
		case err != nil:
			t.Fatal(err)
		}
		found := m.checkRight(t, ix)
		if seen := ix.Stats().Damage; (seen != nil) != (found != nil) || found != nil && !errors.Is(seen, ErrDamaged) {
			t.Errorf("reading found %v, Stats says %v", found, seen)
		}
		err = verify(t.Context(), ix)
		switch {
		case found != nil:
			read++
		case errors.Is(err, ErrDamaged):
			verified++
		case err == nil:
			harmless++
		}
		if found != nil && err == nil {
			t.Errorf("verifying did not find: %v", found)
		}
		found = errors.Join(found, err, changeDamaged(t, ix, m).checkRight(t, ix))
		if err := ix.Close(); err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("close: %v", err)
		}
		if again, err := OpenBolt(path, Options{}); found != nil && !errors.Is(err, ErrDamaged) {
			again.Close()
			t.Errorf("open again: got %v, want ErrDamaged", err)
		} else if err == nil {
			again.Close()
		}
		os.Remove(path)
	}
	t.Logf("%d flips: %d found when opening, %d when reading, %d only when verifying; %d in nothing that is used", flips, refused, read, verified, harmless)
}

// changeDamaged makes changes all over a file with damage. It returns what must be read
// then, also if they could not be written.
func changeDamaged(t *testing.T, b *Bolt, m *model) *model {
	t.Helper()
	after := newModel()
	for id, l := range m.chunks {
		after.chunks[id] = l
	}
	for table, rows := range m.rows {
		for k, v := range rows {
			after.rows[table][k] = v
		}
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	var batch Batch
	for range 30 {
		after.change(rnd, &batch)
	}
	err := b.Apply(t.Context(), &batch)
	if err == nil {
		err = b.Flush(t.Context())
	}
	if err != nil && !errors.Is(err, ErrBroken) {
		t.Fatalf("change: %v", err)
	}
	return after // what could not be written is read from memory
}

// A page that was written long ago is right in itself; its rows are of another place.
func TestMisplacedPages(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "index")
	m := storedModel(t, path)
	whole, err := os.ReadFile(path)
	must(t, err)
	h, _, err := readHeads(whole)
	must(t, err)
	rnd := rand.New(rand.NewPCG(3, 3))
	free := map[uint64]bool{}
	ids, err := parseFreePages(whole[h.freeList*pageSize:], h)
	must(t, err)
	for ; len(ids) > 0; ids = ids[8:] {
		free[native.Uint64(ids)] = true
	}
	found := 0
	for n := range 60 {
		// One page in the place of another: a child of the wrong parent. Not a free one, which
		// may be what the other one was before.
		from, to := 2+rnd.Uint64N(h.pages-2), 2+rnd.Uint64N(h.pages-2)
		if free[from] || free[to] {
			continue
		}
		b := append([]byte(nil), whole...)
		copy(b[to*pageSize:][:pageSize], whole[from*pageSize:][:pageSize])
		binary.NativeEndian.PutUint64(b[to*pageSize:], to)
		path := filepath.Join(dir, fmt.Sprint(n))
		must(t, os.WriteFile(path, b, 0o600))
		ix, err := OpenBolt(path, Options{})
		if errors.Is(err, ErrDamaged) {
			continue
		}
		must(t, err)
		if m.checkRight(t, ix) != nil {
			found++
		}
		changeDamaged(t, ix, m)
		ix.Close()
	}
	if found == 0 {
		t.Error("nothing was found")
	}
}

// What only Verify sees: rows that are gone without a trace, and pages that a writer would
// write over.
func TestVerify(t *testing.T) {
	edit := func(name, want string, fn func(t *testing.T, tx *bbolt.Tx) error) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "index")
			storedModel(t, path)
			b := open(t, path, Options{})
			<-b.fillDone
			must(t, b.db.Update(func(tx *bbolt.Tx) error { return fn(t, tx) }))
			must(t, b.view(b.noteFreeList))
			err := verify(t.Context(), b)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			b.Close()
			if _, err := OpenBolt(path, Options{}); !errors.Is(err, ErrDamaged) {
				t.Errorf("open: got %v", err)
			}
		})
	}
	edit("row gone", "rows, and had", func(_ *testing.T, tx *bbolt.Tx) error {
		c := tx.Bucket([]byte("chunks")).Cursor()
		c.First()
		c.Next()
		return c.Delete()
	})
	edit("mark gone", "rows, and had", func(_ *testing.T, tx *bbolt.Tx) error {
		return tx.Bucket(marksBucket).Delete([]byte("log 1"))
	})
	edit("row without a sum", "is not what was written", func(_ *testing.T, tx *bbolt.Tx) error {
		return tx.Bucket([]byte("names")).Put([]byte("row 1000"), []byte("value"))
	})
	edit("row of another table", "is not what was written", func(_ *testing.T, tx *bbolt.Tx) error {
		k := []byte("row 1000")
		return tx.Bucket([]byte("names")).Put(k, appendSummed(nil, Recipes, k, []byte("value")))
	})
}

// A file of the first format is not read: it has no sums.
func TestOldFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	b := open(t, path, Options{})
	must(t, b.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(headBucket).Put(formatKey, binary.BigEndian.AppendUint64(nil, 1))
	}))
	must(t, b.Close())
	if _, err := OpenBolt(path, Options{}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "format 1") {
		t.Errorf("got %v", err)
	}
}

// Callers cannot get at the rows that are nobody's.
func TestReservedKeys(t *testing.T) {
	b := openNew(t, Options{})
	for _, k := range [][]byte{nil, lowKey, highKey, append(highKey, 1)} {
		if v, err := b.Get(t.Context(), Names, k); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get(%x): got %x, %v", k, v, err)
		}
		var batch Batch
		batch.Put(Names, k, nil)
		if err := b.Apply(t.Context(), &batch); err == nil {
			t.Errorf("Put(%x): got no error", k)
		}
	}
	s, err := b.Snapshot(t.Context())
	must(t, err)
	defer s.Close()
	for _, from := range [][]byte{nil, {}, lowKey, {0, 0}, {1}, highKey, append(highKey, 1)} {
		must(t, s.ForEach(t.Context(), Names, from, func(k, v []byte) error {
			return fmt.Errorf("from %x: row %x", from, k)
		}))
	}
}
