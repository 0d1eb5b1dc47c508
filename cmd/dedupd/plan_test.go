package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/plan"
)

// TestPlan plans the import of a cache of paths so small that they have no chunks.
func TestPlan(t *testing.T) {
	dir, infos := makeCache(t, 20)
	page := filepath.Join(t.TempDir(), "plan.html")
	var out, log bytes.Buffer
	args := []string{"plan", "file://" + dir, "--sample", "50%", "--growth", "0.5", "--egress", "2", "--html", page}
	if err := run(t.Context(), args, nil, &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	if !strings.Contains(out.String(), "20 paths") || strings.Contains(out.String(), "NaN") {
		t.Errorf("got\n%s", &out)
	}
	if html, err := os.ReadFile(page); err != nil || !bytes.Contains(html, []byte("</html>")) {
		t.Errorf("got %v and a page of %d bytes", err, len(html))
	}
	out.Reset()
	args = []string{"plan", "file://" + dir, "--closure-of", infos[9].StorePath.String(), "--json", "--provider", "wasabi"}
	if err := run(t.Context(), args, nil, &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	var r plan.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Paths != 10 || r.Provider != "wasabi" {
		t.Errorf("got %v, %d paths at %s, want 10", err, r.Paths, r.Provider)
	}
	for _, bad := range []string{"--sample=x", "--sample=300%", "--provider=nobody", "--narinfos=-1"} {
		if err := run(t.Context(), []string{"plan", "file://" + dir, bad}, nil, &out, &log); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
