package gateway_test

import (
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/gateway"
)

func TestMissing(t *testing.T) {
	s := start(t)
	here, noNarInfo := newFixture(t, 1, 1000), newFixture(t, 2, 2000)
	s.upload(here)
	s.want(200, "PUT", "/"+fileName(noNarInfo.nar, ""), noNarInfo.nar)
	have, lack := here.path.HashPart(), noNarInfo.path.HashPart()
	other := strings.Repeat("0", 32)
	list := func(n int) string { return strings.Repeat(other+"\n", n) }
	for _, tt := range []struct {
		body   string
		status int
		want   string // the body, or a part of the error
	}{
		{`{"hashes":["` + other + `","` + have + `","` + lack + `"]}`, 200, `{"missing":["` + other + `","` + lack + `"]}` + "\n"},
		{"{\n \"hashes\" : [ \"" + lack + "\"\n] }\n", 200, `{"missing":["` + lack + `"]}` + "\n"},
		{`{"hashes":["` + have + `"]}`, 200, `{"missing":[]}` + "\n"},
		{`{"hashes":[]}`, 200, `{"missing":[]}` + "\n"},
		{"", 200, ""},
		{have, 200, ""},
		{lack + "\r\n" + have + "\n" + lack, 200, lack + "\n" + lack + "\n"},
		{storeDir + "/" + other + "-x.drv\n" + storeDir + "/" + here.path.String() + "\n" + noNarInfo.path.String() + "\n", 200, storeDir + "/" + other + "-x.drv\n" + noNarInfo.path.String() + "\n"},
		{list(gateway.MaxMissing), 200, list(gateway.MaxMissing)},
		{list(gateway.MaxMissing + 1), 413, "100000"},
		{strings.Repeat("\n", gateway.MaxMissingBody+1), 413, "8388608"},
		{other + "\n\n", 400, `""`},
		{"x" + other, 400, `"x` + other + `"`},
		{strings.Repeat("e", 32), 400, "eee"},
		{"/gnu/store/" + other + "-x", 400, "/gnu/store"},
		{other + "-x/bin", 400, "-x/bin"},
		{other + `-"`, 400, "hash part"},
		{strings.Repeat("0", 100_000), 400, "line"},
		{"{", 400, "unexpected EOF"},
		{"{}", 400, "hashes"},
		{`{"paths":[]}`, 400, "hashes"},
		{`{"hashes":["` + other + `"`, 400, "unexpected EOF"},
		{`{"hashes":["` + other + `"]`, 400, "unexpected EOF"},
		{`{"hashes":["` + other + `"]}x`, 400, "want"},
		{`{"hashes":["` + other + `"],"x":1}`, 400, "want"},
		{`{"hashes":[null]}`, 400, "hash part"},
		{`{"hashes":[1]}`, 400, "want"},
		{`{"hashes":[` + strings.Repeat("[", 100_000), 400, "want"},
		{`{"` + strings.Repeat("x", 1<<20), 400, "EOF"},
	} {
		a := s.want(tt.status, "POST", "/"+gateway.MissingURL, []byte(tt.body))
		if tt.status == 200 && string(a.body) != tt.want || !strings.Contains(string(a.body), tt.want) || len(a.body) > max(len(tt.want), 1000) {
			t.Errorf("%.300q: got %v, want %.300q", tt.body, a, tt.want)
		}
		if got := a.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("%.300q: got Cache-Control %q, want no-store", tt.body, got)
		}
	}
	body := []byte(have + "\n" + lack + "\n")
	for _, tt := range []struct {
		encoding string
		body     []byte
		status   int
	}{
		{"gzip", gzipEncode(t, body), 200},
		{"zstd", zstdEncode(t, body), 200},
		{"gzip", body, 400},
		{"deflate", body, 415},
		{"zstd", zstdEncode(t, make([]byte, 20<<20)), 400}, // one line of zeros
		{"zstd", zstdEncode(t, []byte(`{"hashes":["`+other+`"`+strings.Repeat(" ", 20<<20))), 413},
	} {
		a := s.want(tt.status, "POST", "/"+gateway.MissingURL, tt.body, "Content-Encoding: "+tt.encoding)
		if tt.status == 200 && string(a.body) != lack+"\n" {
			t.Errorf("%s: got %q, want %q", tt.encoding, a.body, lack)
		}
	}
	for _, method := range []string{"GET", "HEAD", "PUT", "OPTIONS", "DELETE"} {
		if a := s.want(405, method, "/"+gateway.MissingURL, nil); a.Header.Get("Allow") != "POST" {
			t.Errorf("%s: got Allow %q, want POST", method, a.Header.Get("Allow"))
		}
	}
}

// TestMissingSlow has more clients than there are slots trickle their questions.
func TestMissingSlow(t *testing.T) {
	s := start(t, func(c *gateway.Config) { c.IdleTimeout = 300 * time.Millisecond })
	for range 20 {
		s.dial("POST /" + gateway.MissingURL + " HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n0")
	}
	s.want(200, "POST", "/"+gateway.MissingURL, nil)
}
