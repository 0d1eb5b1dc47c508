package gateway

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/packfile"
)

func TestPreferredCoding(t *testing.T) {
	for _, tt := range []struct {
		header string
		want   string // of text, and of frames
		frames string
	}{
		{"", "", ""},
		{"zstd, br, gzip, deflate, bzip2, xz", "zstd", "zstd"}, // Nix 2.14 to 2.33
		{"deflate, gzip, br, zstd", "zstd", "zstd"},            // Nix 2.34
		{"gzip", "gzip", ""},                                   // Go
		{"GZip", "gzip", ""},
		{"br", "", ""},
		{"*", "", ""},
		{"identity", "", ""},
		{"zstdx, xzstd", "", ""},
		{"zstd;q=0", "", ""},
		{"zstd;q=0.000, gzip", "gzip", ""},
		{"zstd;q=0.5, gzip;q=1.0", "gzip", "zstd"},
		{"gzip;q=0.9,zstd;q=0.9", "zstd", "zstd"},
		{"identity;q=0.5, zstd;q=0.1", "", ""},
		{"identity;q=0.5, zstd", "zstd", "zstd"},
		{"identity, zstd", "zstd", "zstd"},
		{" zstd ; Q=0.001 ", "zstd", "zstd"},
		{"zstd;q=1.001", "", ""},
		{"zstd;q=2", "", ""},
		{"zstd;q=-1", "", ""},
		{"zstd;q=", "", ""},
		{"zstd;q=NaN", "", ""},
		{"zstd;q=x", "", ""},
		{"zstd;level=3", "", ""},
		{"zstd;", "", ""},
		{",,;,", "", ""},
	} {
		if got := preferredCoding([]string{tt.header}, textCodings); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.header, got, tt.want)
		}
		if got := preferredCoding([]string{tt.header}, frameCodings); got != tt.frames {
			t.Errorf("%q, of frames: got %q, want %q", tt.header, got, tt.frames)
		}
	}
	if got := preferredCoding([]string{"br", "gzip", "zstd"}, textCodings); got != "zstd" {
		t.Errorf("three header fields: got %q, want zstd", got)
	}
}

func TestTextIsEncodedIfShorter(t *testing.T) {
	for _, tt := range []struct {
		what, text string
		want       bool
	}{
		{"short", strings.Repeat("x", minCoded-1), false},
		{"long", strings.Repeat("x", minCoded), true},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept-Encoding", "gzip")
		h := http.Header{}
		c := newText([]byte(tt.text)).choose(h, r)
		if got := h.Get("Content-Encoding") == "gzip"; got != tt.want || len(c.body) > len(tt.text) || got != (h.Get("Vary") != "") {
			t.Errorf("%s: got headers %v and %d bytes", tt.what, h, len(c.body))
		}
	}
}

// TestFailureHasNoCoding fails at the first byte of what was to be sent with a Content-Encoding.
func TestFailureHasNoCoding(t *testing.T) {
	g := &Gateway{log: slog.New(slog.DiscardHandler)}
	rec := httptest.NewRecorder()
	w, r := &response{ResponseWriter: rec}, httptest.NewRequest("GET", "/", nil)
	w.Header().Set("Content-Encoding", codingZstd)
	_, err := w.serve(r, &content{size: 9, etag: `"x"`, coded: true, write: func(context.Context, io.Writer, int64, int64) error {
		return packfile.ErrCorrupt
	}})
	if !g.fail(w, r, err) || rec.Code != 404 || rec.Header()["Content-Encoding"] != nil || rec.Header()["Etag"] != nil {
		t.Errorf("got %d, headers %v", rec.Code, rec.Header())
	}
}
