package index

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestBench measures an index of 10 million chunks (DEDUPD_BENCH_CHUNKS), in batches of 300,
// as packs bring them. DEDUPD_BENCH=1 runs it;
// TMPDIR says on which disk; DEDUPD_BENCH_MEMTABLE sets the memtable, in MiB.
func TestBench(t *testing.T) {
	if os.Getenv("DEDUPD_BENCH") == "" {
		t.Skip("takes minutes; set DEDUPD_BENCH=1")
	}
	chunks := benchSetting("DEDUPD_BENCH_CHUNKS", 10_000_000)
	memtable := benchSetting("DEDUPD_BENCH_MEMTABLE", defaultMemtable>>20) << 20
	const perBatch = 300
	path := filepath.Join(t.TempDir(), "index")
	b := open(t, path, Options{Memtable: memtable})

	peak := watchMemory(t)
	start, slowest := time.Now(), time.Duration(0)
	next := benchKeys(1)
	for n := 0; n < chunks; n += perBatch {
		before := time.Now()
		pack, err := b.PackNumber(t.Context(), fmt.Sprintf("0123456789abcdef/%08d-fedcba98", n/perBatch))
		must(t, err)
		var batch Batch
		for i := range perBatch {
			batch.PutChunk(next(), Location{
				Pack: pack, Offset: uint64(i) * 111_847, Prefix: 20, Payload: 60_000 + uint32(i), Kind: 1,
				CRC: uint32(n * i), Chunks: 1, Len: 110_000 + uint32(i),
			})
		}
		batch.Mark("journal", uint64(n+1))
		must(t, b.Apply(t.Context(), &batch))
		slowest = max(slowest, time.Since(before))
	}
	must(t, b.Flush(t.Context()))
	rate(t, "inserts, with flushes", chunks, start)
	t.Logf("slowest batch: %v", slowest.Round(time.Millisecond))
	t.Logf("peak: %s", peak())

	lookups(t, b, "after inserting", chunks)
	t.Logf("filter: %.2f bytes a chunk, %d layers", float64(b.Stats().Filter)/float64(chunks), len(*b.filter.layers.Load()))
	must(t, b.Close())
	info, err := os.Stat(path)
	must(t, err)
	t.Logf("file: %.1f bytes a chunk", float64(info.Size())/float64(chunks))

	start = time.Now()
	b = open(t, path, Options{Memtable: memtable})
	t.Logf("reopen: %v", time.Since(start).Round(time.Millisecond))
	<-b.fillDone
	rate(t, "filter fill", chunks, start)
	lookups(t, b, "after reopening", chunks)
	t.Logf("filter: %.2f bytes a chunk, %d layers", float64(b.Stats().Filter)/float64(chunks), len(*b.filter.layers.Load()))
}

func lookups(t *testing.T, b *Bolt, when string, chunks int) {
	const lookups, perCall = 3_000_000, 300
	ids, out := make([]Key, perCall), make([]Location, perCall)
	for _, c := range []struct {
		name string
		seed uint64
		want bool
	}{{"unknown", 2, false}, {"known", 1, true}} {
		next := benchKeys(c.seed)
		// Known ones come in the order of insertion, which is random on disk.
		n := min(lookups, chunks/perCall*perCall)
		var spent time.Duration
		for range n / perCall {
			for i := range ids {
				ids[i] = next()
			}
			start := time.Now()
			must(t, b.Chunks(t.Context(), ids, out))
			spent += time.Since(start)
			for i := range out {
				if (out[i].Pack != 0) != c.want {
					t.Fatalf("%s chunk: got %+v", c.name, out[i])
				}
			}
		}
		t.Logf("%s: look-ups of %s chunks: %.0f a second", when, c.name, float64(n)/spent.Seconds())
	}
}

// benchKeys is a source of keys that costs little.
func benchKeys(seed uint64) func() Key {
	rnd := rand.New(rand.NewPCG(seed, 0))
	return func() (k Key) {
		for i := 0; i < len(k); i += 8 {
			binary.LittleEndian.PutUint64(k[i:], rnd.Uint64())
		}
		return k
	}
}

func rate(t *testing.T, what string, n int, start time.Time) {
	spent := time.Since(start)
	t.Logf("%s: %d in %v: %.0f a second", what, n, spent.Round(time.Millisecond), float64(n)/spent.Seconds())
}

func benchSetting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// watchMemory samples until the function that it returns is called, which tells the peaks.
func watchMemory(t *testing.T) func() string {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var heap, anon atomic.Uint64
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			heap.Store(max(heap.Load(), m.HeapAlloc))
			anon.Store(max(anon.Load(), anonymous()))
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return func() string {
		cancel()
		<-done
		return fmt.Sprintf("Go heap %d MiB, resident without the file %d MiB", heap.Load()>>20, anon.Load()>>20)
	}
}

// anonymous returns the process's resident memory that is no file's, in bytes; 0 if unknown.
func anonymous() (n uint64) {
	status, _ := os.ReadFile("/proc/self/status")
	if _, after, ok := strings.Cut(string(status), "RssAnon:"); ok {
		fmt.Sscan(after, &n)
	}
	return n << 10
}
