package faultfs

import (
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
)

// FS is a mounted file system. Its methods and those of its volumes may be called
// concurrently.
type FS struct {
	dir    string
	cmd    *exec.Cmd
	stdin  io.Closer
	client *rpc.Client
	last   atomic.Uint64
}

// Mount starts the file system for a test, which is skipped, or fails if CI=true, where
// there is no FUSE. It is unmounted when the test ends.
func Mount(t testing.TB) *FS {
	t.Helper()
	f, err := Start(t.TempDir())
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("needs FUSE: %v", err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// Start mounts a file system at dir, which must be an empty directory.
func Start(dir string) (*FS, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	f := &FS{dir: dir, cmd: cmd, stdin: stdin, client: rpc.NewClient(pipes{stdout, stdin})}
	if _, err := f.NewVolume(); err != nil { // it serves commands once it is mounted
		f.Close()
		return nil, fmt.Errorf("start file system: %w", err)
	}
	return f, nil
}

// Close unmounts the file system. What is open in it is of no more use.
func (f *FS) Close() error {
	// The process ends when its input does.
	err := f.client.Close()
	return errors.Join(err, f.cmd.Wait())
}

func (f *FS) call(command string, r Request) (reply Reply, err error) {
	if err = f.client.Call("FS."+command, &r, &reply); err != nil {
		err = fmt.Errorf("faultfs: %s: %w", command, err)
	}
	return reply, err
}

func (f *FS) newName() string { return "v" + strconv.FormatUint(f.last.Add(1), 10) }

// NewVolume makes an empty volume, whose plan is to work.
func (f *FS) NewVolume() (*Volume, error) {
	v := &Volume{f, f.newName()}
	_, err := f.call("New", Request{Volume: v.name})
	return v, err
}

// A Volume is a directory of the file system, with operations counted, and a plan, of its own.
type Volume struct {
	fs   *FS
	name string
}

// Path is where the volume's files are.
func (v *Volume) Path() string { return filepath.Join(v.fs.dir, v.name) }

// SetPlan says what is to happen from now on. It forgets the snapshots of the plan before.
func (v *Volume) SetPlan(p Plan) error {
	_, err := v.fs.call("Plan", Request{Volume: v.name, Plan: p})
	return err
}

// Ops returns how many operations there have been.
func (v *Volume) Ops() (uint64, error) {
	r, err := v.fs.call("Ops", Request{Volume: v.name})
	return r.Ops, err
}

// Describe says what operation n was.
func (v *Volume) Describe(n uint64) string {
	r, err := v.fs.call("Ops", Request{Volume: v.name, At: n})
	if err != nil || len(r.Trace) == 0 {
		return "unknown"
	}
	return r.Trace[0]
}

// Copy makes a volume from the snapshot before operation at, or from what the volume is now
// if that is 0: as it is after everybody who used it was killed.
func (v *Volume) Copy(at uint64) (*Volume, error) {
	to := &Volume{v.fs, v.fs.newName()}
	_, err := v.fs.call("Copy", Request{Volume: v.name, At: at, To: to.name})
	return to, err
}

// Cut is Copy after a power cut. The seed decides what of the changes that were not synced
// is lost.
func (v *Volume) Cut(at, seed uint64) (*Volume, CutReport, error) {
	to := &Volume{v.fs, v.fs.newName()}
	r, err := v.fs.call("Copy", Request{Volume: v.name, At: at, To: to.name, Cut: true, Seed: seed})
	return to, r.Cut, err
}

// Drop forgets the volume. Nothing may be open in it.
func (v *Volume) Drop() error {
	_, err := v.fs.call("Drop", Request{Volume: v.name})
	return err
}
