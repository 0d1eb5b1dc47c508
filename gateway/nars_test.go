package gateway_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
)

// TestNAR uploads a NAR in every way and gets it in every way.
func TestNAR(t *testing.T) {
	s := start(t)
	layouts := map[string]bool{}
	sizes := []int{0, 1, 5_000, 900_000}
	for seed, size := range sizes {
		f := newFixture(t, uint64(seed), size)
		encoded := zstdEncode(t, f.nar)
		name := fileName(encoded, ".zst")
		s.want(404, "HEAD", "/"+name, nil)
		s.want(404, "GET", f.narInfoURL(), nil)
		if a := s.want(200, "PUT", "/"+name, encoded); len(a.body) != 0 {
			t.Errorf("PUT of a NAR: got body %q, want none", a.body)
		}
		s.want(200, "HEAD", "/"+name, nil)
		s.want(404, "GET", f.narInfoURL(), nil)
		s.want(200, "PUT", f.narInfoURL(), []byte(f.info(name, "zstd").Text(storeDir)))

		info := s.narInfo(f)
		if info.NarHash != f.hash || info.NarSize != uint64(len(f.nar)) || info.Compression != "zstd" || !info.FileHash.IsZero() {
			t.Errorf("got narinfo %+v", info)
		}
		if want := "nar/" + narinfo.EncodeNix32(f.hash[:]) + "-"; !strings.HasPrefix(info.URL, want) || !strings.HasSuffix(info.URL, ".nar.zst") {
			t.Errorf("got URL %s, want %s<layout>.nar.zst", info.URL, want)
		}
		layouts[info.URL[len("nar/")+53:]] = true
		frames := s.checkBody("/"+info.URL, nil)
		if uint64(len(frames)) != info.FileSize {
			t.Errorf("got %d bytes of frames, FileSize says %d", len(frames), info.FileSize)
		}
		if got := zstdDecode(t, frames); !bytes.Equal(got, f.nar) {
			t.Error("the frames decode to another NAR")
		}
		s.checkBody(f.plainURL(), f.nar)
		if old := s.checkBody("/"+name, nil); !bytes.Equal(zstdDecode(t, old), f.nar) {
			t.Error("the old name decodes to another NAR")
		}
		// A second client that has the same NAR, in another compression without extension.
		encoded = gzipEncode(t, f.nar)
		name = fileName(encoded, "")
		s.want(200, "PUT", "/"+name, encoded)
		s.want(200, "PUT", f.narInfoURL(), []byte(f.info(name, "gzip").Text(storeDir)))
		if old := s.checkBody("/"+name, nil); !bytes.Equal(gzipDecode(t, old), f.nar) {
			t.Error("the old name of the gzip file decodes to another NAR")
		}
	}
	if len(layouts) != len(sizes) {
		t.Errorf("%d NARs have the layouts %v", len(sizes), layouts)
	}
}

// checkBody gets what is at a URL, which must be want if that is not nil, in whole, by
// HEAD, and in ranges, and checks all headers.
func (s *server) checkBody(path string, want []byte) []byte {
	s.t.Helper()
	whole := s.want(200, "GET", path, nil)
	if want == nil {
		want = whole.body
	}
	if !bytes.Equal(whole.body, want) {
		s.t.Errorf("GET %s: got %d other bytes, want %d", path, len(whole.body), len(want))
	}
	etag := whole.Header.Get("ETag")
	if !strings.HasPrefix(etag, `"`) || !strings.Contains(whole.Header.Get("Cache-Control"), "immutable") || whole.Header["Content-Encoding"] != nil {
		s.t.Errorf("GET %s: got headers %v", path, whole.Header)
	}
	head := s.want(200, "HEAD", path, nil)
	for _, name := range []string{"Content-Length", "ETag", "Accept-Ranges", "Cache-Control", "Content-Type"} {
		if got, want := head.Header.Get(name), whole.Header.Get(name); got != want || got == "" {
			s.t.Errorf("HEAD %s: got %s: %s, GET has %s", path, name, got, want)
		}
	}
	if got := head.Header.Get("Content-Length"); got != strconv.Itoa(len(want)) {
		s.t.Errorf("HEAD %s: got Content-Length %s, want %d", path, got, len(want))
	}
	s.want(304, "GET", path, nil, "If-None-Match: "+etag)
	rnd := rand.New(rand.NewPCG(uint64(len(want)), 7))
	for range 4 {
		off := rnd.IntN(len(want))
		end := off + rnd.IntN(len(want)-off)
		part := s.want(206, "GET", path, nil, fmt.Sprintf("Range: bytes=%d-%d", off, end))
		if !bytes.Equal(part.body, want[off:end+1]) {
			s.t.Errorf("GET %s, %d-%d: got %d other bytes", path, off, end, len(part.body))
		}
		if got, want := part.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", off, end, len(want)); got != want {
			s.t.Errorf("GET %s: got Content-Range %q, want %q", path, got, want)
		}
		if got := part.Header.Get("ETag"); got != etag {
			s.t.Errorf("GET %s: got ETag %s for a range, %s for the whole", path, got, etag)
		}
	}
	return want
}

