package dedupd_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/dedupd/dedupd"

// layers are the packages, from those that know everything to those that know nothing
// of dedupd. A package imports from the layers below its own only.
var layers = [][]string{
	{"cmd/dedupd", "benchmarks"},
	{"plan"},
	{"gateway", "migrate", "report"},
	{"pull", "push"},
	{"metrics", "site"},
	{"chunkstore", "nixstore", "access"},
	{"packfile", "index", "upstream", "rangecache", "encodings", "nixexport"},
	{"bucket", "nar", "narinfo", "compression", "prices", "chart"},
}

// pure packages do no I/O beyond the readers and writers that they are given.
var pure = []string{"packfile", "nar", "narinfo", "chart", "nixexport"}

func TestImportsPointDown(t *testing.T) {
	imports := readImports(t)
	for pkg, imported := range imports {
		layer := layerOf(pkg)
		if layer < 0 && testSupport(pkg) == "" {
			t.Errorf("package %s has no place in the layers of this test", pkg)
			continue
		}
		for _, imp := range imported {
			own, ok := strings.CutPrefix(imp, module+"/")
			switch {
			case !ok:
			case testSupport(own) != "" && testSupport(pkg) != ".":
				t.Errorf("%s imports %s, which is for tests", pkg, own)
			case testSupport(pkg) == own:
			case layer >= 0 && layerOf(own) <= layer:
				t.Errorf("%s imports %s, which is not below it", pkg, own)
			}
		}
	}
}

func TestPurePackagesDoNoIO(t *testing.T) {
	imports := readImports(t)
	for _, pkg := range pure {
		for _, imp := range imports[pkg] {
			switch first, _, _ := strings.Cut(imp, "/"); {
			case first == "os", first == "net", first == "syscall", imp == "io/ioutil", imp == "path/filepath",
				strings.HasPrefix(imp, "golang.org/x/sys/"):
				t.Errorf("%s imports %s: it does no I/O of its own", pkg, imp)
			}
		}
	}
}

// layerOf returns the index of pkg's layer, 0 being the highest, or -1.
func layerOf(pkg string) int {
	return slices.IndexFunc(layers, func(l []string) bool { return slices.Contains(l, pkg) })
}

// testSupport returns the package that pkg helps to test: bucket for what is in it and ends in "test",
// the whole module for faultfs and simulation, and "" for packages that are not of this kind.
func testSupport(pkg string) string {
	if pkg == "faultfs" || pkg == "simulation" {
		return "."
	}
	if parent := path.Dir(pkg); parent != "." && strings.HasSuffix(pkg, "test") {
		return parent
	}
	return ""
}

// readImports returns what the files of every package of the module import, for all
// systems and without tests, by package path below the module's.
func readImports(t *testing.T) map[string][]string {
	t.Helper()
	imports := make(map[string][]string)
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir(), !strings.HasSuffix(name, ".go"), strings.HasSuffix(name, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(filepath.Dir(name))
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if !slices.Contains(imports[pkg], imp) {
				imports[pkg] = append(imports[pkg], imp)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(imports) == 0 {
		t.Fatal("no packages found: the test runs in the wrong directory")
	}
	return imports
}
