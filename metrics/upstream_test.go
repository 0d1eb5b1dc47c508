package metrics_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/metrics"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// A fake is an upstream that has one file, and whose narinfos cannot be had.
type fake struct{ closed int }

func (f *fake) Name() string { return "https://up.example" }

func (f *fake) NarInfo(context.Context, string) (*narinfo.NarInfo, error) {
	return nil, errors.New("unreachable")
}

func (f *fake) NAR(context.Context, *narinfo.NarInfo, int64) (io.ReadCloser, int64, error) {
	return nil, 0, upstream.ErrNotFound
}

func (f *fake) File(context.Context, string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("12345")), nil
}

func (f *fake) Close() error {
	f.closed++
	return nil
}

func TestSource(t *testing.T) {
	m, f := metrics.New(""), &fake{}
	s := m.Source(f)
	s.NarInfo(t.Context(), "")
	s.NarInfo(t.Context(), "")
	s.NAR(t.Context(), nil, 0)
	body, err := s.File(t.Context(), "log/x")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(body); err != nil || string(text) != "12345" {
		t.Errorf("got %q (%v)", text, err)
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`dedupd_upstream_request_seconds_count{kind="narinfo",outcome="failed",upstream="https://up.example"} 2`,
		`dedupd_upstream_request_seconds_count{kind="nar",outcome="absent",upstream="https://up.example"} 1`,
		`dedupd_upstream_request_seconds_count{kind="file",outcome="ok",upstream="https://up.example"} 1`,
		`dedupd_upstream_received_bytes_total{upstream="https://up.example"} 5`,
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("there is no %s in\n%s", want, w.Body)
		}
	}
	if err := s.(io.Closer).Close(); err != nil || f.closed != 1 {
		t.Errorf("closed %d times (%v), want once", f.closed, err)
	}
}
