package simulation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/faultfs"
)

// resultEnv names the file that a process of TestSeed writes its Result to.
const resultEnv = "DEDUPD_SIMULATE_RESULT"

func TestMain(m *testing.M) {
	faultfs.Child()
	os.Exit(m.Run())
}

// TestSeed runs the seed that the environment says, in this process.
func TestSeed(t *testing.T) {
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		t.Skip("runs one seed: SEED=… go test -run TestSeed ./simulation")
	}
	res := Run(t, seed)
	if path := os.Getenv(resultEnv); path != "" {
		data, err := json.Marshal(res)
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
		return
	}
	for _, line := range res.Log {
		t.Log(line)
	}
	for _, bug := range res.Bugs {
		t.Error(bug)
	}
	t.Log(res)
}

// TestSimulation runs some seeds, and as many as there is time for if
// DEDUPD_SIMULATE=duration is set: beginning with SEED, or anywhere.
func TestSimulation(t *testing.T) {
	faultfs.Mount(t) // or skip
	s := &simulation{t: t, seed: 1, begun: time.Now(), total: Result{Counts: map[string]uint64{}}}
	s.last = s.seed + 4
	if testing.Short() || raceEnabled {
		s.last = s.seed + 2
	}
	if text := os.Getenv("DEDUPD_SIMULATE"); text != "" {
		limit, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		s.seed = rand.Uint64() >> 16
		if n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
			s.seed = n
		}
		s.until, s.last = s.begun.Add(limit), 1<<63
		stop := s.progress()
		defer stop()
	}
	var runs sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		runs.Go(s.run)
	}
	runs.Wait()
	t.Log(s)
}

// A simulation runs seeds, each in a process.
type simulation struct {
	t     *testing.T
	begun time.Time
	until time.Time // zero for no limit

	mu         sync.Mutex
	seed, last uint64 // the next, and the first that is not run
	seeds, bad uint64
	total      Result
}

// maxBad is the number of seeds with findings after which it is enough.
const maxBad = 5

func (s *simulation) run() {
	for {
		s.mu.Lock()
		seed := s.seed
		s.seed++
		over := seed >= s.last || !s.until.IsZero() && time.Now().After(s.until) || s.bad >= maxBad
		s.mu.Unlock()
		if over {
			return
		}
		res := s.runSeed(seed)
		s.add(res)
		if len(res.Bugs) > 0 {
			s.report(seed, res)
		}
	}
}

func (s *simulation) add(res *Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seeds++
	t := &s.total
	t.Lives += res.Lives
	t.Operations += res.Operations
	t.Requests += res.Requests
	t.Verified += res.Verified
	t.Acked += res.Acked
	t.DiskOps += res.DiskOps
	for what, n := range res.Counts {
		t.Counts[what] += n
	}
}

// report says what was found, and how often it is found again.
func (s *simulation) report(seed uint64, res *Result) {
	s.mu.Lock()
	s.bad++
	s.mu.Unlock()
	const again = 3
	found := 0
	for range again {
		if len(s.runSeed(seed).Bugs) > 0 {
			found++
		}
	}
	s.t.Errorf("seed %d: found again in %d of %d runs\n%s\n%s", seed, found, again, strings.Join(res.Log, "\n"), strings.Join(res.Bugs, "\n"))
}

// seedTimeout is far more than a run takes, on a machine that is busy with other things too.
const seedTimeout = "30m"

// runSeed runs a seed in a process of its own.
func (s *simulation) runSeed(seed uint64) *Result {
	dir := s.t.TempDir()
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "result")
	cmd := exec.Command(os.Args[0], "-test.run=^TestSeed$", "-test.timeout="+seedTimeout)
	cmd.Env = append(os.Environ(), "SEED="+strconv.FormatUint(seed, 10), resultEnv+"="+path, "TMPDIR="+dir, "GOMEMLIMIT=512MiB")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	runErr := cmd.Run()
	res := &Result{}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, res)
	}
	if runErr != nil || err != nil {
		res.Bugs = append(res.Bugs, fmt.Sprintf("the process ended with %v, %v:\n%s", runErr, err, &out))
	}
	return res
}

// progress prints a line a minute, until stop is called.
func (s *simulation) progress() (stop func()) {
	tick, done := time.NewTicker(time.Minute), make(chan struct{})
	var printing sync.WaitGroup
	printing.Go(func() {
		for {
			select {
			case <-tick.C:
				s.mu.Lock()
				fmt.Printf("%v: %d seeds, %d with findings, %d operations, %d requests, %d paths verified\n",
					time.Since(s.begun).Round(time.Second), s.seeds, s.bad, s.total.Operations, s.total.Requests, s.total.Verified)
				s.mu.Unlock()
			case <-done:
				return
			}
		}
	})
	return func() {
		tick.Stop()
		close(done)
		printing.Wait()
	}
}

func (s *simulation) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d seeds in %v, %d with findings\n%v", s.seeds, time.Since(s.begun).Round(time.Second), s.bad, &s.total)
}

// String says what was done, for people.
func (res *Result) String() string {
	b := new(strings.Builder)
	fmt.Fprintf(b, "%d lives, %d operations of clients, %d requests, %d operations of disks\n%d paths acknowledged, %d times every byte of one was compared\n",
		res.Lives, res.Operations, res.Requests, res.DiskOps, res.Acked, res.Verified)
	for _, what := range slices.Sorted(maps.Keys(res.Counts)) {
		fmt.Fprintf(b, "%8d  %s\n", res.Counts[what], what)
	}
	return b.String()
}
