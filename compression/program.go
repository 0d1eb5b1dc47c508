package compression

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/mikelolasagasti/xz"
	"golang.org/x/sync/semaphore"
)

// A Program decodes xz in processes of the program of that name. Its library, liblzma, is
// half as fast again as the decoder in Go, and what goes wrong in it, whoever made the
// file, goes wrong in a process that has two pipes and nothing else. It may be used concurrently.
type Program struct {
	path      string
	min       int // size of a file below which a process is not worth it, at most bufferSize
	processes *semaphore.Weighted
}

// ErrProgram is wrapped when xz has failed, and not because of its input.
var ErrProgram = errors.New("xz has failed")

// FindProgram looks for xz, of which it will run so many processes at a time. It must be
// that of XZ Utils: busybox has another one, which knows no limits.
func FindProgram(ctx context.Context, processes int) (*Program, error) {
	path, err := exec.LookPath("xz")
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, path, "--robot", "--version").Output()
	if err != nil || !bytes.HasPrefix(out, []byte("XZ_VERSION=")) {
		return nil, fmt.Errorf("%s is not that of XZ Utils: %w", path, errors.Join(err, errors.ErrUnsupported))
	}
	return &Program{path, programMin, semaphore.NewWeighted(int64(processes))}, nil
}

// programMin is the size from which on a process, whose start takes 2 to 3 ms of CPU, saves more than
// that. From 16 to 64 KiB all values do as well.
const programMin = 32 << 10

// openProgram has a process decode a file. It says false if the file is small, or as many
// run as may: nobody waits for a slot that he can do without, since a slow client may have it.
func (d *decoder) openProgram(p *Program, limit int64) (bool, error) {
	if p == nil {
		return false, nil
	}
	if _, err := d.buf.Peek(p.min); err != nil || !p.processes.TryAcquire(1) {
		return false, nil
	}
	r, err := p.start(d.buf, limit)
	if err != nil {
		return false, err
	}
	d.r = r
	return true, nil
}

// start starts a process that decodes r.
func (p *Program) start(r io.Reader, limit int64) (_ *process, err error) {
	defer func() {
		if err != nil {
			p.processes.Release(1)
		}
	}()
	cmd := exec.Command(p.path, "--decompress", "--stdout", "--format=xz", "--threads=1", fmt.Sprintf("--memlimit-decompress=%d", limit))
	cmd.Env = append(os.Environ(), "LC_ALL=C", "XZ_DEFAULTS=", "XZ_OPT=")
	// What the terminal sends is for us: who shuts down lets running uploads end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	x := &process{program: p, cmd: cmd}
	cmd.Stdin, cmd.Stderr = r, &x.stderr
	if x.stdout, err = cmd.StdoutPipe(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProgram, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProgram, err)
	}
	return x, nil
}

// A process is a running xz. It ends when its input does, when it is closed, and, since both
// its pipes break then, when this process does.
type process struct {
	program *Program
	cmd     *exec.Cmd
	stdout  io.Reader
	stderr  head
	done    bool
}

// Read returns io.EOF when the process has ended well, and has read all of its input.
func (x *process) Read(b []byte) (int, error) {
	n, err := x.stdout.Read(b)
	if err != nil {
		if failed := x.wait(); failed != nil {
			err = failed
		}
	}
	return n, err
}

// wait waits for the end of the process, and of whoever feeds it. The errors are those that
// the library in Go has.
func (x *process) wait() error {
	if x.done {
		return nil
	}
	x.done = true
	err := x.cmd.Wait()
	x.program.processes.Release(1)
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(x.stderr))
	for _, m := range messages {
		if strings.Contains(text, m.text) {
			return m.err
		}
	}
	return fmt.Errorf("%w: %w: %s", ErrProgram, err, text)
}

// messages are what xz says of its input (src/xz/message.c, message_strm).
var messages = []struct {
	text string
	err  error
}{
	{"Memory usage limit reached", xz.ErrMemlimit},
	{"File format not recognized", xz.ErrFormat},
	{"Unsupported options", xz.ErrOptions},
	{"Unsupported type of integrity check", xz.ErrUnsupportedCheck},
	{"Compressed data is corrupt", xz.ErrData},
	{"Unexpected end of input", xz.ErrBuf},
}

// close ends the process. It waits for a read of its input that has begun.
func (x *process) close() {
	if !x.done {
		x.cmd.Process.Kill()
		x.wait()
	}
}

// A head keeps the beginning of what is written to it.
type head []byte

func (h *head) Write(b []byte) (int, error) {
	*h = append(*h, b[:min(len(b), 1024-len(*h))]...)
	return len(b), nil
}
