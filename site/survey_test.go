package site

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/narinfo"
)

func storePath(t *testing.T, digit byte, name string) narinfo.StorePath {
	t.Helper()
	p, err := narinfo.ParseBaseName(strings.Repeat(string(digit), narinfo.HashPartLen) + "-" + name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNames(t *testing.T) {
	n := &names{max: 150}
	for i, name := range []string{"hello-2.12", "Othello-1", "glibc-2.40", "left-out-because-there-is-no-room-left-for-such-a-long-name"} {
		n.add(storePath(t, byte('0'+i), name))
	}
	for what, want := range map[string]string{
		"hello": "01", "HELLO-": "01", "2.": "02", "0-hello": "0", "1111": "1", "out": "", "\n": "012", "": "",
	} {
		var got strings.Builder
		n.search(what, func(hashPart string) bool {
			got.WriteByte(hashPart[0])
			return true
		})
		if got.String() != want && what != "\n" {
			t.Errorf("%q: got %q, want %q", what, got.String(), want)
		}
	}
	if n.left != 1 {
		t.Errorf("%d paths found no room, want 1", n.left)
	}
	calls := 0
	n.search("l", func(string) bool {
		calls++
		return false
	})
	if calls != 1 {
		t.Errorf("the search went on %d times after it was told not to", calls-1)
	}
}

func TestPackages(t *testing.T) {
	p := newPackages(10)
	for i := range 100 {
		p.add(storePath(t, '0', "large-1."+fmt.Sprint(i)), 1000)
		p.add(storePath(t, '1', fmt.Sprintf("small%d-1", i)), int64(i%7))
	}
	largest := p.largest(3)
	if len(largest) != 3 || largest[0] != (pkg{"large", 100, 100_000}) || !p.lossy || len(p.byName) > 10 {
		t.Errorf("got %+v of %d packages, lossy %v", largest, len(p.byName), p.lossy)
	}
}

func TestThin(t *testing.T) {
	now := time.Date(2026, 11, 20, 18, 30, 0, 0, time.UTC)
	var samples []Sample
	for d := 500 * 24 * time.Hour; d >= 0; d -= 20 * time.Minute {
		samples = append(samples, Sample{Time: now.Add(-d)})
	}
	kept := thin(samples, now)
	if len(kept) < 520 || len(kept) > 535 {
		t.Errorf("kept %d of %d samples, want about 358 + 168", len(kept), len(samples))
	}
	if again := thin(kept, now); !slices.Equal(again, kept) {
		t.Errorf("of %d samples that were thinned, %d are left", len(kept), len(again))
	}
	if age := now.Sub(kept[0].Time); age > dailyFor {
		t.Errorf("the oldest sample is of %v", age)
	}
	if got := thin([]Sample{{Time: now.Add(time.Hour)}}, now); len(got) != 0 {
		t.Errorf("a sample of the future was kept: %v", got)
	}
}

func TestHistoryFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), historyFile)
	if got, err := readHistory(path); err != nil || got != nil {
		t.Errorf("no file: got %v (%v)", got, err)
	}
	want := []Sample{{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Paths: 1, NARs: 2, Uploaded: 3, Stored: 4}}
	for range 2 {
		if err := writeHistory(path, want); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := readHistory(path); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 1 {
		t.Errorf("there are %d files (%v), want 1", len(files), err)
	}
	for _, damaged := range []string{"", "[", `{"a":1}`, strings.Repeat(" ", maxHistory) + "[]"} {
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readHistory(path); err == nil || got != nil {
			t.Errorf("%.10q: got %v (%v), want an error", damaged, got, err)
		}
	}
}

func TestFormats(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Second: "just now", 90 * time.Second: "90 seconds ago", 5 * time.Minute: "5 minutes ago", 50 * time.Hour: "50 hours ago",
	} {
		if got := formatAge(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
	for host, want := range map[string]string{"a.example": "a.example", "a.example:80": "a.example", "[::1]:8080": "[::1]", "[::1]": "[::1]", "10.0.0.1": "10.0.0.1", "x:": "x:"} {
		if got := machine(host); got != want {
			t.Errorf("machine of %s: got %q, want %q", host, got, want)
		}
	}
}

func TestTimeline(t *testing.T) {
	if newTimeline(nil) != nil {
		t.Error("there is a chart of nothing")
	}
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	var samples []Sample
	for i := range int64(100) {
		samples = append(samples, Sample{Time: start.Add(time.Duration(i) * time.Hour), NARs: i * 1e9, Uploaded: i * 2e8, Stored: i*2e8 + 1})
	}
	for _, n := range []int{1, 2, 100} {
		c := newTimeline(samples[100-n:])
		if len(c.Rows) == 0 || len(c.Rows) > maxRows || c.Rows[0] != samples[99] {
			t.Errorf("%d samples: the table has %d rows, the first of %v", n, len(c.Rows), c.Rows[0].Time)
		}
		if c.Chart == "" {
			t.Errorf("%d samples: there is no chart", n)
		}
	}
}
