package dedupd_test

import (
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// needs returns where a program is. Without it the test is skipped, or fails in CI.
func needs(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", program)
	} else if err != nil {
		t.Skipf("%s is missing", program)
	}
	return path
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestNixFilesParse parses the flake and the module, which also finds variables that
// nobody has defined. Evaluating them would need Nixpkgs, and so a network.
func TestNixFilesParse(t *testing.T) {
	needs(t, "nix-instantiate")
	files, err := filepath.Glob("nix/*.nix")
	if err != nil || len(files) == 0 {
		t.Fatalf("got %q (%v)", files, err)
	}
	for _, file := range append(files, "flake.nix") {
		if out, err := exec.Command("nix-instantiate", "--parse", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// TestSystemdUnits has systemd find what it does not understand, and what the service
// might do and need not.
func TestSystemdUnits(t *testing.T) {
	analyze := needs(t, "systemd-analyze")
	dir := t.TempDir()
	for _, name := range []string{"dedupd.service", "dedupd.socket"} {
		text := strings.ReplaceAll(readFile(t, "contrib/systemd/"+name), "/usr/bin/dedupd", "/bin/true")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unit := filepath.Join(dir, "dedupd.service")
	for _, args := range [][]string{
		{"verify", "--man=no", unit, filepath.Join(dir, "dedupd.socket")},
		{"security", "--no-pager", "--offline=true", "--threshold=15", unit},
	} {
		if out, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
	}
}

// TestModuleIsHardened compares what the NixOS module tells systemd with the unit.
func TestModuleIsHardened(t *testing.T) {
	module := readFile(t, "nix/module.nix")
	_, service, _ := strings.Cut(readFile(t, "contrib/systemd/dedupd.service"), "\n[Service]\n")
	settings := regexp.MustCompile(`(?m)^([A-Z]\w+)=(.*)$`).FindAllStringSubmatch(service, -1)
	if len(settings) < 30 {
		t.Fatalf("found %q in the unit", settings)
	}
	for _, m := range settings {
		key, value := m[1], m[2]
		set := regexp.MustCompile(`(?m)^        ` + key + ` = (.*);$`).FindStringSubmatch(module)
		switch {
		case key == "Environment" || key == "ExecStart" || key == "WantedBy":
		case set == nil:
			t.Errorf("the module does not set %s", key)
		case strings.HasPrefix(set[1], "["):
			for word := range strings.FieldsSeq(value) {
				if !strings.Contains(set[1], word) {
					t.Errorf("%s: the module has %s, the unit %q", key, set[1], value)
				}
			}
		case strings.Trim(set[1], `"`) != strings.Replace(value, "yes", "true", 1):
			t.Errorf("%s: the module has %s, the unit %q", key, set[1], value)
		}
	}
}

// TestImageIsStatic builds as the Dockerfile does, for an image with nothing else in it.
func TestImageIsStatic(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	line := regexp.MustCompile(`(?m)^RUN (CGO_ENABLED=0 go build .*)$`).FindStringSubmatch(readFile(t, "Dockerfile"))
	if line == nil {
		t.Fatal("the Dockerfile builds nothing")
	}
	binary := filepath.Join(t.TempDir(), "dedupd")
	cmd := exec.Command("sh", "-c", strings.Replace(line[1], "/out/dedupd", binary, 1))
	cmd.Env = append(os.Environ(), "VERSION=1.2.3")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line[1], err, out)
	}
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary has a segment of type %v", p.Type)
		}
	}
	if out, err := exec.Command(binary, "version").Output(); err != nil || !strings.HasPrefix(string(out), "dedupd 1.2.3 ") {
		t.Errorf("got version %q (%v)", out, err)
	}
}

// TestTroubleshooting looks in the source for the messages that docs/operations.md says
// what to do about.
func TestTroubleshooting(t *testing.T) {
	var source strings.Builder
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			source.WriteString(readFile(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(readFile(t, "docs/operations.md"), "## When something is wrong")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := regexp.MustCompile(`(?m)^\| (`+"`"+`.*?`+"`"+`) \|`).FindAllStringSubmatch(section, -1)
	if len(rows) < 15 {
		t.Fatalf("found %d messages", len(rows))
	}
	for _, row := range rows {
		for message := range strings.SplitSeq(strings.Trim(row[1], "`"), "`, `") {
			if !strings.Contains(source.String(), message) {
				t.Errorf("nothing says %q", message)
			}
		}
	}
}
