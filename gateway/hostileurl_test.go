package gateway_test

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
)

// raw sends text over a connection of its own, closes its side unless the server will be
// the first to do so, and returns the responses that come until both are closed. (To
// net/http, a client that has closed its side may have left.)
func (s *server) raw(text string) (answers []*answer) {
	s.t.Helper()
	c, r := s.dial(text)
	defer c.Close()
	if !strings.Contains(text, "Connection: close") {
		c.CloseWrite()
	}
	method, _, _ := strings.Cut(text, " ")
	for {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return answers
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			s.t.Errorf("%.100q: read body: %v", text, err)
			return answers
		}
		answers = append(answers, &answer{resp, b})
	}
}

// files returns the names of all files below the server's directory.
func (s *server) files() (names []string) {
	s.t.Helper()
	err := filepath.WalkDir(filepath.Dir(s.dir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.Contains(path, "/state/") && !strings.Contains(path, "/bucket/") {
			names = append(names, path)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return names
}

// TestPathTraversal asks for, and uploads to, names that lead elsewhere in every way of
// writing them.
func TestPathTraversal(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 1000)
	s.upload(f)
	targets := []string{
		"//etc/passwd", "/nar//etc/passwd", "/log//x", "/nar/", "/log/%00", "/nar/x%00.nar", "/log/x%0a", "/log/x%20", "/log/%7f", "/log/%ff",
		"/log/.hidden", "/log/a/b", "/nar/a%2fb.nar", "/nar/C:%5cx", "/nar/file:%2f%2f%2fetc%2fpasswd", "/log/~root", "/log/*", "/log/$HOME", "/log/%7c",
		"http://elsewhere/etc/passwd", "http://elsewhere/nar/../../etc/passwd", "/" + strings.Repeat("a", 33) + ".narinfo", "/" + strings.Repeat("e", 32) + ".narinfo",
		"/" + strings.Repeat("../", 200) + "etc/passwd", "/log/" + strings.Repeat("a", 256), "/log/" + strings.Repeat("a/", 2000), "/nar/" + strings.Repeat("%2e", 4000),
	}
	for _, up := range []string{
		"..", "../..", "%2e%2e", "%2E%2e/%2e%2E", "%252e%252e", "..%2f..", "..%252f..", "..%5c..", "..\\..", ".", "%2e",
		"%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%ef%bc%8e%ef%bc%8e", "%u002e%u002e", "..;", "....//..", "x/..", "x/%2e%2e/..",
	} {
		for _, dir := range []string{"", "nar/", "log/", "debuginfo/", "realisations/", "build-trace-v2/x/", "serve/", "serve/" + f.path.String() + "/", "api/v1/"} {
			targets = append(targets, "/"+dir+up+"/etc/passwd", "/"+dir+up, "/"+dir+up+"/x.doi")
		}
	}
	before := s.files()
	for _, target := range targets {
		for _, method := range []string{"GET", "HEAD", "PUT"} {
			body := ""
			if method == "PUT" {
				body = "owned"
			}
			answers := s.raw(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", method, target, len(body), body))
			if len(answers) != 1 || answers[0].StatusCode < 400 || answers[0].StatusCode >= 500 {
				t.Errorf("%s %.100s: got %v, want 4xx", method, target, answers)
			}
			for _, a := range answers {
				if strings.Contains(string(a.body), "root:") {
					t.Errorf("%s %.100s: got a file of the machine's", method, target)
				}
			}
		}
	}
	if after := s.files(); !slices.Equal(after, before) {
		t.Errorf("files before %q, after %q", before, after)
	}
	s.want(200, "GET", f.narInfoURL(), nil)
}

// TestHeaderInjection puts line ends where an answer might repeat them.
func TestHeaderInjection(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 1000)
	s.upload(f)
	const evil = "Set-Cookie: evil=1"
	check := func(what string, answers []*answer) {
		t.Helper()
		for _, a := range answers {
			if a.Header.Get("Set-Cookie") != "" || a.Header.Get("Evil") != "" || strings.Contains(a.Status, "evil") {
				t.Errorf("%s: got header %v", what, a.Header)
			}
		}
		if len(answers) > 1 {
			t.Errorf("%s: got %d answers to one request", what, len(answers))
		}
	}
	for _, target := range []string{
		"/log/x%0d%0a" + evil, "/nar/x%0d%0a%0d%0aHTTP/1.1%20200%20OK%0d%0a", "/%0d%0a" + strings.ReplaceAll(evil, " ", "%20"), "/log/x?a=%0d%0aevil",
	} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			check(target, s.raw(method+" "+strings.ReplaceAll(target, " ", "%20")+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"))
		}
	}
	for _, header := range []string{
		"Range: bytes=0-1\n" + evil, "Content-Encoding: x\r" + evil, "If-None-Match: \"\x00\"", "Host: x\x0b" + evil, "Expect: 200-ok\x01",
	} {
		check(header, s.raw("PUT /log/x HTTP/1.1\r\nHost: x\r\n"+header+"\r\nContent-Length: 0\r\n\r\n"))
	}
	// What a narinfo says is repeated when it is refused, and served when it is taken.
	name := fileName(f.nar, "")
	for _, change := range []string{"URL: nar/x\r" + evil, "URL: " + name + "\r", "Deriver: x\r" + evil, "References: x\r" + evil, "StorePath: " + f.path.String() + "\r" + evil} {
		field, _, _ := strings.Cut(change, ":")
		var text strings.Builder
		for line := range strings.Lines(f.info(name, "none").Text(storeDir)) {
			if !strings.HasPrefix(line, field+":") {
				text.WriteString(line)
			}
		}
		a := s.do("PUT", f.narInfoURL(), []byte(text.String()+change+"\n"))
		check(change, []*answer{a})
		if a.StatusCode != 400 {
			t.Errorf("%q: got %v, want 400", change, a)
		}
	}
	if got := s.want(200, "GET", f.narInfoURL(), nil); strings.Contains(string(got.body), "evil") || strings.Contains(string(got.body), "\r") {
		t.Errorf("got narinfo %q", got.body)
	}
	if strings.Contains(s.log.String(), "\r") {
		t.Error("the log has a carriage return in it")
	}
}

// TestSmuggling sends requests whose ends two servers might see at different places. One
// that is not refused is read as RFC 9112 says, and then the connection is closed.
func TestSmuggling(t *testing.T) {
	s := start(t)
	const inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, tt := range []struct {
		name, headers, body string
		status              int // of the first answer
	}{
		{"two lengths", "Content-Length: 5\r\nContent-Length: 0\r\n", inner, 400},
		{"two lengths in one", "Content-Length: 5, 0\r\n", inner, 400},
		{"length with a sign", "Content-Length: +5\r\n", inner, 400},
		{"negative length", "Content-Length: -1\r\n", inner, 400},
		{"huge length", "Content-Length: 99999999999999999999\r\n", inner, 400},
		{"hexadecimal length", "Content-Length: 0x5\r\n", inner, 400},
		{"space before the colon", "Content-Length : 5\r\n", inner, 400},
		{"unknown encoding", "Transfer-Encoding: xchunked\r\n", inner, 501},
		{"two encodings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", inner, 501},
		{"encodings in one", "Transfer-Encoding: identity, chunked\r\n", inner, 501},
		{"encoding with a tab", "Transfer-Encoding: \x0bchunked\r\n", inner, 400},
		{"bad chunk size", "Transfer-Encoding: chunked\r\n", "5x\r\nhello\r\n0\r\n\r\n" + inner, 400},
		{"negative chunk size", "Transfer-Encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n" + inner, 400},
		{"huge chunk size", "Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n" + inner, 400},
		{"chunk without its end", "Transfer-Encoding: chunked\r\n", "5\r\nhelloX0\r\n\r\n" + inner, 400},
		{"no host", "", "", 0},
	} {
		request := "PUT /log/x HTTP/1.1\r\nHost: x\r\n" + tt.headers + "\r\n" + tt.body
		if tt.name == "no host" {
			request, tt.status = "GET /nix-cache-info HTTP/1.1\r\n\r\n", 400
		}
		answers := s.raw(request)
		if len(answers) == 0 || answers[0].StatusCode != tt.status {
			t.Errorf("%s: got %v, want %d", tt.name, answers, tt.status)
		}
		if len(answers) > 1 {
			t.Errorf("%s: what followed was taken for a request: %v", tt.name, answers)
		}
	}
	// A folded line belongs to the header before it, so that this request has no body.
	if answers := s.raw("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nX: y\r\n Content-Length: 500\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"); len(answers) != 2 {
		t.Errorf("folded header: got %v, want two answers", answers)
	}
	// A length and an encoding: the encoding counts.
	answers := s.raw("PUT /log/both HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	if len(answers) != 1 || answers[0].StatusCode != 200 {
		t.Errorf("length and encoding: got %v, want 200", answers)
	}
	if a := s.want(200, "GET", "/log/both", nil); string(a.body) != "hello" {
		t.Errorf("length and encoding: got %q, want what the encoding says", a.body)
	}
	if strings.Contains(s.log.String(), "smuggled") {
		t.Errorf("a request was smuggled:\n%s", s.log)
	}
}

// TestHostileRanges asks for impossible, huge and very many ranges.
func TestHostileRanges(t *testing.T) {
	s := start(t)
	f := newFixture(t, 1, 100_000)
	s.upload(f)
	for _, url := range []string{f.plainURL(), "/" + s.narInfo(f).URL} {
		whole := s.want(200, "GET", url, nil).body
		for _, tt := range []struct {
			ranges string
			status int
		}{
			{"bytes=" + strings.Repeat("0-,", 5000) + "0-", 200},
			{"bytes=" + strings.Repeat("0-0,", 8000) + "1-1", 200},
			{"bytes=0-99999999999999999999999", 200},
			{"bytes=99999999999999999999999-", 200},
			{"bytes=9223372036854775807-", 416},
			{"bytes=9223372036854775808-", 200},
			{"bytes=0-9223372036854775807", 206},
			{"bytes=-9223372036854775807", 206},
			{"bytes=-9223372036854775808", 200},
			{"bytes=9223372036854775806-9223372036854775807", 416},
			{"bytes=-0", 416},
			{"bytes=--1", 200},
			{"bytes=1-0", 200},
			{"bytes=+0-+1", 200},
			{"bytes=0x0-0x1", 200},
			{"bytes= 0 - 1", 200},
			{"bytes=", 200},
			{"bytes=-", 200},
			{"lines=0-1", 200},
			{"bytes=0-\x7f", 400},
		} {
			a := s.raw("GET " + url + " HTTP/1.1\r\nHost: x\r\nRange: " + tt.ranges + "\r\nConnection: close\r\n\r\n")
			if len(a) != 1 || a[0].StatusCode != tt.status {
				t.Errorf("%.40q: got %v, want %d", tt.ranges, a, tt.status)
			} else if code := a[0].StatusCode; code < 300 && string(a[0].body) != string(whole) {
				t.Errorf("%.40q: got %d bytes, want %d", tt.ranges, len(a[0].body), len(whole))
			}
		}
	}
}

// TestHostileRequests sends requests that no client sends.
func TestHostileRequests(t *testing.T) {
	s := start(t)
	for _, tt := range []struct {
		name, request string
		statuses      []int // 0 for no answer at all
	}{
		{"huge URL", "GET /" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n", []int{431, 0}},
		{"huge header", "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", []int{431, 0}},
		{"many headers", "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 100_000) + "\r\n", []int{431, 0}},
		{"method", "BREW /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n", []int{405}},
		{"long method", strings.Repeat("A", 100_000) + " / HTTP/1.1\r\nHost: x\r\n\r\n", []int{400, 405, 431, 0}},
		{"CONNECT", "CONNECT elsewhere:25 HTTP/1.1\r\nHost: x\r\n\r\n", []int{404, 405, 400}},
		{"TRACE", "TRACE / HTTP/1.1\r\nHost: x\r\nCookie: secret\r\n\r\n", []int{404, 405}},
		{"DELETE", "DELETE /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n", []int{405}},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", []int{200, 404, 405}},
		{"HTTP/0.9", "GET /nix-cache-info\r\n", []int{400}},
		{"HTTP/3 in words", "GET /nix-cache-info HTTP/3.0\r\nHost: x\r\n\r\n", []int{505}},
		{"HTTP/2 without TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{505, 400, 404, 405}},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", []int{400}},
		{"SSH", "SSH-2.0-OpenSSH_9.2\r\n", []int{400}},
		{"NULs", strings.Repeat("\x00", 1000), []int{400, 0}},
		{"upgrade", "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", []int{200}},
	} {
		status := 0
		answers := s.raw(tt.request)
		if len(answers) > 0 {
			status = answers[0].StatusCode
		}
		if !slices.Contains(tt.statuses, status) {
			t.Errorf("%s: got %v, want one of %v", tt.name, answers, tt.statuses)
		}
		for _, a := range answers {
			if strings.Contains(string(a.body), "secret") {
				t.Errorf("%s: got back what it sent: %v", tt.name, a)
			}
		}
	}
	s.want(200, "GET", "/nix-cache-info", nil)
}

// TestPipelining sends many requests at once, and wants as many answers, in order.
func TestPipelining(t *testing.T) {
	s := start(t)
	const n = 500
	_, r := s.dial(strings.Repeat("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", n))
	for i := range 2 * n {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		if want := []int{200, 404}[i%2]; resp.StatusCode != want {
			t.Fatalf("answer %d: got %s, want %d", i, resp.Status, want)
		}
	}
}

// TestFalseHashes uploads under the hash of something else, and publishes paths with the
// NAR of another.
func TestFalseHashes(t *testing.T) {
	s := start(t)
	mine, other := newFixture(t, 1, 1000), newFixture(t, 2, 1000)
	s.upload(other)
	s.want(400, "PUT", mine.plainURL(), other.nar)
	s.want(404, "GET", mine.plainURL(), nil)
	s.want(200, "PUT", "/nar/free-name.nar", mine.nar)
	s.want(409, "PUT", "/nar/free-name.nar", other.nar)
	info := mine.info(fileName(other.nar, ""), "none") // says the NarHash of mine
	s.want(400, "PUT", mine.narInfoURL(), []byte(info.Text(storeDir)))
	info.URL = "nar/free-name.nar"
	s.want(400, "PUT", other.narInfoURL(), []byte(info.Text(storeDir)))
	s.want(404, "GET", mine.narInfoURL(), nil)
	// Its own path with another's NAR is what its writer says it is; the other stays.
	info = other.info(fileName(other.nar, ""), "none")
	info.StorePath = mine.path
	s.want(200, "PUT", mine.narInfoURL(), []byte(info.Text(storeDir)))
	if got, err := narinfo.Parse(s.want(200, "GET", other.narInfoURL(), nil).body, storeDir); err != nil || got.StorePath != other.path {
		t.Errorf("got %+v (%v), want the other path as it was", got, err)
	}
}
