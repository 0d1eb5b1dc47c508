package gateway_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

// treeNAR makes a NAR of files in the order of their paths. Names that end in "/" are
// directories, values that begin with "-> " symlinks, others contents.
func treeNAR(t testing.TB, files ...[2]string) *fixture {
	t.Helper()
	var buf bytes.Buffer
	w := nar.NewWriter(&buf)
	for _, f := range files {
		h := &nar.Header{Path: strings.TrimSuffix(f[0], "/"), Type: nar.Regular, Size: int64(len(f[1]))}
		target, link := strings.CutPrefix(f[1], "-> ")
		switch {
		case strings.HasSuffix(f[0], "/"):
			h = &nar.Header{Path: h.Path, Type: nar.Directory}
		case link:
			h = &nar.Header{Path: h.Path, Type: nar.Symlink, Target: target}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Type == nar.Regular {
			fmt.Fprint(w, f[1])
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return fixtureOf(t, buf.Bytes())
}

// oddNames are names that URLs, HTML and JSON have to quote, in the order of a NAR.
var oddNames = []string{"\x01", " ", `"><script>alert(1)</script>`[:1], "#", "%2e%2e", "%41", "&amp;", "<script>alert(1)<", "?x=1", "\\", "javascript:alert(1)", "ü", "\xff"}

func TestInside(t *testing.T) {
	s := start(t)
	big := strings.Repeat("0123456789", 300_000)
	other := treeNAR(t, [2]string{"/"}, [2]string{"up", "-> ../x"}, [2]string{"x", "other"})
	file := treeNAR(t, [2]string{"", "just a file"})
	link := treeNAR(t, [2]string{"", "-> " + other.path.String() + "/x"})
	files := [][2]string{{"/"}, {"a.html", "<script>"}, {"big.tar", big}, {"dir/"}}
	for _, name := range oddNames {
		files = append(files, [2]string{"dir/" + name, "odd " + name})
	}
	files = append(files, [][2]string{
		{"empty", ""}, {"links/"},
		{"links/absolute", "-> " + storeDir + "/" + other.path.String() + "/x"}, {"links/beside", "-> ../../" + other.path.String() + "/x"},
		{"links/chain", "-> link-0"}, {"links/dangling", "-> nothing"}, {"links/dir", "-> ../dir/."}, {"links/etc", "-> /etc/passwd"},
		{"links/hash-only", "-> " + storeDir + "/" + other.path.HashPart() + "/x"},
		{"links/loop", "-> loop"}, {"links/missing", "-> " + storeDir + "/" + strings.Repeat("0", 32) + "-x/x"}, {"links/near", "-> .././/big.tar"},
		{"links/out", "-> ../../../etc/passwd"}, {"links/store", "-> " + storeDir}, {"links/through", "-> dir/#"}, {"links/to-link", "-> " + storeDir + "/" + link.path.String()},
		{"links/zslash", "-> near/"},
	}...)
	for i := range 50 {
		files = append(files, [2]string{fmt.Sprintf("links/zz%02d", i), fmt.Sprintf("-> zz%02d", i+1)})
	}
	files = append(files, [2]string{"links/zz50", "-> near"})
	f := treeNAR(t, files...)
	for _, f := range []*fixture{f, other, file, link} {
		s.upload(f)
	}
	hash, base := f.path.HashPart(), f.path.String()
	for _, tt := range []struct {
		path   string
		status int
		want   string // contents, or a part of a page or an error
		typ    string
	}{
		{base + "/a.html", 200, "<script>", "text/html; charset=utf-8"},
		{hash + "/a.html", 200, "<script>", "text/html; charset=utf-8"},
		{base + "/big.tar", 200, big, ""},
		{base + "/empty", 200, "", "application/octet-stream"},
		{file.path.String(), 200, "just a file", "application/octet-stream"},
		{file.path.String() + "/", 404, "", ""},
		{file.path.String() + "/x", 404, "", ""},
		{link.path.String(), 200, "other", "application/octet-stream"},
		{base + "/links/absolute", 200, "other", "application/octet-stream"},
		{base + "/links/beside", 200, "other", "application/octet-stream"},
		{base + "/links/near", 200, big, "application/octet-stream"},
		{base + "/links/through", 200, "odd #", "application/octet-stream"},
		{base + "/links/to-link", 200, "other", "application/octet-stream"},
		{base + "/links/zz20", 200, big, "application/octet-stream"},
		{base + "/links/zz00", 404, "too many symlinks", ""},
		{base + "/links/loop", 404, "too many symlinks", ""},
		{base + "/links/dangling", 404, "no such file", ""},
		{base + "/links/etc", 404, "leads out", ""},
		{base + "/links/out", 404, "leads out", ""},
		{base + "/links/store", 404, "leads out", ""},
		{base + "/links/missing", 404, "not found", ""},
		{base + "/links/hash-only", 404, "no store path", ""},
		{base + "/links/zslash", 404, "", ""},
		{base + "/a.html/", 404, "", ""},
		{base + "/a.html/x", 404, "", ""},
		{base + "/nothing", 404, "no such file", ""},
		{base + "/../" + other.path.String() + "/x", 404, "dot segment", ""},
		{base + "/./a.html", 404, "dot segment", ""},
		{base + "/..", 404, "dot segment", ""},
		{hash + "-another/a.html", 404, "not found", ""},
		{strings.Repeat("0", 32) + "-x/a.html", 404, "not found", ""},
		{"x/a.html", 404, "no store path", ""},
		{"", 404, "store directory", ""},
		{base + "/" + strings.Repeat("x/", 5000), 404, "", ""},
	} {
		u := "/serve/" + (&url.URL{Path: tt.path}).EscapedPath()
		a := s.want(tt.status, "GET", u, nil)
		if tt.status == 200 && string(a.body) != tt.want || !strings.Contains(string(a.body), tt.want) {
			t.Errorf("GET %s: got %v, want %.100q", u, a, tt.want)
		}
		if got := a.Header.Get("Content-Type"); tt.typ != "" && got != tt.typ {
			t.Errorf("GET %s: got Content-Type %q, want %q", u, got, tt.typ)
		}
		if csp := a.Header.Get("Content-Security-Policy"); tt.status == 200 && (!strings.HasPrefix(csp, "sandbox ") || strings.Contains(csp, "script")) {
			t.Errorf("GET %s: got Content-Security-Policy %q", u, csp)
		}
		if a.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("GET %s: got headers %v", u, a.Header)
		}
		s.want(tt.status, "HEAD", u, nil)
	}
	u := "/serve/" + base + "/big.tar"
	if a := s.want(206, "GET", u, nil, "Range: bytes=1000005-1000014"); string(a.body) != "5678901234" || a.Header.Get("Content-Range") != "bytes 1000005-1000014/3000000" {
		t.Errorf("got range %q, headers %v", a.body, a.Header)
	}
	s.want(416, "GET", u, nil, "Range: bytes=3000000-")
	s.want(304, "GET", u, nil, "If-None-Match: "+s.want(200, "HEAD", u, nil).Header.Get("ETag"))
	if a, b := s.want(200, "HEAD", u, nil).Header.Get("ETag"), s.want(200, "HEAD", "/serve/"+base+"/empty", nil).Header.Get("ETag"); a == b {
		t.Errorf("two files have the ETag %s", a)
	}
	s.want(405, "PUT", u, nil)
}

// TestDirectory gets a directory as JSON and as a page, whose links lead to its files.
func TestDirectory(t *testing.T) {
	s := start(t)
	var files [][2]string
	for _, name := range oddNames {
		files = append(files, [2]string{name, "odd " + name})
	}
	f := treeNAR(t, append([][2]string{{"/"}, {"a/"}, {"a/b/"}, {"a/b/c", "hello"}, {"a/link", "-> b/c"}, {"odd/"}}, prefixed("odd/", files)...)...)
	s.upload(f)
	dir := "/serve/" + f.path.String()
	a := s.want(200, "GET", dir+"/a", nil)
	if got, want := string(a.body), `{"root":{"entries":{"b":{"entries":{},"type":"directory"},"link":{"target":"b/c","type":"symlink"}},"type":"directory"},"version":1}`; got != want || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got %v, want %s", a, want)
	}
	if a := s.want(404, "GET", dir+"/odd", nil); !strings.Contains(string(a.body), "browsers") {
		t.Errorf("got %v for names that are not UTF-8", a)
	}
	const html = "Accept: text/html,application/xhtml+xml,*/*;q=0.8"
	for _, at := range []string{dir, dir + "/", dir + "/a", dir + "/a/b/", dir + "/odd", dir + "/odd/", dir + "/odd//"} {
		a := s.want(200, "GET", at, nil, html, acceptAll)
		if a.Header.Get("Content-Type") != "text/html; charset=utf-8" || a.Header.Get("Vary") != "Accept, Accept-Encoding" {
			t.Errorf("GET %s: got headers %v", at, a.Header)
		}
		page := string(a.body)
		if a.Header.Get("Content-Encoding") == "zstd" {
			page = string(zstdDecode(t, a.body))
		}
		if strings.Contains(page, "<script") || strings.Contains(page, "href=\"javascript") {
			t.Errorf("GET %s: got %s", at, page)
		}
		from, err := url.Parse(s.url + at)
		if err != nil {
			t.Fatal(err)
		}
		links := strings.Split(page, `<a href="`)[1:]
		for i, l := range links {
			ref, _, _ := strings.Cut(l, `"`)
			to, err := from.Parse(strings.ReplaceAll(ref, "&amp;", "&"))
			if err != nil || to.Host != from.Host {
				t.Errorf("GET %s: link %q leads to %v (%v)", at, ref, to, err)
				continue
			}
			a := s.want(200, "GET", to.EscapedPath(), nil, html)
			if strings.Contains(at, "odd") && string(a.body) != "odd "+oddNames[i] {
				t.Errorf("GET %s: link %q leads to %q", at, ref, a.body)
			}
		}
		if len(links) == 0 {
			t.Errorf("GET %s: there are no links in %s", at, page)
		}
	}
}

// prefixed returns the files with a prefix to their paths.
func prefixed(prefix string, files [][2]string) [][2]string {
	for i := range files {
		files[i][0] = prefix + files[i][0]
	}
	return files
}

// TestListingIsBounded has a listing that is larger than all listings may be together.
func TestListingIsBounded(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.ListingCache = 10_000 })
	v := s.uploadVariety()
	for _, url := range []string{v.listing, v.narListing, v.dir, v.dir + "file001"} {
		if a := s.want(404, "GET", url, nil); !strings.Contains(string(a.body), "too many files") {
			t.Errorf("GET %s: got %v", url, a)
		}
	}
	s.want(200, "GET", v.narInfo, nil)
}

