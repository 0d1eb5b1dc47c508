//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dedupd/dedupd/narinfo"
)

// TestDiskFull fills the server's disk under load, for DEDUPD_DISKFULL (default 10 s),
// and makes room again. Meanwhile clients wait or are told, and what is there is served;
// afterwards, without a restart, uploads succeed, and all that was acknowledged is there.
func TestDiskFull(t *testing.T) {
	duration := 10 * time.Second
	if text := os.Getenv("DEDUPD_DISKFULL"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	} else if testing.Short() {
		duration = 2 * time.Second
	}
	for _, test := range []struct {
		name string
		disk string // below the directory of bucket and state
	}{
		{"state", "state"},
		{"state and bucket", "."},
	} {
		t.Run(test.name, func(t *testing.T) { testDiskFull(t, test.disk, duration) })
	}
}

func testDiskFull(t *testing.T, disk string, duration time.Duration) {
	dir := t.TempDir()
	disk = filepath.Join(dir, disk)
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256m"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("cannot mount a small file system: %v", err)
		}
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })

	f := &fullDisk{killer: killer{t: t, dir: dir, acked: map[string][32]byte{}}, answers: map[int]int{}}
	f.start()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var clients sync.WaitGroup
	for i := range uint64(8) {
		clients.Go(func() { f.upload(rand.New(rand.NewPCG(seed, i))) })
	}
	for i := range uint64(2) {
		clients.Go(func() { f.read(rand.New(rand.NewPCG(seed, 100+i))) })
	}
	defer clients.Wait()
	defer f.stop.Store(true)

	f.waitAcked(40)
	f.fill(filepath.Join(disk, "foreign"), duration)
	before := f.acknowledged()
	f.waitAcked(before + 40)
	f.stop.Store(true)
	clients.Wait()
	t.Logf("full for %v: %d paths acknowledged until its end, %d afterwards; answers %v, longest wait %v; %d reads, all right",
		duration, before, len(f.acked)-before, f.answers, f.longest.Round(time.Millisecond), f.reads.Load())
	f.verify(0)
	f.kill() // so that all there is is what is on the disk
	f.start()
	f.verify(1)
	f.kill()
}

// A fullDisk is the clients of a server whose disk is filled, and what they remember.
type fullDisk struct {
	killer // whose mutex guards what follows, too

	paths   []string    // the keys of acked
	answers map[int]int // to PUTs, by their status
	longest time.Duration

	stop  atomic.Bool
	reads atomic.Int64
}

// upload puts paths until f.stop. One that is refused it puts again, as a client would.
func (f *fullDisk) upload(rnd *rand.Rand) {
	for !f.stop.Load() {
		info, b, err := randomPath(rnd)
		if err != nil {
			f.t.Error(err)
			return
		}
		part := info.StorePath.HashPart()
		if !f.insist("/"+info.URL, b) || !f.insist("/"+part+".narinfo", info.Append(nil, "/nix/store")) {
			return
		}
		f.mu.Lock()
		f.acked[part] = info.NarHash
		f.paths = append(f.paths, part)
		f.mu.Unlock()
		time.Sleep(20 * time.Millisecond) // the disk must not fill by itself
	}
}

// randomPath makes a path of its own with a NAR.
func randomPath(rnd *rand.Rand) (*narinfo.NarInfo, []byte, error) {
	b, err := killNAR(rnd, 1+rnd.IntN(300_000))
	if err != nil {
		return nil, nil, err
	}
	hash := sha256.Sum256(b)
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(hash[:20]) + "-full")
	return &narinfo.NarInfo{
		StorePath: path, URL: "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar", Compression: "none",
		NarHash: hash, NarSize: uint64(len(b)),
	}, b, err
}

// insist puts a file until that is acknowledged, or f.stop. No other answer is right
// than that the disk is full.
func (f *fullDisk) insist(path string, b []byte) bool {
	for !f.stop.Load() {
		start := time.Now()
		status, text, err := f.try(path, b)
		if err != nil {
			f.t.Errorf("PUT %s: %v\n%s", path, err, f.stderr)
			return false
		}
		f.mu.Lock()
		f.answers[status]++
		f.longest = max(f.longest, time.Since(start))
		f.mu.Unlock()
		switch status {
		case http.StatusOK:
			return true
		case http.StatusInsufficientStorage:
			time.Sleep(100 * time.Millisecond)
		default:
			f.t.Errorf("PUT %s: status %d: %s", path, status, text)
			return false
		}
	}
	return false
}

func (f *fullDisk) try(path string, b []byte) (status int, text []byte, err error) {
	req, err := http.NewRequest("PUT", f.url+path, bytes.NewReader(b))
	if err != nil {
		return 0, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(resp.Body)
	return resp.StatusCode, text, err
}

// read gets paths that were acknowledged until f.stop.
func (f *fullDisk) read(rnd *rand.Rand) {
	for !f.stop.Load() {
		time.Sleep(20 * time.Millisecond)
		f.mu.Lock()
		var part string
		var hash [32]byte
		if len(f.paths) > 0 {
			part = f.paths[rnd.IntN(len(f.paths))]
			hash = f.acked[part]
		}
		f.mu.Unlock()
		if part == "" {
			continue
		}
		if err := f.readOne(part, hash); err != nil {
			f.t.Errorf("path %s: %v", part, err)
			return
		}
		f.reads.Add(1)
	}
}

func (f *fullDisk) readOne(part string, hash [32]byte) error {
	for _, path := range []string{"/" + part + ".narinfo", "/nar/" + narinfo.EncodeNix32(hash[:]) + ".nar"} {
		resp, err := http.Get(f.url + path)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s: %v", path, resp.Status, err)
		}
		if path != "/"+part+".narinfo" && sha256.Sum256(b) != hash {
			return fmt.Errorf("GET %s: %d bytes with another hash", path, len(b))
		}
	}
	return nil
}

// acknowledged returns the number of paths that were.
func (f *fullDisk) acknowledged() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.acked)
}

// waitAcked waits until n paths were acknowledged.
func (f *fullDisk) waitAcked(n int) {
	f.t.Helper()
	for start := time.Now(); f.acknowledged() < n; time.Sleep(10 * time.Millisecond) {
		if f.t.Failed() || time.Since(start) > 3*time.Minute {
			f.t.Fatalf("%d paths were acknowledged, want %d\n%s", f.acknowledged(), n, f.stderr)
		}
	}
}

// fill takes all room of a disk, and what becomes free, until the time is over.
func (f *fullDisk) fill(path string, d time.Duration) {
	f.t.Helper()
	foreign, err := os.Create(path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer os.Remove(path)
	defer foreign.Close()
	full := false
	block := make([]byte, 64<<10)
	for end := time.Now().Add(d); time.Now().Before(end) && !f.t.Failed(); {
		if _, err := foreign.Write(block); errors.Is(err, unix.ENOSPC) {
			full = true
			time.Sleep(20 * time.Millisecond)
		} else if err != nil {
			f.t.Fatal(err)
		}
	}
	if !full {
		f.t.Error("the disk did not fill")
	}
}
