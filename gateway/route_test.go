package gateway

import (
	"math"
	"net/http"
	"path"
	"strings"
	"testing"
)

// FuzzPath looks for paths that lead out of their directory, and for names whose URL
// leads elsewhere.
func FuzzPath(f *testing.F) {
	hash := strings.Repeat("0", 32)
	for _, seed := range []string{
		"/nix-cache-info", "/" + hash + ".narinfo", "/" + hash + ".ls", "/nar/x.nar.xz", "/nar/../x", "/nar/..", "/nar//x", "//nar/x",
		"/log/" + hash + "-x.drv", "/realisations/sha256:aa!out.doi", "/build-trace-v2/a/b.doi", "/build-trace-v2/a/../b.doi", "/debuginfo/x.debug",
		"/nar/a\x00b", "/x.nar.xz", "/.nar", "/x.nar.", "/nar/%2e%2e", "", "/", "nar/x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		res, ok := parsePath(p)
		if !ok || res.kind == kindInside {
			return
		}
		if "/"+res.name != p || path.Clean(p) != p || strings.ContainsAny(p, "\\\x00%#; ") || len(p) > maxName+1 {
			t.Errorf("%q is %+v", p, res)
		}
	})
}

// FuzzRange compares ranges with what they must be: inside, and not empty.
func FuzzRange(f *testing.F) {
	for _, seed := range []string{"bytes=0-", "bytes=1-2", "bytes=-5", "bytes=5-1", "bytes=-", "bytes=0-0,1-1", "bytes=9223372036854775807-", "bytes=-0"} {
		f.Add(seed, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		r := &http.Request{Method: http.MethodGet, Header: http.Header{"Range": {header}}}
		rng, ok := requestedRange(r, &content{size: size})
		if !ok {
			return
		}
		if off, n, ok := rng.of(size); ok && (off < 0 || n <= 0 || off > size-n) {
			t.Errorf("%q of %d bytes: got %d+%d", header, size, off, n)
		}
	})
}

// FuzzFileName looks for URLs in narinfos that mean anything but a file below nar/.
func FuzzFileName(f *testing.F) {
	for _, seed := range []string{
		"nar/x.nar.xz", "/nar/x", "http://host/nar/x", "//host/nar/x", "http://other/nar/x", "nar/../x", "nar/%2e%2e/x", "../nar/x", "nar/x?y", "nar/x#y",
		"file:///nar/x", "nar%2fx", "mailto:x", "http://u@host/nar/x", ":", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, url string) {
		name, err := fileName(url, "host")
		if err != nil {
			return
		}
		if rest, ok := strings.CutPrefix(name, "nar/"); !ok || !goodSegment(rest) {
			t.Errorf("%q is %q", url, name)
		}
		if !strings.Contains(url, "nar") && !strings.Contains(url, "%") || strings.Contains(url, "..") {
			t.Errorf("%q is %q", url, name)
		}
	})
}

func TestServedCounts(t *testing.T) {
	var c counters
	c.add(50, 100, 1000) // half of a NAR of 1000 bytes
	c.add(100, 100, 1000)
	c.add(0, 100, 1000)
	if bytes, nars := c.bytes.Load(), c.narBytes.Load(); bytes != 150 || nars != 1500 {
		t.Errorf("got %d bytes for %d of NARs, want 150 for 1500", bytes, nars)
	}
	c = counters{}
	c.add(math.MaxInt64/2, math.MaxInt64, math.MaxInt64) // no overflow
	if got, want := c.narBytes.Load(), int64(math.MaxInt64/2); got != want {
		t.Errorf("got %d bytes of NARs, want %d", got, want)
	}
}
