package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
)

// TestIndexSnapshot writes snapshots beside a server and without one, and has another
// machine start from the last.
func TestIndexSnapshot(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	bucket := "file://" + filepath.Join(t.TempDir(), "bucket")
	state := filepath.Join(t.TempDir(), "state")
	args := []string{"--bucket", bucket, "--state", state}
	snapshot := append([]string{"index", "snapshot"}, args...)
	log := strings.Repeat("a line of a log\n", 10_000)

	p := startServer(t, append(args, "--key-files", "none")...)
	p.put(t, "/log/x.drv", log)
	if out, err := dedupd(t, "", snapshot...); err != nil || !strings.HasPrefix(out, "snapshot ") {
		t.Errorf("beside a server: got %q, %v", out, err)
	}
	p.stop()
	out, err := dedupd(t, "", append(snapshot, "--json")...)
	var report chunkstore.SnapshotReport
	if jsonErr := json.Unmarshal([]byte(out), &report); err != nil || jsonErr != nil || report.Packs != 1 || report.Chunks == 0 {
		t.Errorf("got %s (%v)", out, err)
	}
	args[3] = filepath.Join(t.TempDir(), "other")
	p = startServer(t, append(args, "--key-files", "none")...)
	if got := p.get(t, "/log/x.drv"); got != log {
		t.Errorf("got %d bytes of a log, want %d", len(got), len(log))
	}
	p.stop()
	rebuild := append([]string{"index", "rebuild", "--from-snapshot"}, args...)
	if out, err := dedupd(t, "", rebuild...); err != nil || !strings.Contains(out, "1 packs came from snapshot "+report.ID) {
		t.Errorf("got %q, %v", out, err)
	}
}

// TestIndexRebuild rebuilds the index of a store whose state directory is gone.
func TestIndexRebuild(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	state := filepath.Join(t.TempDir(), "state")
	args := []string{"--bucket", "file://" + filepath.Join(t.TempDir(), "bucket"), "--state", state}
	rebuild := append([]string{"index", "rebuild"}, args...)
	log := strings.Repeat("a line of a log\n", 10_000)

	p := startServer(t, append(args, "--key-files", "none")...)
	p.put(t, "/log/x.drv", log)
	if out, err := dedupd(t, "", rebuild...); err == nil || !strings.Contains(err.Error(), "stop the server") {
		t.Errorf("beside a server: got %q, %v", out, err)
	}
	p.stop()
	if out, err := dedupd(t, "", rebuild...); err != nil || !strings.HasPrefix(out, "1 packs with ") {
		t.Errorf("got %q, %v", out, err)
	}
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	out, err := dedupd(t, "", append(rebuild, "--json")...)
	var report chunkstore.RebuildReport
	if jsonErr := json.Unmarshal([]byte(out), &report); err != nil || jsonErr != nil || report.Packs != 1 || report.Chunks == 0 {
		t.Errorf("got %s (%v)", out, err)
	}
	p = startServer(t, append(args, "--key-files", "none")...)
	if got := p.get(t, "/log/x.drv"); got != log {
		t.Errorf("got %d bytes of a log, want %d", len(got), len(log))
	}
	if out, err := dedupd(t, "", "index"); err == nil {
		t.Errorf("index without a command: got %q", out)
	}
}

func TestWriteProgress(t *testing.T) {
	var b bytes.Buffer
	writeProgress(&b, &chunkstore.RebuildProgress{Packs: 10, Total: 40, Chunks: 3000, Elapsed: 10 * time.Second})
	if got, want := b.String(), "\r10 of 40 packs, 300 chunks a second, 30s left \x1b[K"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
