package chunkstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/packfile"
)

// onePack returns the path of the one pack in the bucket, and what its parts are.
func onePack(t *testing.T, dir string) (string, *packfile.Pack, []byte) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%d packs (%v)", len(paths), err)
	}
	b, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	rel, _ := filepath.Rel(filepath.Join(dir, "bucket", "packs"), paths[0])
	name, err := packfile.ParseName(strings.TrimSuffix(filepath.ToSlash(rel), packSuffix))
	if err != nil {
		t.Fatal(err)
	}
	p, err := packfile.Read(name, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return paths[0], p, b
}

// mustCheck runs a check.
func mustCheck(t *testing.T, s *Store, opts CheckOptions) *CheckReport {
	t.Helper()
	r, err := s.Check(t.Context(), opts)
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	return r
}

// neverWrong reads an object, which may fail, but not with a wrong byte.
func neverWrong(t *testing.T, s *Store, want []byte) {
	t.Helper()
	o, err := s.Object(t.Context(), sha256.Sum256(want))
	if errors.Is(err, packfile.ErrCorrupt) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := o.WritePlain(t.Context(), &got, 0, o.Size()); err == nil && got.Len() != len(want) || !bytes.HasPrefix(want, got.Bytes()) {
		t.Fatalf("got %d bytes (%v) of %d, or others", got.Len(), err, len(want))
	}
}

// Whatever part of a pack is damaged: a check finds it, repairing leaves a store that a
// check has no complaint about, and what was lost can be uploaded again, for good.
func TestRepair(t *testing.T) {
	type place struct {
		name  string
		off   int64
		frame bool
	}
	dir := t.TempDir()
	rnd := testSeed(t)
	s := testStore(t, dir)
	var nars [][]byte
	for i := range 3 {
		b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)}, testFile{name: "b", data: fmt.Append(nil, i)})
		putNAR(t, s, b)
		nars = append(nars, b)
	}
	if _, err := s.PutFile(t.Context(), "log/x", bytes.NewReader(randomData(rnd, 20<<10))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, pack, b := onePack(t, dir)
	end := int64(len(b))
	trailer, err := packfile.ParseTrailer(b[end-packfile.TrailerSize:], end)
	if err != nil {
		t.Fatal(err)
	}
	places := []place{{"header", 3, false}, {"header sum", 45, false}}
	for i, f := range pack.Frames {
		places = append(places, place{fmt.Sprint("start of frame ", i), pack.Offsets[i], true})
		places = append(places, place{fmt.Sprint("end of frame ", i), pack.Offsets[i] + f.Size() - 1, true})
	}
	places = append(places, place{"records", trailer.Records + 20, false}, place{"directory", trailer.Directory + 9, false},
		place{"trailer", end - packfile.TrailerSize, false}, place{"last byte", end - 1, false})
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			dir := copyDir(t, dir)
			s, err := openStore(t, dir)
			if err != nil {
				t.Fatal(err)
			}
			path, _, _ := onePack(t, dir)
			if err := flip(path, p.off); err != nil {
				t.Fatal(err)
			}
			dry := mustCheck(t, s, CheckOptions{ReadData: true})
			if dry.OK() || dry.ProblemCount != 1 || dry.AbsentPaths != 0 || p.frame != (dry.AffectedPathCount+dry.AffectedFileCount > 0) {
				t.Errorf("check: got %+v", dry)
			}
			done := mustCheck(t, s, CheckOptions{Repair: true})
			if !done.OK() || done.Repaired != 1 || !slices.Equal(done.AffectedPaths, dry.AffectedPaths) || p.frame != (done.Marked == 1) {
				t.Errorf("repair: got %+v, and by the check %q", done, dry.AffectedPaths)
			}
			again := checkStore(t, s)
			if again.AbsentPaths != dry.AffectedPathCount || !slices.Equal(again.AffectedPaths, dry.AffectedPaths) ||
				again.AbsentFiles != dry.AffectedFileCount || !p.frame && again.LostPacks != 1 {
				t.Errorf("check of the repaired store: got %+v, want the paths %q", again, dry.AffectedPaths)
			}
			var text strings.Builder
			if err := again.WriteText(&text); err != nil || !strings.Contains(text.String(), "no problems") {
				t.Errorf("text: %v\n%s", err, text.String())
			}
			for _, b := range nars {
				neverWrong(t, s, b)
				if !p.frame {
					checkNAR(t, s, rnd, b) // it was moved
				}
			}
			if st, err := s.Stats(t.Context()); err != nil || st.AbsentObjects != again.AbsentPaths+again.AbsentFiles {
				t.Errorf("stats of %d absent: got %+v, %v", again.AbsentPaths+again.AbsentFiles, st, err)
			}
			for _, b := range nars {
				putNAR(t, s, b)
				checkNAR(t, s, rnd, b)
			}
			if r := checkStore(t, s); r.AbsentPaths != 0 {
				t.Errorf("%d paths are absent after they were uploaded again", r.AbsentPaths)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s, err = openStore(t, dir); err != nil {
				t.Fatal(err)
			}
			for _, b := range nars {
				checkNAR(t, s, rnd, b)
			}
			checkStore(t, s)
		})
	}
}

