//go:build linux

package faultfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A Disk makes an Image a file that programs can use, and the ext4 on it a directory.
// One goroutine may use it.
//
//	the directory of the Disk: a FUSE mount
//	  image                    the file, a loop device's backing with direct I/O
//	Mount's directory          the ext4 on that loop device
//
// No page of the file is in the cache of the system: what the Image is told is what a
// disk would be told, when it would be.
type Disk struct {
	dir     string
	server  *fuse.Server
	mounted string // where the ext4 is, "" if it is not
}

const diskFile = "image"

// DiskNeeds returns an error that says what is missing here to use a Disk.
func DiskNeeds() error {
	if os.Geteuid() != 0 {
		return errors.New("must be root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			return err
		}
	}
	for _, tool := range []string{"losetup", "mount", "umount", "mkfs.ext4", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	return nil
}

// Serve makes m a file below dir, an empty directory, until Close.
func Serve(m *Image, dir string) (*Disk, error) {
	root := &fusefs.Inode{}
	opts := &fusefs.Options{
		MountOptions: fuse.MountOptions{
			DirectMountStrict: true, MaxWrite: 1 << 20, FsName: "faultfs", Name: "faultfs",
			Logger: log.New(io.Discard, "", 0),
		},
		OnAdd: func(ctx context.Context) {
			root.AddChild(diskFile, root.NewPersistentInode(ctx, &imageNode{image: m}, fusefs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
	}
	server, err := fusefs.Mount(dir, root, opts)
	if err != nil {
		return nil, fmt.Errorf("serve image: %w", err)
	}
	return &Disk{dir: dir, server: server}, nil
}

// File is the path of the file.
func (d *Disk) File() string { return filepath.Join(d.dir, diskFile) }

// Format makes an ext4 on the disk; options are those of mkfs.ext4.
func (d *Disk) Format(options ...string) error {
	// Nothing is left for the kernel to initialize later, and nothing is discarded.
	args := append([]string{"-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, options...)
	_, err := command("mkfs.ext4", append(args, d.File())...)
	return err
}

// Check has an ext4 that is not mounted checked. One that was mounted and unmounted
// since the power was cut must be without errors.
func (d *Disk) Check() error {
	_, err := command("e2fsck", "-f", "-n", d.File())
	return err
}

// Mount mounts the ext4 at dir, an empty directory.
func (d *Disk) Mount(dir string, options ...string) error {
	loop, err := command("losetup", "--find", "--show", "--direct-io=on", d.File())
	if err != nil {
		return err
	}
	loop = strings.TrimSpace(loop)
	// Without direct I/O the pages would be in a cache where no flush is seen.
	direct, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(loop), "loop/dio"))
	if err == nil && strings.TrimSpace(string(direct)) != "1" {
		err = fmt.Errorf("%s does not use direct I/O", loop)
	}
	if err == nil {
		_, err = command("mount", append([]string{"-t", "ext4", loop, dir}, options...)...)
	}
	if err == nil {
		d.mounted = dir
	}
	// When it is in use, it is detached as soon as that ends: by whatever unmounts it.
	_, detachErr := command("losetup", "--detach", loop)
	return errors.Join(err, detachErr)
}

// WriteBack has the kernel write some files of the ext4 to the disk, without a flush and
// without what the journal has of them: as it may do at any time, and does when memory
// is short.
func (d *Disk) WriteBack(random *rand.Rand) error {
	return filepath.WalkDir(d.mounted, func(path string, e iofs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || random.IntN(2) > 0 {
			return ignoreAbsent(err)
		}
		f, err := os.Open(path)
		if err != nil {
			return ignoreAbsent(err)
		}
		defer f.Close()
		return unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	})
}

func ignoreAbsent(err error) error {
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
}

// Unmount unmounts the ext4 and detaches the loop device. Nobody may be using a file.
func (d *Disk) Unmount() error {
	if d.mounted == "" {
		return nil
	}
	err := retry(func() error { return syscall.Unmount(d.mounted, 0) })
	if err != nil {
		err = errors.Join(fmt.Errorf("unmount %s: %w", d.mounted, err), syscall.Unmount(d.mounted, syscall.MNT_DETACH))
	}
	d.mounted = ""
	return err
}

// Close ends everything that is mounted; again without effect. The Image stays.
func (d *Disk) Close() error {
	if d.server == nil {
		return nil
	}
	server := d.server
	d.server = nil
	err := d.Unmount()
	// The kernel detaches the loop device a little after its last user is gone.
	if unmountErr := retry(func() error { return syscall.Unmount(d.dir, 0) }); unmountErr != nil {
		err = errors.Join(err, fmt.Errorf("unmount %s: %w", d.dir, unmountErr), syscall.Unmount(d.dir, syscall.MNT_DETACH))
		return err // the server ends when its last user does
	}
	server.Wait()
	return err
}

// retry calls unmount until it does not say that somebody is there, for ten seconds.
func retry(unmount func() error) (err error) {
	for wait := time.Millisecond; wait < 10*time.Second; wait = wait * 3 / 2 {
		if err = unmount(); !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(min(wait, 100*time.Millisecond))
	}
	return err
}

// command runs a program, and returns what it printed.
func command(name string, args ...string) (string, error) {
	var stdout, stderr strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// An imageNode is the file.
type imageNode struct {
	fusefs.Inode
	image *Image
}

var (
	_ fusefs.NodeGetattrer = (*imageNode)(nil)
	_ fusefs.NodeSetattrer = (*imageNode)(nil)
	_ fusefs.NodeOpener    = (*imageNode)(nil)
	_ fusefs.NodeReader    = (*imageNode)(nil)
	_ fusefs.NodeWriter    = (*imageNode)(nil)
	_ fusefs.NodeFsyncer   = (*imageNode)(nil)
	_ fusefs.NodeAllocater = (*imageNode)(nil)
)

func (n *imageNode) Getattr(_ context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = 0o600, uint64(n.image.Size()), pageSize
	return 0
}

// Setattr changes nothing: a disk has neither another size nor times.
func (n *imageNode) Setattr(ctx context.Context, f fusefs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return n.Getattr(ctx, f, out)
}

func (n *imageNode) Open(context.Context, uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (n *imageNode) Read(_ context.Context, _ fusefs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= n.image.Size() {
		return fuse.ReadResultData(nil), 0
	}
	p = p[:min(int64(len(p)), n.image.Size()-off)]
	_, err := n.image.ReadAt(p, off)
	return fuse.ReadResultData(p), errno(err)
}

func (n *imageNode) Write(_ context.Context, _ fusefs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	written, err := n.image.WriteAt(p, off)
	return uint32(written), errno(err)
}

// Fsync is what loop devices make of flushes, and of writes that must be flushed.
func (n *imageNode) Fsync(context.Context, fusefs.FileHandle, uint32) syscall.Errno {
	return errno(n.image.Flush())
}

// Allocate is what loop devices make of discards.
func (n *imageNode) Allocate(context.Context, fusefs.FileHandle, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

func errno(err error) syscall.Errno {
	var e syscall.Errno
	if err == nil || errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}