func TestRanges(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 1000)
	s.upload(f)
	path, n := f.plainURL(), len(f.nar)
	etag := s.want(200, "HEAD", path, nil).Header.Get("ETag")
	for _, tt := range []struct {
		headers  []string
		status   int
		off, end int // of the NAR
	}{
		{[]string{"Range: bytes=0-"}, 206, 0, n},
		{[]string{"Range: bytes=10-"}, 206, 10, n},
		{[]string{"Range: bytes=10-10"}, 206, 10, 11},
		{[]string{"Range: bytes=10-99999999"}, 206, 10, n},
		{[]string{"Range: bytes=-7"}, 206, n - 7, n},
		{[]string{"Range: bytes=-99999999"}, 206, 0, n},
		{[]string{fmt.Sprintf("Range: bytes=%d-", n-1)}, 206, n - 1, n},
		{[]string{fmt.Sprintf("Range: bytes=%d-", n)}, 416, 0, 0},
		{[]string{"Range: bytes=-0"}, 416, 0, 0},
		{[]string{"Range: bytes=10-9"}, 200, 0, n},
		{[]string{"Range: bytes=0-1,5-6"}, 200, 0, n},
		{[]string{"Range: bytes=0-1", "Range: bytes=5-6"}, 200, 0, n},
		{[]string{"Range: bytes=a-b"}, 200, 0, n},
		{[]string{"Range: bytes=-"}, 200, 0, n},
		{[]string{"Range: bytes=+1-"}, 200, 0, n},
		{[]string{"Range: bytes=--1"}, 200, 0, n},
		{[]string{"Range: bytes=99999999999999999999-"}, 200, 0, n},
		{[]string{"Range: lines=1-2"}, 200, 0, n},
		{[]string{"Range: bytes=10-", "If-Range: " + etag}, 206, 10, n},
		{[]string{"Range: bytes=10-", `If-Range: "other"`}, 200, 0, n},
		{[]string{"Range: bytes=10-", "If-Range: W/" + etag}, 200, 0, n},
		{[]string{"Range: bytes=10-", "If-Range: Fri, 20 Nov 2026 12:00:00 GMT"}, 200, 0, n},
	} {
		a := s.want(tt.status, "GET", path, nil, tt.headers...)
		if tt.status == 416 {
			if got, want := a.Header.Get("Content-Range"), fmt.Sprintf("bytes */%d", n); got != want || a.Header.Get("ETag") != "" {
				t.Errorf("%q: got headers %v", tt.headers, a.Header)
			}
		} else if !bytes.Equal(a.body, f.nar[tt.off:tt.end]) {
			t.Errorf("%q: got %d bytes, want %d to %d", tt.headers, len(a.body), tt.off, tt.end)
		}
	}
	if a := s.want(200, "HEAD", path, nil, "Range: bytes=10-"); a.Header.Get("Content-Range") != "" {
		t.Errorf("HEAD with a range: got %v", a.Header)
	}
}

// TestOtherLayout asks for a NAR in a layout that it has not.
func TestOtherLayout(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 200_000)
	s.upload(f)
	current := "/" + s.narInfo(f).URL
	old := strings.TrimSuffix(f.plainURL(), ".nar") + "-0123456789abcdfg.nar.zst"
	want := s.want(200, "GET", current, nil)
	got := s.want(200, "GET", old, nil)
	if !bytes.Equal(got.body, want.body) || got.Header.Get("ETag") != want.Header.Get("ETag") {
		t.Error("another layout does not give the current one")
	}
	if strings.Contains(got.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("got headers %v of another layout", got.Header)
	}
	s.want(200, "HEAD", old, nil)
	s.want(416, "GET", old, nil, "Range: bytes=10-")
	s.want(404, "GET", strings.Replace(current, "/nar/1", "/nar/0", 1)[:len("/nar/")]+strings.Repeat("0", 52)+"-0123456789abcdfg.nar.zst", nil)
}

