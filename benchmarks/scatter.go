package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/nar"
)

// scatter stores the corpus, a generation after the other, with a cap on the packs that
// NARs may be scattered over and without one, and reads the last generation: what is
// stored more, and how many packs a NAR needs. The corpus is too short a history to
// scatter much, so the same is done with one that is made up: a NAR of 16 MB of which
// each of fifty generations changes a twentieth, here and there.
func scatter(ctx context.Context, b *bench) ([]row, error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	history, err := b.history(50, 160, 100<<10)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, test := range []struct {
		what string
		gens []generation
		caps []int
	}{{"corpus", gens, []int{-1, 4}}, {"history", history, []int{-1, 16, 8, 4, 2}}} {
		var free scattering
		for _, max := range test.caps {
			s, err := b.scatterOnce(ctx, test.gens, max)
			if err != nil {
				return nil, err
			}
			name := fmt.Sprintf("%s, max-fragments %d", test.what, max)
			if max < 0 {
				free = s
				name = test.what + ", no cap"
			}
			b.progress("%s: %+v", name, s)
			rows = append(rows,
				compare(name+": stored", "MB", mb(s.stored), "no cap", mb(free.stored), nil),
				row{What: name + ": packs for a NAR of the last generation, mean", Unit: "packs", Value: s.packs},
				row{What: name + ": most packs for 8 MiB of such a NAR", Unit: "packs", Value: float64(s.most)})
		}
	}
	return rows, nil
}

// history makes up generations of one NAR with files of random bytes, of which each
// generation replaces a twentieth.
func (b *bench) history(gens, files, size int) (history []generation, err error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	contents := make([][]byte, files)
	for g := range gens {
		for i := range contents {
			if g == 0 || rnd.IntN(20) == 0 {
				contents[i] = make([]byte, size)
				for j := 0; j < size; j += 8 {
					binary.LittleEndian.PutUint64(contents[i][j:], rnd.Uint64())
				}
			}
		}
		p := storePath{nar: fmt.Sprintf("nar/history%d.nar", g), file: filepath.Join(b.work, fmt.Sprintf("history%d.nar", g))}
		if err := writeTree(p.file, contents); err != nil {
			return nil, err
		}
		history = append(history, generation{paths: []storePath{p}})
	}
	return history, nil
}

// writeTree writes a NAR of a directory with files.
func writeTree(path string, contents [][]byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := nar.NewWriter(f)
	if err := w.WriteHeader(&nar.Header{Type: nar.Directory}); err != nil {
		return err
	}
	for i, data := range contents {
		if err := w.WriteHeader(&nar.Header{Path: fmt.Sprintf("f%04d", i), Type: nar.Regular, Size: int64(len(data))}); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), f.Close())
}

// A scattering is what storing the corpus came to.
type scattering struct {
	stored int64   // bytes in the bucket
	again  int64   // bytes of chunks that were stored again, before compression
	packs  float64 // that a NAR of the last generation is read from, on average
	most   int     // the most that 8 MiB of one are read from
}

func (b *bench) scatterOnce(ctx context.Context, gens []generation, fragments int) (s scattering, err error) {
	dir := filepath.Join(b.work, fmt.Sprintf("scatter%d-%d", len(gens), fragments))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	inner, err := bucket.OpenDir(filepath.Join(dir, "bucket"))
	if err != nil {
		return s, err
	}
	used := &usedKeys{Bucket: inner}
	store, err := chunkstore.Open(ctx, chunkstore.Options{
		State: filepath.Join(dir, "state"), Bucket: used, MaxFragments: fragments, Log: slog.New(slog.DiscardHandler),
		Repository: chunkstore.DefaultRepository(chunkstore.DefaultStoreDir, b.splitter),
	})
	if err != nil {
		return s, err
	}
	defer store.Close(ctx)
	seen := map[string]bool{}
	for _, g := range gens {
		for _, p := range g.paths {
			if seen[p.nar] {
				continue
			}
			seen[p.nar] = true
			if err := storeFile(ctx, store, p); err != nil {
				return s, err
			}
		}
		if err := store.Flush(ctx); err != nil {
			return s, err
		}
	}
	s.again = store.Counters().AgainChunkBytes
	if s.stored, _, err = measureDir(filepath.Join(dir, "bucket")); err != nil {
		return s, err
	}
	nars := distinct(gens[len(gens)-1:], byNAR)
	for _, p := range nars {
		packs, most, err := used.readCold(ctx, store, p)
		if err != nil {
			return s, err
		}
		s.packs += float64(packs) / float64(len(nars))
		s.most = max(s.most, most)
	}
	return s, nil
}

func storeFile(ctx context.Context, store *chunkstore.Store, p storePath) error {
	f, err := os.Open(p.file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = store.PutNAR(ctx, p.nar, f, nil)
	return err
}

// usedKeys is a bucket that notes what is read from it.
type usedKeys struct {
	bucket.Bucket
	mu   sync.Mutex
	keys map[string]bool
}

func (u *usedKeys) note(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.keys != nil {
		u.keys[key] = true
	}
}

func (u *usedKeys) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	u.note(key)
	return u.Bucket.ReadAt(ctx, key, p, off)
}

// readCold returns how many packs a NAR is read from, and how many 8 MiB of it at most.
func (u *usedKeys) readCold(ctx context.Context, store *chunkstore.Store, p storePath) (packs, most int, err error) {
	f, err := os.Open(p.file)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, f)
	if err != nil {
		return 0, 0, err
	}
	o, err := store.Object(ctx, chunkstore.Hash(hash.Sum(nil)))
	if err != nil {
		return 0, 0, err
	}
	const window = 8 << 20
	all := map[string]bool{}
	for off := int64(0); off < size; off += window {
		u.keys = map[string]bool{}
		if err := o.WritePlain(ctx, io.Discard, off, min(window, size-off)); err != nil {
			return 0, 0, err
		}
		most = max(most, len(u.keys))
		for key := range u.keys {
			all[key] = true
		}
	}
	u.keys = nil
	return len(all), most, nil
}
