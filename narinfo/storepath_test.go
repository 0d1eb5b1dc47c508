package narinfo

import (
	"slices"
	"strings"
	"testing"
)

const testHashPart = "26xbg1ndr7hbcncrlf9nhx5is2b25d13"

func TestStorePath(t *testing.T) {
	const base = testHashPart + "-hello-2.12"
	for _, storeDir := range []string{"/nix/store", "/gnu/store", "/a"} {
		p, err := ParseStorePath(storeDir, storeDir+"/"+base)
		if err != nil {
			t.Fatal(err)
		}
		if p.HashPart() != testHashPart || p.Name() != "hello-2.12" || p.String() != base || p.Path(storeDir) != storeDir+"/"+base {
			t.Errorf("got %q, %q, %q, %q", p.HashPart(), p.Name(), p, p.Path(storeDir))
		}
		if p.IsZero() || p.IsDerivation() {
			t.Errorf("%v: IsZero %v, IsDerivation %v", p, p.IsZero(), p.IsDerivation())
		}
	}
	if drv, err := ParseBaseName(base + ".drv"); err != nil || !drv.IsDerivation() {
		t.Errorf("got %v, %v, want a derivation", drv, err)
	}
	if !(StorePath{}).IsZero() {
		t.Error("the zero StorePath is something")
	}
}

func TestStorePathNames(t *testing.T) {
	for _, name := range []string{
		"x", "0", "-", "--", "+", "_", "?", "=", "a?b=c+d", "Az09+-._?=", ".foo", "..foo", "...", ".a-b", "a-.", "a..", "x.drv",
		"-.", strings.Repeat("n", 211),
	} {
		if p, err := ParseBaseName(testHashPart + "-" + name); err != nil || p.Name() != name {
			t.Errorf("%q: got %q, %v", name, p, err)
		}
	}
	for _, name := range []string{
		"", ".", "..", ".-", "..-", ".-a", "..-a", strings.Repeat("n", 212),
		"a b", "a/b", "a\n", "a\r", "a\x00", "é", "\xff", "a:b", "a,b", "a~b", "a;b", "*",
	} {
		if p, err := ParseBaseName(testHashPart + "-" + name); err == nil {
			t.Errorf("%q: got %q, want an error", name, p)
		}
	}
}

func TestStorePathPackage(t *testing.T) {
	for _, c := range []struct{ name, pkg, version string }{
		{"hello-2.12.1", "hello", "2.12.1"},
		{"glibc-2.40-66-dev", "glibc", "2.40-66-dev"},
		{"python3.11-requests-2.31.0", "python3.11-requests", "2.31.0"},
		{"nix-cache", "nix-cache", ""},
		{"source", "source", ""},
		{"x-", "x-", ""},
		{"bash-interactive-5.2p37-man", "bash-interactive", "5.2p37-man"},
		{"a-_b", "a", "_b"},
		{"perl5.38.2-Test-1", "perl5.38.2-Test", "1"},
	} {
		p, err := ParseBaseName(testHashPart + "-" + c.name)
		if err != nil {
			t.Fatal(err)
		}
		if p.Package() != c.pkg || p.Version() != c.version {
			t.Errorf("%s: got %q and %q, want %q and %q", c.name, p.Package(), p.Version(), c.pkg, c.version)
		}
	}
}

func TestStorePathRefused(t *testing.T) {
	const good = "/nix/store/" + testHashPart + "-x"
	for _, path := range []string{
		"", "/", "/nix/store", "/nix/store/", good[1:], "/nix/store//" + testHashPart + "-x", good + "/", good + "/bin",
		"/nix/storeX" + testHashPart + "-x", "/nix/stor/" + testHashPart + "-x", "/gnu/store/" + testHashPart + "-x",
		"/nix/store/" + testHashPart, "/nix/store/" + testHashPart + "-", "/nix/store/" + testHashPart + "_x",
		"/nix/store/" + testHashPart[1:] + "-x", "/nix/store/0" + testHashPart + "-x",
		"/nix/store/" + strings.ToUpper(testHashPart) + "-x",
		"/nix/store/" + strings.Replace(testHashPart, "x", "e", 1) + "-x",
	} {
		if p, err := ParseStorePath("/nix/store", path); err == nil {
			t.Errorf("%q: got %q, want an error", path, p)
		}
	}
	if p, err := ParseBaseName(good); err == nil {
		t.Errorf("full path as base name: got %q, want an error", p)
	}
}

func TestStorePathCompare(t *testing.T) {
	paths := []StorePath{{testHashPart + "-b"}, {"z" + testHashPart[1:] + "-a"}, {"0" + testHashPart[1:] + "-z"}, {testHashPart + "-a"}, {testHashPart + "-B"}}
	slices.SortFunc(paths, StorePath.Compare)
	want := []StorePath{{"0" + testHashPart[1:] + "-z"}, {testHashPart + "-B"}, {testHashPart + "-a"}, {testHashPart + "-b"}, {"z" + testHashPart[1:] + "-a"}}
	if !slices.Equal(paths, want) {
		t.Errorf("got %v, want %v", paths, want)
	}
}
