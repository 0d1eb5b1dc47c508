package faultfs

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// fs serves the volumes to the kernel. One lock is enough: everything is in memory.
type fs struct {
	fuse.RawFileSystem
	server  *fuse.Server
	mu      sync.Mutex
	top     *node // the root, whose names are the volumes'; nobody changes it through the kernel
	volumes map[string]*volume
	nodes   map[uint64]*known
	last    uint64 // node ID
	handles map[uint64][]fuse.DirEntry
	handle  uint64
}

// known is a node that the kernel knows.
type known struct {
	*node
	lookups uint64
}

// keep is how long the kernel may remember names and attributes: only it changes them.
const keep = time.Hour

func newFS() *fs {
	f := &fs{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), top: newVolume().root, volumes: map[string]*volume{},
		nodes: map[uint64]*known{}, handles: map[uint64][]fuse.DirEntry{}, last: fuse.FUSE_ROOT_ID,
	}
	f.top.id = fuse.FUSE_ROOT_ID
	f.nodes[fuse.FUSE_ROOT_ID] = &known{f.top, 1}
	return f
}

func (f *fs) add(name string, v *volume) {
	f.volumes[name] = v
	f.top.names[name] = v.root
}

// Init is called before any request.
func (f *fs) Init(server *fuse.Server) { f.server = server }

// drop removes a volume, and has the kernel forget its files, which are kept until then.
func (f *fs) drop(name string) {
	f.mu.Lock()
	for _, k := range f.nodes { // the kernel may know them for long
		if k.vol == f.volumes[name] {
			k.data, k.disk, k.writes = content{}, content{}, nil
		}
	}
	delete(f.volumes, name)
	delete(f.top.names, name)
	f.mu.Unlock()
	f.server.EntryNotify(fuse.FUSE_ROOT_ID, name) // an error is that it does not know it
}

func (f *fs) attr(n *node, a *fuse.Attr) {
	*a = fuse.Attr{Ino: n.id, Size: uint64(n.data.size), Mode: n.mode | fuse.S_IFREG, Nlink: n.links, Blksize: pageSize}
	if n.dir {
		a.Mode = n.mode | fuse.S_IFDIR
	}
	for _, p := range n.data.pages {
		if p != nil {
			a.Blocks += pageSize / 512
		}
	}
	a.Owner = fuse.Owner{Uid: uint32(syscall.Getuid()), Gid: uint32(syscall.Getgid())}
}

// entry makes n known to the kernel.
func (f *fs) entry(n *node, out *fuse.EntryOut) {
	if n.id == 0 {
		f.last++
		n.id = f.last
	}
	k := f.nodes[n.id]
	if k == nil {
		k = &known{node: n}
		f.nodes[n.id] = k
	}
	k.lookups++
	out.NodeId, out.Generation = n.id, 1
	out.SetEntryTimeout(keep)
	out.SetAttrTimeout(keep)
	f.attr(n, &out.Attr)
}

func (f *fs) Forget(id, lookups uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.nodes[id]; k != nil && id != fuse.FUSE_ROOT_ID {
		if k.lookups -= min(k.lookups, lookups); k.lookups == 0 {
			delete(f.nodes, id)
		}
	}
}

func (f *fs) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[h.NodeId].names[name]
	if n == nil {
		return fuse.ENOENT
	}
	f.entry(n, out)
	return fuse.OK
}

func (f *fs) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attr(f.nodes[in.NodeId].node, &out.Attr)
	out.SetTimeout(keep)
	return fuse.OK
}

func (f *fs) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[in.NodeId].node
	if size, ok := in.GetSize(); ok {
		o := operation{kind: Truncate, node: n, name: n.name, caller: in.Pid, write: write{off: int64(size)}}
		if _, errno := n.vol.do(o); errno != 0 {
			return fuse.Status(errno)
		}
	}
	if mode, ok := in.GetMode(); ok {
		n.mode = mode & 0o7777
	}
	f.attr(n, &out.Attr)
	out.SetTimeout(keep)
	return fuse.OK
}

// add gives a node a name in dir, as the operation kind.
func (f *fs) addName(kind Kind, h *fuse.InHeader, name string, child *node) fuse.Status {
	dir := f.nodes[h.NodeId].node
	if dir == f.top {
		return fuse.EPERM
	}
	if dir.names[name] != nil {
		return fuse.Status(syscall.EEXIST)
	}
	_, errno := dir.vol.do(operation{kind: kind, node: dir, name: name, caller: h.Pid, change: rename{name: child}})
	return fuse.Status(errno)
}

