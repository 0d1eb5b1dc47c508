package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/report"
)

// TestReport reports beside a server and without one, and wants the same.
func TestReport(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	dir := t.TempDir()
	args := []string{"--bucket", "file://" + filepath.Join(dir, "bucket"), "--state", filepath.Join(dir, "state")}
	if out, err := dedupd(t, "", append([]string{"report"}, args...)...); err == nil {
		t.Errorf("a report without a store: got %q, want an error", out)
	}
	cache, infos := makeCache(t, 5)
	if out, err := dedupd(t, "", append([]string{"import", "file://" + cache}, args...)...); err != nil {
		t.Fatalf("import: %v\n%s", err, out)
	}
	names := []string{"paths.csv", "paths.parquet", "packages.csv", "report.html"}
	flags := append([]string{"report", "--json", "--csv", names[0], "--parquet", names[1], "--packages", names[2], "--html", names[3]}, args...)
	make := func(name string) (*report.Report, map[string][]byte) {
		t.Helper()
		t.Chdir(t.TempDir())
		out, err := dedupd(t, "", flags...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		made, files := new(report.Report), map[string][]byte{}
		if err := json.Unmarshal([]byte(out), made); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for _, file := range names {
			if files[file], err = os.ReadFile(file); err != nil {
				t.Error(err)
			}
		}
		if left, _ := filepath.Glob("*.new"); len(left) > 0 {
			t.Errorf("%s: %q is left", name, left)
		}
		return made, files
	}
	alone, want := make("alone")
	if alone.Paths != 5 || alone.Packages != 1 || len(alone.Largest) == 0 || !bytes.Contains(want["report.html"], []byte(alone.Largest[0].Name)) {
		t.Errorf("the report has nothing: %+v", alone)
	}
	startServer(t, args...)
	asked, got := make("beside a server")
	if asked.Paths != alone.Paths || asked.UsedBytes != alone.UsedBytes {
		t.Errorf("got %+v, want %+v", asked, alone)
	}
	for _, name := range names[:3] {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s: got\n%q, want\n%q", name, got[name], want[name])
		}
	}
	path := infos[4].StorePath.Path("/nix/store")
	out, err := dedupd(t, "", append([]string{"report", "--closure", path}, args...)...)
	if err != nil || !strings.Contains(out, filepath.Base(path)+"  5 ") {
		t.Errorf("%s is not in the report: %v\n%s", path, err, out)
	}
	for _, bad := range [][]string{{"--closure", "x"}, {"--closure", strings.Repeat("1", 32)}, {"--top", "0"}, {"--csv", "/does/not/exist"}} {
		if out, err := dedupd(t, "", append(append([]string{"report"}, bad...), args...)...); err == nil {
			t.Errorf("%q: got %q, want an error", bad, out)
		}
	}
}
