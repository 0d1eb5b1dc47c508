package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// TestManPages looks for every command and every setting, and lets man judge the form.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", "/somebodys-home")
	if out, err := dedupd(t, "", "docs", dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), `\-`, "-")
	}
	for _, cmd := range rootCommand().Commands() {
		if cmd.IsAvailableCommand() {
			read("dedupd-" + cmd.Name() + ".1")
		}
	}
	settings, serve := read("dedupd.toml.5"), read("dedupd-serve.1")
	for _, f := range defaultSettings().fields() {
		if !strings.Contains(settings, f.name) || !strings.Contains(settings, f.variable()) {
			t.Errorf("dedupd.toml(5) does not have %s", f.name)
		}
		if !strings.Contains(serve, "--"+f.name) {
			t.Errorf("dedupd-serve(1) does not have --%s", f.name)
		}
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.[15]"))
	if err != nil || len(pages) < 5 {
		t.Fatalf("got pages %q (%v)", pages, err)
	}
	for _, page := range pages {
		if text := read(filepath.Base(page)); strings.Contains(text, "somebodys") {
			t.Errorf("%s knows where it was made", page)
		}
	}
	needs(t, "man")
	for _, page := range pages {
		cmd := exec.Command("man", "--warnings", "-E", "UTF-8", "-l", page)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANPAGER=cat")
		var warnings bytes.Buffer
		cmd.Stderr = &warnings
		if out, err := cmd.Output(); err != nil || warnings.Len() > 0 || len(out) < 200 {
			t.Errorf("man %s: %v, %d bytes\n%s", filepath.Base(page), err, len(out), &warnings)
		}
	}
}

// TestExampleSettings holds the example to the defaults, and to being up to date.
func TestExampleSettings(t *testing.T) {
	var want bytes.Buffer
	writeExample(&want, defaultSettings())
	got, err := os.ReadFile("../../contrib/dedupd.toml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error(`contrib/dedupd.toml is not what it should be: run "make docs"`)
	}
	active := regexp.MustCompile(`(?m)^#(\S+ = )`).ReplaceAllString(strings.ReplaceAll(want.String(), "$XDG_DATA_HOME/dedupd", dataDir()), "$1")
	s := new(Settings)
	if md, err := toml.Decode(active, s); err != nil || len(md.Keys()) == 0 {
		t.Fatalf("%v in\n%s", err, active)
	}
	if want := defaultSettings(); !reflect.DeepEqual(s, want) {
		t.Errorf("without the comment signs it sets %+v, want %+v", s, want)
	}
}

func TestCompletion(t *testing.T) {
	for line, want := range map[string]string{
		"--splitter ":  "rabin\nfastcdc\n",
		"--log-level ": "debug\ninfo\nwarn\nerror\n",
		"--log-form":   "--log-format\t",
	} {
		out, err := dedupd(t, "", append([]string{"__complete", "serve"}, strings.Split(line, " ")...)...)
		if err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("serve %s: got %q (%v), want %q", line, out, err, want)
		}
	}
}

// needs skips the test, or fails it in CI, if a program is not there.
func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", program)
	}
	t.Skipf("%s is missing", program)
}
