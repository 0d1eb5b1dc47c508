package chunkstore

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/faultfs"
)

// A process is killed before it syncs its journal; the next one finds all of that, and
// shows it. When the power is cut then, no journal may come back that has less.
func TestFaultReseal(t *testing.T) {
	rnd := testSeed(t)
	fs := faultfs.Mount(t)
	nars := [][]byte{
		makeNAR(t, testFile{name: "a", data: randomData(rnd, 20<<10)}),
		makeNAR(t, testFile{name: "b", data: randomData(rnd, 20<<10)}),
	}
	upload := func(plan faultfs.Plan) *faultfs.Volume {
		v := newVolume(t, fs)
		if err := v.SetPlan(plan); err != nil {
			t.Fatal(err)
		}
		s, err := openFaulty(t.Context(), v, discard(), neverSeal)
		if err != nil {
			t.Fatal(err)
		}
		r := newFaultRun(t, v, nars)
		for _, b := range nars {
			r.uploadOne(t.Context(), t, s, b)
		}
		s.Close(t.Context()) // what it does has failed, or comes after what is looked at
		return v
	}
	measure := upload(faultfs.Plan{})
	ops, err := measure.Ops()
	if err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	for k := uint64(1); k <= ops; k++ {
		if what := measure.Describe(k); strings.HasPrefix(what, "sync ") && strings.HasSuffix(what, journalSuffix) {
			last = k
		}
	}
	if last == 0 {
		t.Fatal("no journal was synced")
	}
	v := upload(faultfs.Plan{Snapshots: []uint64{last}})
	killed, err := v.Copy(last)
	if err != nil {
		t.Fatal(err)
	}
	// A file where the bucket has its packs: it takes none.
	if err := os.WriteFile(filepath.Join(killed.Path(), "bucket", "packs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := openFaulty(t.Context(), killed, discard(), neverSeal)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ix.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := newFaultRun(t, killed, nars)
	for hash := range r.acked {
		if readNAR(t.Context(), s, hash, io.Discard) == nil {
			r.ack(t, &r.acked[hash].nar)
		}
	}
	var counts faultCounts
	for seed := range uint64(12) {
		left, _, err := killed.Cut(0, seed)
		if err != nil {
			t.Fatal(err)
		}
		if err := removeIfThere(filepath.Join(left.Path(), "bucket", "packs")); err != nil {
			t.Fatal(err)
		}
		r.checkLeft(t, left, 0, &counts, "power cut after a reseal")
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cancel() // there is nothing to upload to
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}
