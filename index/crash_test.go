package index

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// crashDir, in the environment, makes the test binary the victim of TestKill.
const crashDir = "DEDUPD_TEST_CRASH_DIR"

const crashPerBatch = 50

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		fmt.Fprintln(os.Stderr, victim(dir))
		os.Exit(1)
	}
	if path := os.Getenv(syncVictim); path != "" {
		if err := failSync(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// victim goes on where the durable mark says, applies batches for good, and prints a
// line for each position that it was told is durable.
func victim(dir string) error {
	b, err := OpenBolt(filepath.Join(dir, "index"), Options{Memtable: 64 << 10})
	if err != nil {
		return err
	}
	ctx := context.Background()
	marks, err := b.Marks(ctx)
	if err != nil {
		return err
	}
	for n := int(marks["log"]); ; n++ {
		pack, err := b.PackNumber(ctx, fmt.Sprint("pack ", n))
		if err != nil {
			return err
		}
		var batch Batch
		for i := range crashPerBatch {
			l := loc(n*crashPerBatch + i)
			l.Pack = pack
			batch.PutChunk(key(n*crashPerBatch+i), l)
		}
		batch.Put(Names, fmt.Append(nil, n), fmt.Append(nil, "value of ", n))
		batch.Mark("log", uint64(n+1))
		if err := b.Apply(ctx, &batch); err != nil {
			return err
		}
		if n%37 == 0 {
			if err := b.Flush(ctx); err != nil {
				return err
			}
		}
		if marks, err = b.Marks(ctx); err != nil {
			return err
		}
		fmt.Println(marks["log"])
	}
}

// A process that is killed leaves the rows that its marks promise, numbers of packs
// included, and its successor goes on from there.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		promised := runVictim(t, dir, time.Duration(50+round*37)*time.Millisecond)
		checkVictim(t, filepath.Join(dir, "index"), promised)
	}
}

// runVictim returns the last position that the victim printed before it was killed.
func runVictim(t *testing.T, dir string, life time.Duration) (promised uint64) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	lines.Scan() // it has begun
	timer := time.AfterFunc(life, func() { cmd.Process.Kill() })
	defer timer.Stop()
	for ok := true; ok; ok = lines.Scan() {
		fmt.Sscan(lines.Text(), &promised)
	}
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("the victim ended by itself: %v", err)
	}
	return promised
}

func checkVictim(t *testing.T, path string, promised uint64) {
	b := open(t, path, Options{})
	defer b.Close()
	marks, err := b.Marks(t.Context())
	must(t, err)
	if marks["log"] < promised {
		t.Fatalf("mark: got %d, but %d had been durable", marks["log"], promised)
	}
	t.Logf("killed with %d batches durable", marks["log"])
	for n := range int(marks["log"]) {
		value, err := b.Get(t.Context(), Names, fmt.Append(nil, n))
		if want := fmt.Sprint("value of ", n); err != nil || string(value) != want {
			t.Fatalf("row of batch %d: got %q, %v, want %q", n, value, err, want)
		}
	}
	ids := make([]Key, int(marks["log"])*crashPerBatch)
	for i := range ids {
		ids[i] = key(i)
	}
	out := make([]Location, len(ids))
	must(t, b.Chunks(t.Context(), ids, out))
	for i, l := range out {
		name, err := b.PackName(t.Context(), l.Pack)
		if want := fmt.Sprint("pack ", i/crashPerBatch); err != nil || name != want {
			t.Fatalf("pack of chunk %d: got %q, %v, want %q", i, name, err, want)
		}
		want := loc(i)
		want.Pack = l.Pack
		if l != want {
			t.Fatalf("chunk %d: got %+v, want %+v", i, l, want)
		}
	}
	must(t, b.db.View(checkPages))
}

// checkPages has bbolt check its own structure.
func checkPages(tx *bbolt.Tx) error {
	for err := range tx.Check() {
		return err
	}
	return nil
}
