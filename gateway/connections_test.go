package gateway_test

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/gateway"
)

// TestMaxConnections opens more connections than there may be: those that are idle for
// longest go, and one that has a request stays.
func TestMaxConnections(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.MaxConnections = 8 })
	busy, busyReader := s.dial("PUT /log/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	if line, err := busyReader.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatalf("got %q (%v), want 100", line, err)
	}
	const get = "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n"
	used, usedReader := s.dial(get)
	wantAnswer(t, usedReader)
	var silent []net.Conn
	for range 20 {
		c, _ := s.dial("")
		silent = append(silent, c)
	}
	for _, c := range append(silent[:12:12], used) {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if b, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("idle for longest: got %q (%v), want the end", b, err)
		}
	}
	// A newcomer is served, and who has a request still has it.
	_, r := s.dial(get)
	wantAnswer(t, r)
	if _, err := io.WriteString(busy, "ok"); err != nil {
		t.Fatal(err)
	}
	busyReader.ReadString('\n') // the empty line after the 100
	wantAnswer(t, busyReader)
}

// wantAnswer reads a response with status 200, but not its body.
func wantAnswer(t *testing.T, r *bufio.Reader) {
	t.Helper()
	for first := true; ; first = false {
		line, err := r.ReadString('\n')
		if err != nil || first && !strings.HasPrefix(line, "HTTP/1.1 200") {
			t.Fatalf("got %q (%v), want 200", line, err)
		}
		if line == "\r\n" {
			return
		}
	}
}
