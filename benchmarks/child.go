package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A child is a server that this program started and waits for.
type child struct {
	url  string
	cmd  *exec.Cmd
	log  string        // file with what it printed
	quit os.Signal     // ends it gracefully
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// startChild starts cmd, which listens on addr, and returns when it answers a GET of probe.
func startChild(ctx context.Context, cmd *exec.Cmd, addr, probe, log string, quit os.Signal) (*child, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	// Should this program be killed, its servers go too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{url: "http://" + addr, cmd: cmd, log: log, quit: quit, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	if err := c.waitReady(ctx, probe); err != nil {
		c.kill()
		return nil, err
	}
	return c, nil
}

func (c *child) waitReady(ctx context.Context, probe string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, "GET", c.url+probe, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-c.done:
			return c.failed("start")
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", filepath.Base(c.cmd.Path), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// failed is the error of a child that ended, with the last of what it printed.
func (c *child) failed(operation string) error {
	text, _ := os.ReadFile(c.log)
	return fmt.Errorf("%s %s: %v\n%s", operation, filepath.Base(c.cmd.Path), c.err, text[max(0, len(text)-2000):])
}

// stop ends the child gracefully and returns the CPU time that it took in all, its own
// children included.
func (c *child) stop() (time.Duration, error) {
	c.cmd.Process.Signal(c.quit)
	select {
	case <-c.done:
	case <-time.After(2 * time.Minute):
		c.kill()
		return 0, fmt.Errorf("%s does not end", filepath.Base(c.cmd.Path))
	}
	if c.err != nil {
		return 0, c.failed("stop")
	}
	return c.cmd.ProcessState.UserTime() + c.cmd.ProcessState.SystemTime(), nil
}

// kill ends the child if it still runs, and its own children with it: nginx's workers
// outlive their master.
func (c *child) kill() {
	syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	<-c.done
}

// cpu returns the CPU time that the process took so far, from its CPU clock: unlike
// /proc/PID/stat it does not count in hundredths of a second.
func (c *child) cpu() (time.Duration, error) { return cpuOfProcess(c.cmd.Process.Pid) }

func cpuOfProcess(pid int) (time.Duration, error) {
	// clock_getcpuclockid(3): the complement of the PID, and CPUCLOCK_SCHED.
	clock := int32(^pid)<<3 | 2
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// groupCPU is cpu with the processes that the child has started itself: nginx's workers.
func (c *child) groupCPU() (total time.Duration, err error) {
	pid := c.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0, err
	}
	for _, text := range append(strings.Fields(string(children)), strconv.Itoa(pid)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return 0, err
		}
		spent, err := cpuOfProcess(pid)
		if err != nil {
			return 0, err
		}
		total += spent
	}
	return total, nil
}

// settled waits until the process does next to nothing, and returns its CPU time then.
func (c *child) settled(ctx context.Context) (time.Duration, error) {
	last, err := c.cpu()
	for err == nil {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
		var now time.Duration
		if now, err = c.cpu(); now-last < 2*time.Millisecond {
			return now, err
		}
		last = now
	}
	return 0, err
}

// buildServer builds dedupd into dir and returns the binary's name.
func buildServer(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "dedupd")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/dedupd/dedupd/cmd/dedupd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build dedupd: %w\n%s", err, out)
	}
	return binary, nil
}

// A repository is where a dedupd keeps its data: bucket, state and log of one name.
type repository struct {
	bucket, state, home, log string
	url                      string // of the bucket, if that is not the directory
}

func (b *bench) repository(name string) repository {
	dir := filepath.Join(b.work, name)
	return repository{
		bucket: filepath.Join(dir, "bucket"), state: filepath.Join(dir, "state"),
		home: filepath.Join(dir, "home"), log: filepath.Join(dir, "log"),
	}
}

// serveRepository starts dedupd on the repository, with its access log in the repository's log.
func (b *bench) serveRepository(ctx context.Context, r repository, splitter string) (*child, error) {
	for _, dir := range []string{r.bucket, r.state, r.home} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	args := append([]string{"serve", "--listen", addr, "--splitter", splitter}, strings.Fields(b.serveFlags)...)
	// Not the context's to kill: stop does, gracefully.
	cmd := b.command(context.WithoutCancel(ctx), r, args...)
	return startChild(ctx, cmd, addr, "/nix-cache-info", r.log, syscall.SIGTERM)
}

// command is dedupd with the given arguments, on the repository.
func (b *bench) command(ctx context.Context, r repository, args ...string) *exec.Cmd {
	line := append(slices.Clone(b.launcher), b.dedupd)
	line = append(line, args...)
	line = append(line, "--bucket", cmp.Or(r.url, "file://"+r.bucket), "--state", r.state)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	// Settings in the environment are the operator's, not the benchmark's.
	environ := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "DEDUPD_") })
	cmd.Env = append(environ, "HOME="+r.home, "XDG_DATA_HOME="+r.home)
	return cmd
}

// restart stops c, which seals and uploads what is in the spool, and starts it again.
func (b *bench) restart(ctx context.Context, c *child, r repository, splitter string) (*child, error) {
	if _, err := c.stop(); err != nil {
		return nil, err
	}
	return b.serveRepository(ctx, r, splitter)
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

const nginxConfig = `
daemon off;
worker_processes auto;
%[1]s
pid %[2]s/nginx.pid;
error_log %[2]s/nginx.error;
events { worker_connections 1024; }
http {
    access_log %[2]s/nginx.access;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    client_body_temp_path %[2]s/nginx.tmp;
    proxy_temp_path %[2]s/nginx.tmp;
    fastcgi_temp_path %[2]s/nginx.tmp;
    uwsgi_temp_path %[2]s/nginx.tmp;
    scgi_temp_path %[2]s/nginx.tmp;
    server {
        listen %[3]s;
        root %[4]s;
    }
}
`

// startNginx serves the files below root, with sendfile and an access log.
func (b *bench) startNginx(ctx context.Context, root string) (*child, error) {
	binary, err := exec.LookPath("nginx")
	if err != nil {
		// Debian has it where only root looks.
		if binary, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			return nil, errors.New("nginx is not installed: run scripts/with-deps")
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // workers must read the temporary directory
	}
	config := filepath.Join(b.work, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, user, b.work, addr, root), 0o644); err != nil {
		return nil, err
	}
	log := filepath.Join(b.work, "nginx.log")
	return startChild(ctx, exec.Command(binary, "-c", config, "-e", log), addr, "/nix-cache-info", log, syscall.SIGQUIT)
}
