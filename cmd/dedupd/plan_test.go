package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
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

// TestPlanFrom plans the import of a cache from everywhere, which begins with the same.
func TestPlanFrom(t *testing.T) {
	dir, _ := makeCache(t, 20)
	var want plan.Report
	for _, source := range sources {
		t.Run(source.name, func(t *testing.T) {
			if testing.Short() && source.name != "directory" {
				t.Skip("long")
			}
			args, _ := source.open(t, dir)
			args = slices.DeleteFunc(args, func(arg string) bool { return arg == "--with-files" })
			out, err := dedupd(t, "", append([]string{"plan", "--json"}, args...)...)
			var r plan.Report
			if jsonErr := json.Unmarshal([]byte(out), &r); err != nil || jsonErr != nil {
				t.Fatalf("got %s, %v", out, err)
			}
			if source.name == "directory" {
				want = r
			}
			if r.Paths != 20 || r.Stored.Value == 0 || r.NARBytes != want.NARBytes || r.FileBytes != want.FileBytes || r.Sample.NARs != want.Sample.NARs {
				t.Errorf("got %s, want %+v", out, want)
			}
			if lists := map[string]int64{"directory": 1, "S3": 1}[source.name]; r.Requests.List != lists {
				t.Errorf("got %d lists, want %d", r.Requests.List, lists)
			}
		})
	}
	if _, err := dedupd(t, "", "plan", "file://"+dir, "--paths", "plan.go"); err == nil {
		t.Error("a file that has no paths: no error")
	}
	if _, err := dedupd(t, "0123456789abcdfghijklmnpqrsvwxyz", "plan", "file://"+dir, "--paths", "-"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a path that is not there: got %v", err)
	}
}