// TestNarNames uploads good NARs under names that are not theirs, and bad NARs.
func TestNarNames(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 100_000)
	zst, gz := zstdEncode(t, f.nar), gzipEncode(t, f.nar)
	hash, other := narinfo.EncodeNix32(f.hash[:]), strings.Repeat("0", 52)
	flipped := bytes.Clone(zst)
	flipped[len(flipped)/2] ^= 1
	for _, tt := range []struct {
		name   string
		body   []byte
		status int
		says   string
	}{
		{"nar/" + other + ".nar.zst", zst, 400, "hash"},
		{"nar/" + strings.Repeat("0", 64) + ".nar.zst", zst, 400, "hash"},
		{"nar/" + hash + "-0123456789abcdfg.nar.zst", zst, 400, "gateway's own"},
		{"nar/" + hash + ".nar", gz, 400, "compressed"},
		{"nar/x.nar.xz", zst, 400, "disagree"},
		{"nar/x.nar", f.nar[:len(f.nar)-8], 400, ""},
		{"nar/x.nar", append(bytes.Clone(f.nar), 0), 400, ""},
		{"nar/x.nar", nil, 415, "zstd"},
		{"nar/x.nar", []byte("not a NAR"), 415, "zstd"},
		{"nar/x.nar.bz2", []byte("BZh91AY&SY\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00"), 415, "use one of none, xz, zstd"},
		{"nar/x.nar.zst", zst[:len(zst)-1], 400, ""},
		{"nar/x.nar.zst", flipped, 400, ""},
		{"nar/x.nar.zst", append(bytes.Clone(zst), "garbage"...), 400, ""},
		{"nar/x.nar.zst", zstdEncode(t, []byte("not a NAR")), 400, ""},
		{"nar/x.nar.zst", []byte("\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00"), 413, "memory"}, // a window of 2 TiB
		{"nar/../x.nar", f.nar, 404, ""},
		{"nar/%2e%2e/x.nar", f.nar, 404, ""},
		{"nar/..%2fx.nar", f.nar, 404, ""},
		{"nar/a/b.nar", f.nar, 404, ""},
		{"nar/.hidden", f.nar, 404, ""},
		{"nar/", f.nar, 404, ""},
		{"nar/a%00b.nar", f.nar, 404, ""},
		{"nar/a%20b.nar", f.nar, 404, ""},
		{"nar/" + strings.Repeat("a", 256), f.nar, 404, ""},
		{"x.nar", f.nar, 405, "use GET, HEAD"},
	} {
		a := s.want(tt.status, "PUT", "/"+tt.name, tt.body)
		if !strings.Contains(string(a.body), tt.says) {
			t.Errorf("PUT %s: got message %q, want %q in it", tt.name, a.body, tt.says)
		}
		s.want(404, "HEAD", "/"+tt.name, nil)
	}
	s.want(415, "PUT", "/nar/x.nar", gz, "Content-Encoding: gzip")
	stats, err := s.store.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stats.Chunks != 0 || stats.UploadedFiles != 0 || stats.NARs != 0 {
		t.Errorf("refused uploads left %+v", stats)
	}

	s.want(200, "PUT", "/nar/"+hash+".nar.zst", zst) // named after the NAR
	s.want(200, "PUT", "/nar/my-own.name.zst", zst)
	s.want(200, "PUT", "/nar/my-own.name.zst", zst)
	s.want(409, "PUT", "/nar/my-own.name.zst", zstdEncode(t, newFixture(t, 2, 100).nar))
	if got := zstdDecode(t, s.want(200, "GET", "/nar/my-own.name.zst", nil).body); !bytes.Equal(got, f.nar) {
		t.Error("a refused upload changed the file")
	}
}

// TestConcurrentUploads has many clients upload the same NAR, in several compressions,
// and get it as soon as its narinfo is there.
func TestConcurrentUploads(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 600_000)
	forms := map[string][]byte{"none": f.nar, "zstd": zstdEncode(t, f.nar), "gzip": gzipEncode(t, f.nar)}
	var wg sync.WaitGroup
	for range 4 {
		for comp, body := range forms {
			wg.Go(func() {
				name := fileName(body, "")
				s.want(200, "PUT", "/"+name, body)
				s.want(200, "HEAD", "/"+name, nil)
				s.want(200, "PUT", f.narInfoURL(), []byte(f.info(name, comp).Text(storeDir)))
				if got := s.want(200, "GET", "/"+s.narInfo(f).URL, nil); !bytes.Equal(zstdDecode(t, got.body), f.nar) {
					t.Error("got another NAR")
				}
			})
		}
	}
	wg.Wait()
	stats, err := s.store.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stats.NARs != 1 || stats.StorePaths != 1 || stats.UploadedFiles != 3 {
		t.Errorf("got %+v", stats)
	}
	if stats.FrameBytes > stats.ChunkBytes {
		t.Errorf("stored %d bytes for %d of chunks", stats.FrameBytes, stats.ChunkBytes)
	}
}
