package main

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == unsyncedName {
		fmt.Fprintln(os.Stderr, execUnsynced(os.Args[2:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A pipe cannot be synced, unless syncing does nothing.
func TestUnsynced(t *testing.T) {
	for _, test := range []struct {
		name    string
		command []string
		fails   bool
	}{
		{"as it is", []string{"sync", "/dev/stdin"}, true},
		{"without syncs", []string{os.Args[0], unsyncedName, "sync", "/dev/stdin"}, false},
		{"other errors", []string{os.Args[0], unsyncedName, "sync", "/nowhere"}, true},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(test.command[0], test.command[1:]...)
		cmd.Stdin = r
		out, err := cmd.CombinedOutput()
		r.Close()
		w.Close()
		if (err != nil) != test.fails {
			t.Errorf("%s: got %v, want an error: %v\n%s", test.name, err, test.fails, out)
		}
	}
}

// Small paths differ, and their narinfos say what their NARs are.
func TestSmallPaths(t *testing.T) {
	b := new(bench)
	paths, err := b.makeSmallPaths(t.TempDir() + "/small")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(distinct([]generation{{paths: paths}}, byNarinfo)); n != smallPaths {
		t.Errorf("got %d distinct paths, want %d", n, smallPaths)
	}
	for _, p := range paths {
		f := fields(p.text)
		info, err := os.Stat(p.file)
		if err != nil {
			t.Fatal(err)
		}
		if f["NarSize"] != fmt.Sprint(info.Size()) || f["NarHash"] != p.narHash || f["URL"] != p.nar {
			t.Fatalf("narinfo of a NAR of %d bytes, %s:\n%s", info.Size(), p.narHash, p.text)
		}
	}
}
