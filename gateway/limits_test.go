package gateway_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/nar"
)

// putHead is the header of an upload that waits until it is told to go on.
func putHead(name string, size int) string {
	return fmt.Sprintf("PUT /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", name, size)
}

// TestTooLarge uploads more than is allowed: as the header says, and as the decoder finds.
func TestTooLarge(t *testing.T) {
	s := startLimited(t, chunkstore.Limits{MaxNAR: 100_000})
	f := newFixture(t, 1, 300_000)
	name := fileName(f.nar, "")
	c, r := s.dial(putHead(name, len(f.nar)))
	if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 413") {
		t.Errorf("got %q (%v), want 413 before the body", line, err)
	}
	c.Close()
	s.want(404, "GET", "/"+name, nil)

	zeros := zeroNAR(t, 10<<20)
	bomb := zstdEncode(t, zeros)
	s.want(413, "PUT", "/"+fileName(bomb, ".zst"), bomb)
	if _, err := s.store.Object(t.Context(), sha256.Sum256(zeros)); !errors.Is(err, chunkstore.ErrNotFound) {
		t.Errorf("something stayed of a NAR that was refused: %v", err)
	}
}

// zeroNAR returns the NAR of a file of size zeros.
func zeroNAR(t *testing.T, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(size)}), write(w, make([]byte, size)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// TestNoSpace uploads to a disk that never has as much room as is wanted. The client is
// told so before it sends anything; narinfos and reads go on.
func TestNoSpace(t *testing.T) {
	s := startLimited(t, chunkstore.Limits{MinFree: 1 << 60, SpaceTimeout: 10 * time.Millisecond})
	f := newFixture(t, 1, 1000)
	c, r := s.dial(putHead(fileName(f.nar, ""), len(f.nar)))
	defer c.Close()
	answer, err := io.ReadAll(r)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 507") || !strings.Contains(string(answer), "disk is full") {
		t.Errorf("got %q (%v), want 507 and the end of the connection", answer, err)
	}
	s.want(200, "PUT", "/log/x", []byte("small files still fit"))
	s.want(200, "GET", "/log/x", nil)
}

// TestUploadsWait has more uploads than there are slots. One that waits is not asked for
// its body, nor dropped as if it had stalled.
func TestUploadsWait(t *testing.T) {
	const idle = 500 * time.Millisecond
	s := startLimited(t, chunkstore.Limits{MaxUploads: 1}, func(c *gateway.Config) { c.IdleTimeout = idle })
	first, second := newFixture(t, 1, 5000), newFixture(t, 2, 5000)
	c1, r1 := s.dial(putHead(fileName(first.nar, ""), len(first.nar)))
	expect := func(r io.ByteReader, want string) {
		t.Helper()
		var line strings.Builder
		for {
			b, err := r.ReadByte()
			if err != nil {
				t.Fatalf("got %q (%v), want %q", line.String(), err, want)
			}
			line.WriteByte(b)
			if b == '\n' {
				break
			}
		}
		if !strings.HasPrefix(line.String(), want) {
			t.Fatalf("got %q, want %q", line.String(), want)
		}
	}
	expect(r1, "HTTP/1.1 100")
	expect(r1, "\r\n")
	c2, r2 := s.dial(putHead(fileName(second.nar, ""), len(second.nar)))
	// The first sends slowly, for longer than the idle timeout; the second hears nothing.
	step := len(first.nar)/8 + 1
	for b := first.nar; len(b) > 0; b = b[min(step, len(b)):] {
		c2.SetReadDeadline(time.Now().Add(idle / 4))
		if b, err := r2.ReadByte(); err == nil {
			t.Fatalf("the upload that waits was told %q", b)
		}
		if _, err := c1.Write(b[:min(step, len(b))]); err != nil {
			t.Fatal(err)
		}
	}
	expect(r1, "HTTP/1.1 200")
	c2.SetReadDeadline(time.Now().Add(time.Minute))
	expect(r2, "HTTP/1.1 100")
	expect(r2, "\r\n")
	if _, err := c2.Write(second.nar); err != nil {
		t.Fatal(err)
	}
	expect(r2, "HTTP/1.1 200")
}

// TestSlowHeader drops a client that does not finish its header.
func TestSlowHeader(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.HeaderTimeout = 50 * time.Millisecond })
	c, r := s.dial("GET /nix-cache-info HTTP/1.1\r\nHost:")
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if b, err := io.ReadAll(r); err != nil {
		t.Errorf("got %q (%v), want the end of the connection", b, err)
	}
}