// A bucket that cannot be reached is not repaired.
func TestRepairUnreachable(t *testing.T) {
	f := &failing{}
	s := testStore(t, t.TempDir(), func(o *Options) {
		f.Bucket = o.Bucket
		o.Bucket = f
	})
	rnd := testSeed(t)
	b := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	putNAR(t, s, b)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.fail = true
	if _, err := s.Check(t.Context(), CheckOptions{Repair: true}); !errors.Is(err, errUnreachable) {
		t.Errorf("got %v", err)
	}
	f.fail = false
	if r := checkStore(t, s); r.Damaged != 0 || r.LostPacks != 0 {
		t.Errorf("got %+v", r)
	}
	if err := func() error {
		o, err := s.Object(t.Context(), sha256.Sum256(b))
		if err != nil {
			return err
		}
		return o.WritePlain(t.Context(), io.Discard, 0, o.Size())
	}(); err != nil {
		t.Error(err)
	}
}

// A store that has lost a pack does not open, but to be repaired; then it does, and what
// was in the pack can be uploaded again, also for an index that is made anew.
func TestRepairMissingPack(t *testing.T) {
	dir := t.TempDir()
	rnd := testSeed(t)
	s := testStore(t, dir)
	shared := randomData(rnd, 300<<10)
	var nars [][]byte
	for i := range 3 {
		// All rely on the first pack.
		b := makeNAR(t, testFile{name: "a", data: shared}, testFile{name: "b", data: randomData(rnd, 100<<10)}, testFile{name: "c", data: fmt.Append(nil, i)})
		putNAR(t, s, b)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		nars = append(nars, b)
	}
	other := makeNAR(t, testFile{name: "a", data: randomData(rnd, 100<<10)})
	putNAR(t, s, other)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
	if err != nil || len(paths) < 4 {
		t.Fatalf("%d packs (%v)", len(paths), err)
	}
	if err := os.Remove(paths[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t, dir); err == nil || !strings.Contains(err.Error(), "check --repair") {
		t.Fatalf("open: got %v", err)
	}
	if s, err = openStore(t, dir, func(o *Options) { o.AllowMissingPacks = true }); err != nil {
		t.Fatal(err)
	}
	if r := mustCheck(t, s, CheckOptions{ReadData: true}); r.ProblemCount != 1 || r.AffectedPathCount != 3 || r.AbsentPaths != 0 {
		t.Errorf("check: got %+v", r)
	}
	if r := mustCheck(t, s, CheckOptions{Repair: true}); !r.OK() || r.Repaired != 1 || r.AffectedPathCount != 3 || r.Marked == 0 {
		t.Errorf("repair: got %+v", r)
	}
	reopen := func(absent int64, change func()) {
		t.Helper()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		change()
		if s, err = openStore(t, dir); err != nil {
			t.Fatal(err)
		}
		if r := checkStore(t, s); r.AbsentPaths != absent || r.LostPacks != 1 {
			t.Errorf("check: got %d absent paths and %d lost packs, want %d and 1", r.AbsentPaths, r.LostPacks, absent)
		}
		checkNAR(t, s, rnd, other)
	}
	forget := func() {
		if err := os.Remove(filepath.Join(dir, "state", "index.bolt")); err != nil {
			t.Fatal(err)
		}
	}
	reopen(3, func() {})
	reopen(3, forget)
	putNAR(t, s, nars[0])
	for _, b := range nars[1:] {
		checkNAR(t, s, rnd, b) // by what they share
	}
	putNAR(t, s, nars[1])
	reopen(0, func() {})
	reopen(0, forget)
	for _, b := range nars {
		checkNAR(t, s, rnd, b)
	}
}

// The records of a pack that was lost move to another one. When that one is lost too they
// move on, though the index says that they are the first one's.
func TestRepairTwice(t *testing.T) {
	dir := t.TempDir()
	rnd := testSeed(t)
	s := testStore(t, dir)
	want := makeNAR(t, testFile{name: "a", data: randomData(rnd, 300<<10)})
	putNAR(t, s, want)
	var lost []string
	for range 2 {
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		paths, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if slices.Contains(lost, path) {
				continue
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := flip(path, info.Size()-1); err != nil {
				t.Fatal(err)
			}
		}
		lost = paths
		if r := mustCheck(t, s, CheckOptions{ReadData: true, Repair: true}); !r.OK() || r.Repaired == 0 {
			t.Fatalf("repair: got %+v", r)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir)
	checkNAR(t, s, rnd, want)
	if _, err := s.NarInfo(t.Context(), testNarInfo(t, sha256.Sum256(want), len(want)).StorePath.HashPart()); err != nil {
		t.Error(err)
	}
}

// A pack that an index made anew finds damaged takes with it what later packs say about
// its chunks. Repairing brings back what is left of that, without another start.
func TestRepairLeftOut(t *testing.T) {
	dir := t.TempDir()
	rnd := testSeed(t)
	s := testStore(t, dir)
	shared := testFile{name: "a", data: randomData(rnd, 300<<10)}
	first := makeNAR(t, shared)
	second := makeNAR(t, shared, testFile{name: "b", data: randomData(rnd, 300<<10)})
	for _, b := range [][]byte{first, second} {
		putNAR(t, s, b)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	packs, err := filepath.Glob(filepath.Join(dir, "bucket", "packs", "*", "*.pack"))
	if err != nil || len(packs) != 2 {
		t.Fatalf("%q, %v", packs, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(packs)
	info, err := os.Stat(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := flip(packs[0], info.Size()-1); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir)
	if r := mustCheck(t, s, CheckOptions{ReadData: true}); r.ProblemCount != 2 {
		t.Fatalf("before: got %+v", r)
	}
	if r := mustCheck(t, s, CheckOptions{Repair: true}); !r.OK() {
		t.Fatalf("repair: got %+v", r)
	}
	if r := mustCheck(t, s, CheckOptions{ReadData: true}); r.ProblemCount != 0 {
		t.Errorf("after: got %+v", r)
	}
	// The second path is known again: only a part of its NAR is lost.
	if _, err := s.NarInfo(t.Context(), testNarInfo(t, sha256.Sum256(second), len(second)).StorePath.HashPart()); err != nil {
		t.Error(err)
	}
	if servedOrAbsent(t, s, second) {
		t.Error("the second NAR is there, without the chunks of the first")
	}
	putNAR(t, s, first)
	checkNAR(t, s, rnd, second)
	if r := mustCheck(t, s, CheckOptions{ReadData: true}); r.ProblemCount != 0 {
		t.Errorf("healed: got %+v", r)
	}
}
