package faultfs

import (
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const childEnv = "DEDUPD_FAULTFS_MOUNT"

// Child makes this process the file system's, if that is what it was started for, and then
// never returns.
func Child() {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return
	}
	if err := serve(dir); err != nil {
		fmt.Fprintln(os.Stderr, "faultfs:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve serves the file system at dir to the kernel, and commands to the process that
// started this one, until that one ends.
func serve(dir string) error {
	f := newFS()
	server, err := fuse.NewServer(f, dir, &fuse.MountOptions{
		FsName: "faultfs", Name: "faultfs", DirectMount: true, MaxWrite: 1 << 20, DisableXAttrs: true,
		DisableReadDirPlus: true, ExplicitDataCacheControl: true, MaxBackground: 64,
	})
	if err != nil {
		return fmt.Errorf("mount at %s: %w", dir, err)
	}
	go server.Serve() // until this process ends
	if err := server.WaitMount(); err != nil {
		return fmt.Errorf("mount at %s: %w", dir, err)
	}
	commands := rpc.NewServer()
	if err := commands.RegisterName("FS", &Commands{f}); err != nil {
		return err
	}
	commands.ServeConn(pipes{os.Stdin, os.Stdout}) // until stdin ends
	// Whatever is still open is cut off.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return server.Unmount() // not root: by fusermount
	}
	return nil
}

// pipes are a connection to the other process.
type pipes struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipes) Close() error { return errors.Join(p.ReadCloser.Close(), p.WriteCloser.Close()) }

// Commands is what the other process may ask for; it is exported for net/rpc only.
type Commands struct{ fs *fs }

// Request is the argument of every command.
type Request struct {
	Volume string
	Plan   Plan
	At     uint64
	To     string
	Cut    bool
	Seed   uint64
}

// Reply is the result of every command.
type Reply struct {
	Ops   uint64
	Trace []string
	Cut   CutReport
}

// New makes a volume.
func (c *Commands) New(r *Request, _ *Reply) error {
	c.fs.mu.Lock()
	defer c.fs.mu.Unlock()
	c.fs.add(r.Volume, newVolume())
	return nil
}

// Drop forgets a volume.
func (c *Commands) Drop(r *Request, _ *Reply) error {
	c.fs.drop(r.Volume)
	return nil
}

// Plan sets a volume's plan.
func (c *Commands) Plan(r *Request, _ *Reply) error {
	return c.volume(r.Volume, func(v *volume) error {
		v.setPlan(r.Plan)
		return nil
	})
}

// Ops says what has been done in a volume.
func (c *Commands) Ops(r *Request, reply *Reply) error {
	return c.volume(r.Volume, func(v *volume) error {
		reply.Ops = v.ops
		if r.At != 0 && r.At <= uint64(len(v.trace)) {
			reply.Trace = v.trace[r.At-1 : r.At]
		}
		return nil
	})
}

// Copy makes a volume from a snapshot of another, or from what it is now.
func (c *Commands) Copy(r *Request, reply *Reply) error {
	return c.volume(r.Volume, func(v *volume) error {
		if r.At != 0 {
			if v = v.snapshots[r.At]; v == nil {
				return fmt.Errorf("there is no snapshot before operation %d", r.At)
			}
		}
		if r.Cut {
			v, reply.Cut = v.cut(r.Seed)
		} else {
			v = v.clone()
		}
		v.ops, v.trace = 0, nil
		c.fs.add(r.To, v)
		return nil
	})
}

func (c *Commands) volume(name string, fn func(*volume) error) error {
	c.fs.mu.Lock()
	defer c.fs.mu.Unlock()
	v := c.fs.volumes[name]
	if v == nil {
		return fmt.Errorf("there is no volume %s, only %s", name, strings.Join(c.fs.names(), " "))
	}
	return fn(v)
}
