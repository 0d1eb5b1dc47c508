package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
)

// defaultSocketMode lets the owner and the group of a Unix socket connect.
const defaultSocketMode = 0o660

// listen listens on addresses as the setting has them:
//
//	host:port
//	unix:/path              a Unix socket, of mode 0660
//	unix:/path?mode=0600
//	systemd                 all sockets that systemd has passed
func listen(ctx context.Context, addrs List) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, addr := range addrs {
		more, err := listenOn(ctx, addr)
		listeners = append(listeners, more...)
		if err != nil {
			closeAll(listeners)
			return nil, err
		}
	}
	return listeners, nil
}

// listenOn listens on one address. With an error, too, it may return listeners.
func listenOn(ctx context.Context, addr string) ([]net.Listener, error) {
	if addr == "systemd" {
		return activated()
	}
	path, mode, err := socketAddr(addr)
	if err != nil {
		return nil, err
	}
	var l net.Listener
	if path != "" {
		l, err = listenUnix(ctx, path, mode)
	} else {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

// socketAddr parses the address of a Unix socket. For others path is "".
func socketAddr(addr string) (path string, mode fs.FileMode, err error) {
	rest, ok := strings.CutPrefix(addr, "unix:")
	if !ok {
		return "", 0, nil
	}
	path, query, _ := strings.Cut(rest, "?")
	values, err := url.ParseQuery(query)
	if err != nil || !filepath.IsAbs(path) {
		return "", 0, fmt.Errorf("address %q is not unix:/path or unix:/path?mode=0660", addr)
	}
	mode = defaultSocketMode
	for name, v := range values {
		n, err := strconv.ParseUint(v[len(v)-1], 8, 9)
		if err != nil || name != "mode" {
			return "", 0, fmt.Errorf("address %q: only mode can be set, to three octal digits", addr)
		}
		mode = fs.FileMode(n)
	}
	return path, mode, nil
}

// listenUnix listens on a socket. One that nobody listens on any more is replaced.
func listenUnix(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		c, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			c.Close()
			return nil, fmt.Errorf("listen on %s: another process does", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// activated returns the sockets that systemd has passed, which are taken once.
func activated() ([]net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("sockets of systemd: %w", err)
	}
	var listeners []net.Listener
	for _, l := range passed {
		if l == nil {
			err = errors.New("sockets of systemd: one of them is no stream socket that listens")
			continue
		}
		listeners = append(listeners, l)
	}
	if len(passed) == 0 {
		err = errors.New("sockets of systemd: there are none; start the .socket unit, not only the .service")
	}
	return listeners, err
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close() // again, if they were served
	}
}

// socketPath is where a running server answers stats and check.
func socketPath(state string) string { return filepath.Join(state, "dedupd.sock") }

// listenAdmin listens where only this user can connect. The state directory is locked,
// so that a socket that is there is an earlier server's.
func listenAdmin(state string) (net.Listener, error) {
	path := socketPath(state)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