// TestListingOfNARs lists NARs without a narinfo, by their hash and by the name of their upload.
func TestListingOfNARs(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 1000)
	encoded := zstdEncode(t, f.nar)
	name := fileName(encoded, ".zst")
	s.want(200, "PUT", "/"+name, encoded)
	hash := narinfo.EncodeNix32(f.hash[:])
	want := s.want(200, "GET", "/nar/"+hash+"/ls", nil).body
	for _, url := range []string{"/nar/" + fmt.Sprintf("%x", f.hash) + "/ls", "/" + name + "/ls", f.plainURL() + "/ls"} {
		if a := s.want(200, "GET", url, nil); !bytes.Equal(a.body, want) || !bytes.Contains(want, []byte("narOffset")) {
			t.Errorf("GET %s: got %v, want %s", url, a, want)
		}
	}
	for _, url := range []string{"/nar/" + strings.Repeat("0", 52) + "/ls", "/nar/x.nar/ls", "/nar//ls", "/nar/ls", "/nar/a/b/ls", "/nar/../ls"} {
		s.want(404, "GET", url, nil)
	}
	s.want(200, "PUT", "/log/x", []byte("no NAR"))
	sum := sha256.Sum256([]byte("no NAR"))
	s.want(404, "GET", "/nar/"+narinfo.EncodeNix32(sum[:])+"/ls", nil)
}
