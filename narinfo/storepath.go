package narinfo

import (
	"fmt"
	"strings"
)

const (
	// HashPartLen is the length of a store path's hash part in characters.
	HashPartLen = 32

	// MaxNameLen is the length of the longest name of a store path.
	MaxNameLen = 211
)

// StorePath is a store path without the store directory:
// "<32 nix32 characters>-<name>". It is comparable. The zero StorePath is none.
type StorePath struct {
	base string
}

// ParseStorePath parses a full path: storeDir, a slash, and a base name. Nix would
// also take paths that only become this by removing surplus slashes and dots; no
// version writes them.
func ParseStorePath(storeDir, path string) (StorePath, error) {
	base, ok := strings.CutPrefix(path, storeDir+"/")
	if !ok {
		return StorePath{}, fmt.Errorf("path %q is not in %s", path, storeDir)
	}
	return ParseBaseName(base)
}

// ParseBaseName parses a store path without its store directory. It accepts what
// current versions of Nix do, except that they do not look at the character behind
// the hash part, which must be a dash. (Nix: src/libstore/path.cc.)
func ParseBaseName(base string) (StorePath, error) {
	if len(base) <= HashPartLen || base[HashPartLen] != '-' {
		return StorePath{}, fmt.Errorf("store path %q is not a hash part, a dash and a name", base)
	}
	if !IsHashPart(base[:HashPartLen]) {
		return StorePath{}, fmt.Errorf("store path %q: hash part is not nix32", base)
	}
	if err := checkName(base[HashPartLen+1:]); err != nil {
		return StorePath{}, fmt.Errorf("store path %q: %w", base, err)
	}
	return StorePath{base}, nil
}

// IsHashPart reports whether s can be a store path's hash part.
func IsHashPart(s string) bool {
	if len(s) != HashPartLen {
		return false
	}
	for i := range len(s) {
		if nix32Digits[s[i]] == noDigit {
			return false
		}
	}
	return true
}

func checkName(name string) error {
	if name == "" || len(name) > MaxNameLen {
		return fmt.Errorf("name of %d characters", len(name))
	}
	// Nix 2.8 allowed these, 2.3 no leading dot at all.
	if first, _, _ := strings.Cut(name, "-"); first == "." || first == ".." {
		return fmt.Errorf("name starts with the component %q", first)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case strings.IndexByte("+-._?=", c) >= 0:
		default:
			return fmt.Errorf("name has illegal character %q", c)
		}
	}
	return nil
}

// IsZero reports whether p is none.
func (p StorePath) IsZero() bool { return p.base == "" }

// String returns the base name, as References and Deriver have it.
func (p StorePath) String() string { return p.base }

// Path returns the full path.
func (p StorePath) Path(storeDir string) string { return storeDir + "/" + p.base }

// HashPart returns the 32 characters that a narinfo is named after.
func (p StorePath) HashPart() string { return p.base[:HashPartLen] }

// Name returns what follows the hash part and the dash.
func (p StorePath) Name() string { return p.base[HashPartLen+1:] }

// Package returns the name without the version, and Version what follows it, which is
// empty if there is none: the name ends before the first dash that no letter follows.
// What the output is called belongs to the version. (Nix: parseDrvName.)
func (p StorePath) Package() string {
	name, _ := splitName(p.Name())
	return name
}

// Version returns what Package leaves out, without the dash.
func (p StorePath) Version() string {
	_, version := splitName(p.Name())
	return version
}

func splitName(name string) (pkg, version string) {
	for i := 0; i+1 < len(name); i++ {
		if c := name[i+1] | 0x20; name[i] == '-' && (c < 'a' || c > 'z') {
			return name[:i], name[i+1:]
		}
	}
	return name, ""
}

// IsDerivation reports whether p is a derivation's path.
func (p StorePath) IsDerivation() bool { return strings.HasSuffix(p.base, ".drv") }

// Compare orders store paths by the bytes of their base names, as Nix does.
func (p StorePath) Compare(q StorePath) int { return strings.Compare(p.base, q.base) }
