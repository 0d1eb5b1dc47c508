package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/dedupd/dedupd/nar"
)

// TestHostileMemory has many clients want a lot of a server with the default settings, of
// which one is to stay within 512 MiB. What it really takes is in docs/security.md.
func TestHostileMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	v := startVictim(t)
	for _, attack := range []struct {
		name string
		run  func(*victim, *testing.T)
	}{
		{"idle connections", (*victim).idleConnections},
		{"slow headers", (*victim).slowHeaders},
		{"endless headers", (*victim).endlessHeaders},
		{"endless bodies", (*victim).endlessBodies},
		{"encoding bombs", (*victim).encodingBombs},
		{"NAR bombs", (*victim).narBombs},
		{"huge windows", (*victim).hugeWindows},
		{"slow readers", (*victim).slowReaders},
		{"cancelled requests", (*victim).cancelledRequests},
	} {
		t.Run(attack.name, func(t *testing.T) {
			stop := v.watch()
			attack.run(v, t)
			v.serves(t)
			peak := stop()
			t.Logf("%s: peak RssAnon %d MB", attack.name, peak>>20)
			if peak > 512<<20 {
				t.Errorf("peak RssAnon is %d MB, more than 512 MB", peak>>20)
			}
		})
	}
	out, err := dedupd(t, "", "check", "--bucket", "file://"+v.dir+"/bucket", "--state", v.dir+"/state")
	if err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
}

func startVictim(t *testing.T) *victim {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Max < 12_000 {
		t.Skipf("10,000 connections need more open files than %d (%v)", limit.Max, err)
	}
	v := &victim{dir: t.TempDir()}
	var err error
	if v.child, err = startChild(v.dir, "--max-nar", "256MiB", "--pack-size", "32MiB"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.child.kill)
	if err := v.child.ready(); err != nil {
		t.Fatal(err)
	}
	if v.status(t, "PUT", "/log/here", strings.NewReader("here")) != 200 {
		t.Fatal("the server takes nothing")
	}
	return v
}

// A victim is a server that is attacked.
type victim struct {
	dir string
	*child
}

// watch samples the anonymous memory of the server, until the function that it returns
// is called, which returns the peak in bytes.
func (v *victim) watch() func() int64 {
	done, peak := make(chan struct{}), make(chan int64)
	go func() {
		var largest int64
		for {
			largest = max(largest, v.rssAnon())
			select {
			case <-done:
				peak <- largest
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() int64 {
		close(done)
		return <-peak
	}
}

func (v *victim) rssAnon() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(status), "RssAnon:")
	var kib int64
	fmt.Sscan(after, &kib)
	return kib << 10
}

// serves checks that a client that wants nothing special gets it.
func (v *victim) serves(t *testing.T) {
	t.Helper()
	if got := v.status(t, "GET", "/log/here", nil); got != 200 {
		t.Errorf("a normal client gets %d", got)
	}
}

// status returns the status of the answer to a request, 0 for none.
func (v *victim) status(t *testing.T, method, path string, body io.Reader, headers ...string) int {
	t.Helper()
	req, err := http.NewRequest(method, v.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	client := http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Logf("%s %s: %v", method, path, err)
		return 0
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Errorf("%s %s: read body: %v", method, path, err)
	}
	return resp.StatusCode
}

// connect opens n connections and sends text over each. They are closed with the test.
func (v *victim) connect(t *testing.T, n int, text string) (all []net.Conn) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", strings.TrimPrefix(v.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, text) // the server may have closed it already
		all = append(all, c)
	}
	return all
}

// idleConnections are 10,000, of which some have had an answer. Every normal client that
// comes meanwhile is served.
func (v *victim) idleConnections(t *testing.T) {
	for range 10 {
		v.connect(t, 500, "")
		v.connect(t, 500, "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n")
		v.serves(t)
	}
}

