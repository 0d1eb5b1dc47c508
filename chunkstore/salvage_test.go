package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// checkAside checks that so many files of the spool were set aside, that the report says
// so, and that the store has nothing else to complain of.
func checkAside(t *testing.T, s *Store, files int) {
	t.Helper()
	r := s.recovered
	if r.OK() || r.Salvaged != 1 || len(r.Aside) != files {
		t.Errorf("got %+v, want %d files aside", r, files)
	}
	for _, path := range r.Aside {
		if _, err := os.Stat(path); err != nil || !strings.HasSuffix(path, damagedSuffix) {
			t.Errorf("set aside: %s: %v", path, err)
		}
	}
	checkStore(t, s)
}

// servedOrAbsent says whether a NAR and its narinfo are served; if not the NAR is absent.
func servedOrAbsent(t *testing.T, s *Store, b []byte) bool {
	t.Helper()
	hash := sha256.Sum256(b)
	o, err := s.Object(t.Context(), hash)
	if errors.Is(err, ErrNotFound) || errors.Is(err, packfile.ErrCorrupt) {
		return false
	} else if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := o.WritePlain(t.Context(), &got, 0, o.Size()); err != nil || !bytes.Equal(got.Bytes(), b) {
		t.Fatalf("got %d bytes (%v) of %d, or others", got.Len(), err, len(b))
	}
	_, err = s.NarInfo(t.Context(), testNarInfo(t, hash, len(b)).StorePath.HashPart())
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// flipFile changes a byte of a file in a copy of a store.
func flipFile(t *testing.T, off int64, path ...string) {
	t.Helper()
	if err := flip(filepath.Join(path...), off); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedJournal flips bytes in the middle of a journal. What follows is no torn
// write: only what the entry itself says is lost, and nothing if the index has it.
func TestDamagedJournal(t *testing.T) {
	loose, indexed := newCrash(t, 4, false), newCrash(t, 4, true)
	for _, c := range []*crash{loose, indexed} {
		for i := range len(c.ends) - 1 {
			start := int64(38)
			if i > 0 {
				start = c.ends[i-1]
			}
			offs := []int64{start, start + 5, c.ends[i] - 1}
			if !testing.Short() {
				offs = append(offs, start+3, start+8, start+16, (start+c.ends[i])/2)
			}
			for _, off := range offs {
				t.Run(fmt.Sprintf("indexed %v, entry %d at %d", c == indexed, i, off-start), func(t *testing.T) {
					t.Parallel()
					s, dir, err := c.reopen(t, func(dir string) { flipFile(t, off, dir, c.journal) })
					if err != nil {
						t.Fatal(err)
					}
					for n, b := range c.nars {
						if served := servedOrAbsent(t, s, b); served != (c == indexed || n != i/2) {
							t.Errorf("NAR %d: served %v", n, served)
						}
					}
					checkAside(t, s, 2)
					if lost := s.recovered.LostChunks; lost != 0 {
						t.Errorf("%d chunks are lost", lost)
					}
					c.checkWorks(t, s)
					reopened(t, s, dir, c)
				})
			}
		}
	}
}

// reopened checks that everything is there after the next start, and without an index.
func reopened(t *testing.T, s *Store, dir string, c *crash) {
	t.Helper()
	for range 2 {
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		var err error
		if s, err = openStore(t, dir); err != nil {
			t.Fatal(err)
		}
		for n, b := range c.nars {
			if !servedOrAbsent(t, s, b) {
				t.Errorf("NAR %d is gone", n)
			}
		}
		checkStore(t, s)
		if s.recovered.Salvaged != 0 || s.recovered.Dropped != 0 || len(s.recovered.Aside) == 0 {
			t.Errorf("the next start: %+v", s.recovered)
		}
		if err := os.Remove(filepath.Join(dir, "state", indexFile)); err != nil {
			t.Fatal(err)
		}
	}
}

// A damaged header of a journal says nothing that is not known: all entries are there.
func TestDamagedJournalHeader(t *testing.T) {
	for _, indexed := range []bool{false, true} {
		c := newCrash(t, 2, indexed)
		for _, off := range []int64{0, 9, 20, 36} {
			s, _, err := c.reopen(t, func(dir string) { flipFile(t, off, dir, c.journal) })
			if err != nil {
				t.Fatal(err)
			}
			c.checkRecovered(t, s, len(c.ends))
			checkAside(t, s, 2)
		}
		s, _, err := c.reopen(t, func(dir string) {
			if err := os.WriteFile(filepath.Join(dir, c.journal), noise(500, 7), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		checkAside(t, s, 2)
		commits := 0
		if indexed {
			commits = len(c.ends)
		}
		c.checkRecovered(t, s, commits)
		c.checkWorks(t, s)
	}
}

// A group that a power cut tore, its first part lost and the next on disk, is no damage:
// nobody was told of it.
func TestTornGroup(t *testing.T) {
	c := newCrash(t, 3, false)
	b, err := os.ReadFile(filepath.Join(c.dir, c.journal))
	if err != nil {
		t.Fatal(err)
	}
	// The last four entries, as one group.
	from := c.ends[1]
	found := packfile.FindEntries(b[from:], 2)
	if len(found) != 4 {
		t.Fatalf("%d entries", len(found))
	}
	entries := make([]packfile.Entry, len(found))
	for i := range found {
		entries[i] = found[i].Entry
	}
	group := packfile.AppendJournalGroup(nil, 2, entries)
	for off := 0; off < len(group); off += 197 {
		torn := slices.Clone(group)
		clear(torn[off:min(off+64, len(torn))])
		s, dir, err := c.reopen(t, func(dir string) {
			if err := os.WriteFile(filepath.Join(dir, c.journal), append(b[:from:from], torn...), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		lost := 0 // where the group differs: what was cut off may have been zeros
		for lost < len(group) && torn[lost] == group[lost] {
			lost++
		}
		whole := 2
		for whole < len(c.ends) && c.ends[whole]-from <= int64(lost) {
			whole++
		}
		c.checkRecovered(t, s, whole)
		if !s.recovered.OK() || whole < len(c.ends) && s.recovered.Dropped == 0 {
			t.Errorf("at %d: got %+v", off, s.recovered)
		}
		checkSpool(t, s, dir)
	}
}

// TestDamagedFrames flips bytes of the frames of an open pack: each costs one chunk, and
// the next upload brings it back.
func TestDamagedFrames(t *testing.T) {
	for _, indexed := range []bool{false, true} {
		c := newCrash(t, 3, indexed)
		info, err := os.Stat(filepath.Join(c.dir, c.frames))
		if err != nil {
			t.Fatal(err)
		}
		step := int64(307)
		if testing.Short() {
			step = 2003
		}
		for off := int64(packfile.HeaderSize); off < info.Size(); off += step {
			s, dir, err := c.reopen(t, func(dir string) { flipFile(t, off, dir, c.frames) })
			if err != nil {
				t.Fatal(err)
			}
			served := 0
			for _, b := range c.nars {
				if servedOrAbsent(t, s, b) {
					served++
				}
			}
			r := checkStore(t, s)
			if served != len(c.nars)-1 || r.AbsentPaths != 1 {
				t.Errorf("at %d: %d NARs are served, %d absent", off, served, r.AbsentPaths)
			}
			checkAside(t, s, 2)
			c.checkWorks(t, s)
			reopened(t, s, dir, c)
		}
	}
}

// TestDamagedSealed spoils sealed packs in the spool: what the index has of them is saved.
func TestDamagedSealed(t *testing.T) {
	for _, indexed := range []bool{false, true} {
		dir, b := sealedInSpool(t)
		if !indexed {
			if err := os.Remove(filepath.Join(dir, "state", indexFile)); err != nil {
				t.Fatal(err)
			}
		}
		packs, err := filepath.Glob(filepath.Join(dir, "state", "spool", "*", "*"+packSuffix))
		if err != nil || len(packs) != 1 {
			t.Fatalf("%q, %v", packs, err)
		}
		info, err := os.Stat(packs[0])
		if err != nil {
			t.Fatal(err)
		}
		rel, _ := filepath.Rel(dir, packs[0])
		for name, spoil := range map[string]func(path string) error{
			"header":    func(path string) error { return flip(path, 20) },
			"records":   func(path string) error { return flip(path, info.Size()-400) },
			"directory": func(path string) error { return flip(path, info.Size()-100) },
			"trailer":   func(path string) error { return flip(path, info.Size()-1) },
			"short":     func(path string) error { return os.Truncate(path, info.Size()-1) },
			"empty":     func(path string) error { return os.Truncate(path, 0) },
		} {
			t.Run(fmt.Sprintf("%s, indexed %v", name, indexed), func(t *testing.T) {
				dir := copyDir(t, dir)
				if err := spoil(filepath.Join(dir, rel)); err != nil {
					t.Fatal(err)
				}
				s, err := openStore(t, dir)
				if err != nil {
					t.Fatal(err)
				}
				checkAside(t, s, 1)
				if served := servedOrAbsent(t, s, b); served != (indexed && name != "empty") {
					t.Errorf("served: %v", served)
				}
				putNAR(t, s, b)
				if !servedOrAbsent(t, s, b) {
					t.Error("not there after it was uploaded again")
				}
				checkStore(t, s)
			})
		}
	}
}

// noPacks is a bucket that takes no packs.
type noPacks struct{ bucket.Bucket }

func (b *noPacks) Put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	if strings.HasPrefix(key, packPrefix) {
		return errors.New("no packs today")
	}
	return b.Bucket.Put(ctx, key, r, size)
}

// sealedInSpool returns a store that is closed, with a NAR in a sealed pack that the
// bucket did not take, and its index.
func sealedInSpool(t *testing.T) (string, []byte) {
	t.Helper()
	dir := t.TempDir()
	s, err := openStore(t, dir, func(o *Options) { o.Bucket = &noPacks{o.Bucket} })
	if err != nil {
		t.Fatal(err)
	}
	b := makeNAR(t, testFile{name: "a", data: randomData(testSeed(t), 300<<10)})
	putNAR(t, s, b)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir, b
}

// A pack in the bucket that cannot be read does not keep a store from opening: what does
// not need it is served, and repairing does without it.
func TestUnreadablePack(t *testing.T) {
	dir := t.TempDir()
	rnd := testSeed(t)
	s := testStore(t, dir)
	shared := randomData(rnd, 300<<10)
	var nars [][]byte
	for i := range 4 {
		files := []testFile{{name: "b", data: randomData(rnd, 100<<10)}, {name: "c", data: fmt.Append(nil, i)}}
		if i < 3 {
			files = append([]testFile{{name: "a", data: shared}}, files...)
		}
		nars = append(nars, makeNAR(t, files...))
		putNAR(t, s, nars[i])
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(dir, "bucket", filepath.FromSlash(packKey(readPacks(t, dir)[0].Name)))
	info, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := flip(first, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	forget := func() {
		if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
			t.Fatal(err)
		}
	}
	forget()
	whole := func(want ...bool) *CheckReport {
		t.Helper()
		if s, err = openStore(t, dir); err != nil {
			t.Fatal(err)
		}
		for i, b := range nars {
			if served := servedOrAbsent(t, s, b); served != want[i] {
				t.Errorf("NAR %d: served %v", i, served)
			}
		}
		r := mustCheck(t, s, CheckOptions{ReadData: true})
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := whole(false, false, false, true); r.OK() || len(s.recovered.BadPacks) != 1 || s.recovered.Omitted == 0 {
		t.Errorf("got %+v, recovered %+v", r, s.recovered)
	}
	// It was only the reading.
	if err := flip(first, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	if r := whole(true, true, true, true); !r.OK() || !s.recovered.OK() {
		t.Errorf("got %+v, recovered %+v", r, s.recovered)
	}
	forget()
	if err := flip(first, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	if s, err = openStore(t, dir); err != nil {
		t.Fatal(err)
	}
	if r := mustCheck(t, s, CheckOptions{Repair: true}); !r.OK() || r.Repaired == 0 {
		t.Errorf("repair: got %+v", r)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := whole(false, false, false, true); !r.OK() || r.LostPacks != 1 || !s.recovered.OK() {
			t.Errorf("after repair: got %+v, recovered %+v", r, s.recovered)
		}
		forget()
	}
	if s, err = openStore(t, dir); err != nil {
		t.Fatal(err)
	}
	for _, b := range nars {
		putNAR(t, s, b)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := whole(true, true, true, true); !r.OK() || r.AbsentPaths != 0 {
			t.Errorf("after it was uploaded again: got %+v", r)
		}
		forget()
	}
}

// Files of an open pack that are missing keep a store from opening, but for repair.
func TestSalvageIncomplete(t *testing.T) {
	c := newCrash(t, 3, true)
	for name, spoil := range map[string]func(dir string) error{
		"no journal":    func(dir string) error { return os.Remove(filepath.Join(dir, c.journal)) },
		"no frames":     func(dir string) error { return os.Remove(filepath.Join(dir, c.frames)) },
		"short journal": func(dir string) error { return os.Truncate(filepath.Join(dir, c.journal), c.ends[2]) },
		"short frames":  func(dir string) error { return os.Truncate(filepath.Join(dir, c.frames), 3000) },
	} {
		t.Run(name, func(t *testing.T) {
			damage := func(dir string) {
				if err := spoil(dir); err != nil {
					t.Fatal(err)
				}
			}
			_, dir, err := c.reopen(t, damage)
			if err == nil || !strings.Contains(err.Error(), "check --repair") {
				t.Fatalf("got %v", err)
			}
			s, err := openStore(t, dir, func(o *Options) { o.AllowMissingPacks = true })
			if err != nil {
				t.Fatal(err)
			}
			served := 0
			for _, b := range c.nars {
				if servedOrAbsent(t, s, b) {
					served++
				}
			}
			if want := map[string]int{"no journal": 3, "short journal": 3}[name]; served < want {
				t.Errorf("%d NARs are served, want %d", served, want)
			}
			checkStore(t, s)
			c.checkWorks(t, s)
			reopened(t, s, dir, c)
		})
	}
}

// Recovery does not rely on files whose last sync may have failed: it writes the pack anew,
// also when sealing had given it its name.
func TestResealWritesAnew(t *testing.T) {
	c := newCrash(t, 2, false)
	for _, suffix := range []string{framesSuffix, packSuffix} {
		dir := copyDir(t, c.dir)
		path := strings.TrimSuffix(filepath.Join(dir, c.frames), framesSuffix)
		if err := os.Rename(path+framesSuffix, path+suffix); err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+newSuffix, []byte("of an earlier recovery"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(t, dir, func(o *Options) { o.Bucket = &noPacks{o.Bucket} })
		if err != nil {
			t.Fatal(err)
		}
		c.checkRecovered(t, s, len(c.ends))
		after, err := os.Stat(path + packSuffix)
		if err != nil || os.SameFile(before, after) {
			t.Errorf("%s: it is the same file (%v)", suffix, err)
		}
		if files := listSpool(t, dir); len(files) != 1 {
			t.Errorf("%s: in the spool: %v", suffix, files)
		}
		want := RecoveryReport{Packs: 1, Entries: 4, Commits: 4, Applied: 1, Uploads: 1, UploadBytes: after.Size(), Aside: []string{}, BadPacks: []string{}}
		got := s.recovered
		if got.Elapsed = 0; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", suffix, got, want)
		}
	}
}

// What a power cut brings back of packs that are in the bucket is removed.
func TestLeftoversOfUploaded(t *testing.T) {
	c := newCrash(t, 2, false)
	s, uploaded, err := c.reopen(t, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, names := range [][]string{{c.journal}, {c.frames}, {c.journal, c.frames}} {
		dir := copyDir(t, uploaded)
		for _, name := range names {
			b, err := os.ReadFile(filepath.Join(c.dir, name))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		s, err := openStore(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		c.checkRecovered(t, s, len(c.ends))
		if files := listSpool(t, dir); len(files) > 0 || !s.recovered.OK() {
			t.Errorf("%v: left in the spool: %v, %+v", names, files, s.recovered)
		}
	}
}

// A pack of which the index has a part comes from the bucket as a whole if it is damaged
// in the spool, also if a crash follows right after it was set aside.
func TestDamagedUploaded(t *testing.T) {
	ctx, rnd, dir := t.Context(), testSeed(t), t.TempDir()
	s := testStore(t, dir, neverSeal)
	first, second := randomData(rnd, 50_000), randomData(rnd, 50_000)
	putNAR(t, s, makeNAR(t, testFile{name: "a", data: first}))
	if err := s.ix.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	nar := makeNAR(t, testFile{name: "a", data: second})
	putNAR(t, s, nar)
	behind := copyDir(t, dir)
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	packs, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("got packs %v, %v", packs, err)
	}
	pack, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	pack[len(pack)-100] ^= 1
	for _, suffix := range []string{"", damagedSuffix} {
		both := copyDir(t, dir)
		index, err := os.ReadFile(filepath.Join(behind, "state", indexFile))
		if err != nil {
			t.Fatal(err)
		}
		spooled, err := filepath.Rel(filepath.Join(dir, "bucket", "packs"), packs[0])
		if err != nil {
			t.Fatal(err)
		}
		spooled = filepath.Join(both, "state", "spool", spooled+suffix)
		err = errors.Join(os.WriteFile(filepath.Join(both, "state", indexFile), index, 0o600),
			os.MkdirAll(filepath.Dir(spooled), 0o700), os.WriteFile(spooled, pack, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		s, err := openStore(t, both)
		if err != nil {
			t.Fatal(err)
		}
		checkNAR(t, s, rnd, nar)
		checkStore(t, s)
	}
}