func (f *fs) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	child := f.nodes[in.NodeId].vol.newNode(true, in.Mode&0o7777)
	if status := f.addName(Mkdir, &in.InHeader, name, child); status != fuse.OK {
		return status
	}
	f.entry(child, out)
	return fuse.OK
}

func (f *fs) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	child := f.nodes[in.NodeId].vol.newNode(false, in.Mode&0o7777)
	if status := f.addName(Create, &in.InHeader, name, child); status != fuse.OK {
		return status
	}
	f.entry(child, &out.EntryOut)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (f *fs) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	child := f.nodes[in.Oldnodeid].node
	if status := f.addName(Link, &in.InHeader, name, child); status != fuse.OK {
		return status
	}
	child.links++
	f.entry(child, out)
	return fuse.OK
}

func (f *fs) remove(h *fuse.InHeader, name string, dir bool) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	parent := f.nodes[h.NodeId].node
	child := parent.names[name]
	switch {
	case child == nil:
		return fuse.ENOENT
	case dir && len(child.names) > 0:
		return fuse.Status(syscall.ENOTEMPTY)
	}
	_, errno := parent.vol.do(operation{kind: Remove, node: parent, name: name, caller: h.Pid, change: rename{name: nil}})
	if errno == 0 {
		child.links--
	}
	return fuse.Status(errno)
}

func (f *fs) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h, name, false)
}

func (f *fs) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h, name, true)
}

// Rename works within one directory only, which is all that is needed here.
func (f *fs) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir := f.nodes[in.NodeId].node
	if in.NodeId != in.Newdir || in.Flags != 0 || dir == f.top {
		return fuse.EXDEV
	}
	moved := dir.names[from]
	if moved == nil {
		return fuse.ENOENT
	}
	if over := dir.names[to]; over != nil && over.dir && len(over.names) > 0 {
		return fuse.Status(syscall.ENOTEMPTY)
	}
	_, errno := dir.vol.do(operation{kind: Rename, node: dir, name: from + " " + to, caller: in.Pid, change: rename{from: nil, to: moved}})
	return fuse.Status(errno)
}

// Files are opened, closed, and looked at without asking: so the kernel understands ENOSYS,
// for good, and keeps what it has read.
func (f *fs) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }
func (f *fs) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status              { return fuse.ENOSYS }
func (f *fs) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status            { return fuse.ENOSYS }

func (f *fs) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[in.NodeId].data.read(buf, int64(in.Offset))
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *fs) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[in.NodeId].node
	o := operation{kind: Write, node: n, name: n.name, caller: in.Pid, write: write{int64(in.Offset), slices.Clone(data)}}
	written, errno := n.vol.do(o)
	return uint32(written), fuse.Status(errno)
}

func (f *fs) sync(kind Kind, in *fuse.FsyncIn) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[in.NodeId].node
	if n == f.top {
		return fuse.OK
	}
	_, errno := n.vol.do(operation{kind: kind, node: n, name: n.name, caller: in.Pid})
	return fuse.Status(errno)
}

func (f *fs) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status    { return f.sync(Sync, in) }
func (f *fs) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return f.sync(SyncDir, in) }

func (f *fs) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	var entries []fuse.DirEntry
	for name, n := range f.nodes[in.NodeId].names {
		mode := uint32(fuse.S_IFREG)
		if n.dir {
			mode = fuse.S_IFDIR
		}
		entries = append(entries, fuse.DirEntry{Name: name, Mode: mode, Ino: n.id})
	}
	slices.SortFunc(entries, func(a, b fuse.DirEntry) int { return cmp.Compare(a.Name, b.Name) })
	f.handle++
	f.handles[f.handle] = entries
	out.Fh = f.handle
	return fuse.OK
}

func (f *fs) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries := f.handles[in.Fh]
	for i := in.Offset; i < uint64(len(entries)) && out.AddDirEntry(entries[i]); i++ {
	}
	return fuse.OK
}

func (f *fs) ReleaseDir(in *fuse.ReleaseIn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.handles, in.Fh)
}

func (f *fs) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const blocks = 1 << 28 // a terabyte
	*out = fuse.StatfsOut{Blocks: blocks, Bfree: blocks, Bavail: blocks, Files: blocks, Ffree: blocks, Bsize: pageSize, Frsize: pageSize, NameLen: 255}
	return fuse.OK
}

func (f *fs) names() []string { return slices.Sorted(maps.Keys(f.volumes)) }