func (v *victim) slowHeaders(t *testing.T) {
	conns := v.connect(t, 2000, "GET /nix-cache-info HTTP/1.1\r\n")
	for range 5 {
		for _, c := range conns {
			io.WriteString(c, "X: y\r\n")
		}
		v.serves(t)
	}
}

// endlessHeaders sends headers until the server does not want any more.
func (v *victim) endlessHeaders(t *testing.T) {
	var sent atomic.Int64
	var clients sync.WaitGroup
	line := []byte("X-Header: " + strings.Repeat("y", 1<<10) + "\r\n")
	for _, c := range v.connect(t, 16, "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n") {
		clients.Go(func() {
			for n := 0; n < 1<<30; {
				k, err := c.Write(line)
				n += k
				sent.Add(int64(k))
				if err != nil {
					return
				}
			}
			t.Error("the server has taken a header of 1 GiB")
		})
	}
	clients.Wait()
	t.Logf("16 clients could send %d KiB of header", sent.Load()>>10)
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

const narinfoPath = "/" + "00000000000000000000000000000000" + ".narinfo"

// endlessBodies are a gigabyte, as announced and in chunks without an end.
func (v *victim) endlessBodies(t *testing.T) {
	var clients sync.WaitGroup
	for _, path := range []string{narinfoPath, "/log/endless", "/nix-cache-info", "/nar/endless.nar", "/api/v1/missing"} {
		for range 16 {
			clients.Go(func() {
				method, body := "PUT", &countedReader{r: io.LimitReader(zeros{}, 1<<30)}
				if path == "/api/v1/missing" {
					method = "POST"
				}
				// After the answer the client may or may not see it: its connection is cut.
				if got := v.status(t, method, path, body); got != 0 && (got < 400 || got >= 500) {
					t.Errorf("%s %s, endless: got %d, want 4xx", method, path, got)
				}
				if n := body.n.Load(); n > 80<<20 {
					t.Errorf("%s %s: the server has taken %d MiB", method, path, n>>20)
				}
			})
		}
		if path == "/nar/endless.nar" || path == "/api/v1/missing" {
			continue
		}
		answer := v.answer(t, fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", path, 1<<30))
		if !strings.HasPrefix(answer, "HTTP/1.1 413") {
			t.Errorf("PUT %s of 1 GiB: got %q, want 413 before the body", path, answer)
		}
	}
	clients.Wait()
}

// answer returns the first line that the server says to text.
func (v *victim) answer(t *testing.T, text string) string {
	t.Helper()
	c := v.connect(t, 1, text)[0]
	c.SetReadDeadline(time.Now().Add(time.Minute))
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line
}

// A countedReader counts what is read, also while it is read.
type countedReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// encoders are the compressions that are made here.
var encoders = map[string]func(io.Writer) io.WriteCloser{
	"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
	"br":   func(w io.Writer) io.WriteCloser { return brotli.NewWriterLevel(w, 2) },
	"zstd": func(w io.Writer) io.WriteCloser { e, _ := zstd.NewWriter(w); return e },
	"lz4":  func(w io.Writer) io.WriteCloser { return lz4.NewWriter(w) },
}

// bomb returns what write writes, compressed.
func bomb(t *testing.T, encoding string, write func(io.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	w := encoders[encoding](&b)
	// Only as a Writer: lz4's ReadFrom does not go on where Write was.
	if err := errors.Join(write(struct{ io.Writer }{w}), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// encodingBombs are small files of hundreds of megabytes.
func (v *victim) encodingBombs(t *testing.T) {
	var clients sync.WaitGroup
	for encoding := range encoders {
		b := bomb(t, encoding, func(w io.Writer) error {
			_, err := io.CopyN(w, zeros{}, 256<<20)
			return err
		})
		for _, path := range []string{narinfoPath, "/00000000000000000000000000000000.ls", "/log/bomb"} {
			for range 8 {
				clients.Go(func() {
					if got := v.status(t, "PUT", path, bytes.NewReader(b), "Content-Encoding: "+encoding); got != 413 {
						t.Errorf("PUT %s, %d bytes of %s: got %d, want 413", path, len(b), encoding, got)
					}
				})
			}
		}
	}
	clients.Wait()
}

// narBombs are NARs of zeros, larger than is allowed.
func (v *victim) narBombs(t *testing.T) {
	var clients sync.WaitGroup
	for encoding := range encoders {
		b := bomb(t, encoding, func(w io.Writer) error {
			n := nar.NewWriter(w)
			err := n.WriteHeader(&nar.Header{Type: nar.Regular, Size: 300 << 20})
			if err == nil {
				_, err = io.CopyN(n, zeros{}, 300<<20)
			}
			return errors.Join(err, n.Close())
		})
		for i := range 3 {
			clients.Go(func() {
				if got := v.status(t, "PUT", fmt.Sprintf("/nar/bomb-%d.nar.%s", i, encoding), bytes.NewReader(b)); got != 413 {
					t.Errorf("NAR of %d bytes of %s: got %d, want 413", len(b), encoding, got)
				}
			})
		}
	}
	clients.Wait()
}

// hugeWindows want a decoder with gigabytes of memory.
func (v *victim) hugeWindows(t *testing.T) {
	block := []byte{2, 0, 0x21, 1, 40, 0, 0, 0} // LZMA2 with a dictionary of 4 GiB
	xz := append([]byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36"), block...)
	sum := crc32.ChecksumIEEE(block)
	xz = append(xz, byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24))
	for name, file := range map[string][]byte{
		"xz":   append(xz, make([]byte, 1000)...),
		"zstd": append([]byte("\x28\xb5\x2f\xfd\x00\xa8"), make([]byte, 1000)...), // a window of 2 GiB
		"br":   append([]byte{0x11, 0xff}, make([]byte, 1000)...),                 // large-window brotli
	} {
		for range 8 {
			if got := v.status(t, "PUT", "/nar/window.nar."+name, bytes.NewReader(file)); got < 400 || got >= 500 {
				t.Errorf("NAR in %s: got %d, want 4xx", name, got)
			}
			if got := v.status(t, "PUT", narinfoPath, bytes.NewReader(file), "Content-Encoding: "+name); got < 400 || got >= 500 {
				t.Errorf("narinfo in %s: got %d, want 4xx", name, got)
			}
		}
	}
}

// slowReaders ask for a large NAR and take a little of it only.
func (v *victim) slowReaders(t *testing.T) {
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	data := make([]byte, 30<<20)
	state := uint32(1)
	for i := range data { // xorshift: what does not compress
		state ^= state << 13
		state ^= state >> 17
		state ^= state << 5
		data[i] = byte(state)
	}
	err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(data))})
	if err == nil {
		_, err = w.Write(data)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if got := v.status(t, "PUT", "/nar/large.nar", &b); got != 200 {
		t.Fatalf("upload: got %d", got)
	}
	conns := v.connect(t, 300, "GET /nar/large.nar HTTP/1.1\r\nHost: x\r\n\r\n")
	buf := make([]byte, 1000)
	for range 3 {
		for _, c := range conns {
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			c.Read(buf)
		}
		v.serves(t)
	}
	start := time.Now()
	if got := v.status(t, "GET", "/nar/large.nar", nil); got != 200 {
		t.Errorf("a reader that is not slow gets %d", got)
	}
	t.Logf("a reader that is not slow took %.1f s for %d MiB", time.Since(start).Seconds(), len(data)>>20)
}

// cancelledRequests are given up before they are answered.
func (v *victim) cancelledRequests(t *testing.T) {
	for range 5000 {
		c, err := net.Dial("tcp", strings.TrimPrefix(v.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET /nar/large.nar HTTP/1.1\r\nHost: x\r\n\r\n")
		c.(*net.TCPConn).SetLinger(0) // a reset, not an end
		c.Close()
	}
}
