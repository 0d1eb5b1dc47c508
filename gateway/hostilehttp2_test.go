package gateway_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/access/accesstest"
	"github.com/dedupd/dedupd/chunkstore"
)

// Frames of HTTP/2 (RFC 9113, section 6).
const (
	frameHeaders      = 1
	frameReset        = 3
	frameSettings     = 4
	framePing         = 6
	frameContinuation = 9

	flagEndStream  = 1
	flagEndHeaders = 4
)

func http2Frame(typ, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(typ))
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// http2Get is the header of a GET of path, in HPACK (RFC 7541) without compression.
func http2Get(path string) []byte {
	b := []byte{0x82, 0x87, 0x41, 1, 'x', 0x44, byte(len(path))} // GET, https, :authority, :path
	return append(b, path...)
}

// TestHostileHTTP2 sends frames as no client does. Whatever becomes of the connection,
// others are served, and nothing of it stays.
func TestHostileHTTP2(t *testing.T) {
	ca := accesstest.NewAuthority(t)
	s := startTLS(t, ca, chunkstore.Limits{})
	f := newFixture(t, 1, 1<<20)
	s.client = tlsClient(ca)
	s.upload(f)
	const endless = 64 << 20 // bytes
	for _, attack := range []struct {
		name string
		next func(i int) []byte
		max  int // bytes that the server takes at most, 0 for all
	}{
		{"rapid reset", func(i int) []byte {
			stream := uint32(2*i + 1)
			b := http2Frame(frameHeaders, flagEndHeaders|flagEndStream, stream, http2Get(f.plainURL()))
			return append(b, http2Frame(frameReset, 0, stream, []byte{0, 0, 0, 8})...)
		}, 0},
		{"streams without an end", func(i int) []byte {
			return http2Frame(frameHeaders, flagEndHeaders, uint32(2*i+1), http2Get("/nix-cache-info"))
		}, endless / 2},
		{"continuation", func(i int) []byte {
			if i == 0 {
				return http2Frame(frameHeaders, 0, 1, http2Get("/nix-cache-info"))
			}
			return http2Frame(frameContinuation, 0, 1, append([]byte{0, 1, 'x', 0x7f, 0xe1, 0x7d}, bytes.Repeat([]byte{'y'}, 16<<10-256)...))
		}, endless / 2},
		{"settings", func(int) []byte { return http2Frame(frameSettings, 0, 0, nil) }, 0},
		{"pings", func(int) []byte { return http2Frame(framePing, 0, 0, make([]byte, 8)) }, 0},
		{"frames of no known type", func(i int) []byte { return http2Frame(200, 0, uint32(i), make([]byte, 1000)) }, 0},
	} {
		t.Run(attack.name, func(t *testing.T) {
			s.client.CloseIdleConnections()
			before := runtime.NumGoroutine()
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", s.host, &tls.Config{RootCAs: ca.Pool, NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			sent, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+string(http2Frame(frameSettings, 0, 0, nil)))
			for i := 0; i < 20_000 && sent < endless && err == nil; i++ {
				var n int
				n, err = c.Write(attack.next(i)) // and reads nothing
				sent += n
			}
			t.Logf("sent %d KiB, then %v", sent>>10, err)
			if attack.max > 0 && sent > attack.max {
				t.Errorf("the server has taken %d MiB", sent>>20)
			}
			if a := s.want(200, "GET", f.plainURL(), nil); !bytes.Equal(a.body, f.nar) {
				t.Errorf("another client got %d bytes", len(a.body))
			}
			c.Close()
			s.client.CloseIdleConnections()
			for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before+5; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
				}
			}
		})
	}
	if log := s.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("log:\n%.2000s", log)
	}
}
