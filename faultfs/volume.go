package faultfs

import (
	"fmt"
	"math/rand/v2"
	"syscall"
)

// Kind is what an operation does.
type Kind uint8

// The operations that are counted: those that change something, and syncs.
const (
	Create Kind = iota
	Mkdir
	Write
	Truncate
	Link
	Rename
	Remove
	Sync
	SyncDir
)

func (k Kind) String() string {
	return [...]string{"create", "mkdir", "write", "truncate", "link", "rename", "remove", "sync", "syncdir"}[k]
}

// allocates says whether the operation takes space on disk.
func (k Kind) allocates() bool { return k <= Link }

// Fault says that operations of a volume fail. Operations are counted from 1.
type Fault struct {
	At    uint64        // the first that fails
	Count uint64        // of the operations from At on; 0 means one
	Errno syscall.Errno // with ENOSPC only At itself, and what takes space, fails
	Short bool          // if At is a write it writes half of its bytes; without Errno nothing else happens
}

// Plan says what is to happen in a volume. The zero Plan is a disk that works.
type Plan struct {
	Faults    []Fault
	Snapshots []uint64 // numbers of operations before which the volume is kept, for Copy
	// Freeze is the number of the operation before which the machine stops: it and all that
	// follow fail with EIO, and change nothing.
	Freeze uint64
	// Kill is the number of the operation whose process is killed; it does nothing.
	Kill uint64
	Seed uint64 // of what failed syncs leave, and of how much of a write is done when a machine stops
}

// A volume is a directory at the root of the file system, with faults of its own.
type volume struct {
	root      *node
	ops       uint64
	plan      Plan
	want      map[uint64]bool // snapshots
	snapshots map[uint64]*volume
	trace     []string // what the operations were
}

// maxTrace bounds the operations whose kind is remembered.
const maxTrace = 1 << 16

func newVolume() *volume {
	v := &volume{}
	v.root = v.newNode(true, 0o755)
	return v
}

func (v *volume) setPlan(p Plan) {
	v.plan, v.want, v.snapshots = p, map[uint64]bool{}, map[uint64]*volume{}
	for _, n := range p.Snapshots {
		v.want[n] = true
	}
}

func (v *volume) clone() *volume { return v.cloneBefore(operation{}) }

// cloneBefore copies the volume as a machine leaves it that stops in the middle of o: with
// some of the bytes of a write.
func (v *volume) cloneBefore(o operation) *volume {
	c, done := &volume{ops: v.ops, trace: v.trace}, map[*node]*node{}
	c.root = v.root.clone(c, done)
	if n := done[o.node]; n != nil {
		v.part(o).apply(n)
	}
	return c
}

// part returns what is done of o when it is interrupted: some of a write, and else nothing.
func (v *volume) part(o operation) operation {
	if o.kind != Write {
		return operation{kind: Write}
	}
	rng := rand.New(rand.NewPCG(v.plan.Seed, v.ops))
	o.write.data = o.write.data[:rng.IntN(len(o.write.data)+1)]
	return o
}

// cut returns the volume as it is found after a power cut.
func (v *volume) cut(seed uint64) (*volume, CutReport) {
	c := newCutter(seed, v.root.unsynced(map[*node]bool{}))
	after := &volume{}
	after.root = v.root.cut(after, c, map[*node]*node{})
	return after, c.CutReport
}

// An operation is about to be done.
type operation struct {
	kind   Kind
	node   *node  // that is changed or synced
	name   string // of what, for the trace
	caller uint32 // process
	write  write  // if the kind is Write or Truncate
	change rename // if it changes a directory
}

func (o operation) apply(n *node) {
	switch {
	case o.kind == Sync || o.kind == SyncDir:
		n.sync()
	case o.change != nil:
		n.rename(o.change)
	case len(o.write.data) > 0 || o.kind == Truncate:
		n.write(o.write)
	}
}

// do counts the operation and does it, unless the plan says otherwise. It returns how many
// bytes of a write were written.
func (v *volume) do(o operation) (int, syscall.Errno) {
	v.ops++
	if len(v.trace) < maxTrace {
		v.trace = append(v.trace, fmt.Sprintf("%v %s", o.kind, o.name))
	}
	if v.want[v.ops] {
		v.snapshots[v.ops] = v.cloneBefore(o)
	}
	switch {
	case v.plan.Freeze != 0 && v.ops > v.plan.Freeze:
		return 0, syscall.EIO
	case v.ops == v.plan.Freeze:
		v.part(o).apply(o.node)
		return 0, syscall.EIO
	case v.ops == v.plan.Kill:
		v.part(o).apply(o.node)
		syscall.Kill(int(o.caller), syscall.SIGKILL)
		return 0, syscall.EIO
	}
	for _, f := range v.plan.Faults {
		if v.ops < f.At || v.ops >= f.At+max(1, f.Count) || f.Errno == syscall.ENOSPC && v.ops > f.At && !o.kind.allocates() {
			continue
		}
		if f.Short && (f.Errno == 0 || v.ops == f.At && o.kind == Write) {
			if o.kind == Write && len(o.write.data) > 1 {
				o.write.data = o.write.data[:len(o.write.data)/2]
			}
			break
		}
		if o.kind == Sync {
			o.node.syncFails(newCutter(v.plan.Seed+v.ops, len(o.node.writes)))
		}
		return 0, f.Errno
	}
	o.apply(o.node)
	return len(o.write.data), 0
}
