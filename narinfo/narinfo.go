// Package narinfo reads, writes and signs narinfos, the text records that binary
// caches keep of store paths, and the smaller formats inside them: nix32, hashes,
// store paths, keys and signatures.
//
// It takes what the parsers of Nix 2.8 and later take, traps included, and writes
// what they all understand.
package narinfo

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

var (
	// ErrCorrupt says that a text is not a narinfo that Nix would use.
	ErrCorrupt = errors.New("corrupt narinfo")

	// ErrFingerprint says that two narinfos are not about the same thing.
	ErrFingerprint = errors.New("fingerprints differ")
)

// NarInfo is the record of one store path. Only StorePath, NarHash, NarSize and
// References are signed.
type NarInfo struct {
	StorePath   StorePath
	URL         string // of the compressed NAR, relative to the cache or absolute; never empty
	Compression string // of the file at URL; Parse does not check that it is known

	// FileHash and FileSize, in bytes, describe the file at URL. Both are optional:
	// zero when absent. No Nix verifies FileHash.
	FileHash Hash
	FileSize uint64

	NarHash [32]byte // SHA-256 of the NAR
	NarSize uint64   // in bytes; never 0

	// References may include StorePath itself. Parse sorts them and drops
	// duplicates, and so do Append and Fingerprint.
	References []StorePath
	Deriver    StorePath // zero when unknown

	// Sigs are the well-formed signatures, whether or not they verify. Parse sorts
	// them and drops duplicates, and so does Append.
	Sigs []Signature

	// DroppedSigs counts the Sig lines that Parse left out because they are
	// malformed. Up to 2.33 Nix carried such lines along; from 2.34 on one of them
	// makes it refuse the whole narinfo. They are never written.
	DroppedSigs int

	CA string // content address, empty when absent; Parse checks its syntax
}

// Append appends the text of n to dst: fields in the order in which Nix writes them,
// those that are unset left out, except that there is always a References line.
// The strings in n must be single lines, and n as complete as Parse demands.
// (Nix: src/libstore/nar-info.cc.)
func (n *NarInfo) Append(dst []byte, storeDir string) []byte {
	field := func(name, value string) {
		dst = append(dst, name...)
		dst = append(dst, ": "...)
		dst = append(dst, value...)
		dst = append(dst, '\n')
	}
	field("StorePath", n.StorePath.Path(storeDir))
	field("URL", n.URL)
	field("Compression", n.Compression)
	if !n.FileHash.IsZero() {
		field("FileHash", n.FileHash.String())
	}
	if n.FileSize > 0 {
		field("FileSize", strconv.FormatUint(n.FileSize, 10))
	}
	field("NarHash", NewHash(SHA256, n.NarHash[:]).String())
	field("NarSize", strconv.FormatUint(n.NarSize, 10))

	// The space is written even if nothing follows: without it, readers take the
	// next line for the value.
	dst = append(dst, "References:"...)
	refs := sortedSet(n.References, StorePath.Compare)
	for _, ref := range refs {
		dst = append(dst, ' ')
		dst = append(dst, ref.base...)
	}
	if len(refs) == 0 {
		dst = append(dst, ' ')
	}
	dst = append(dst, '\n')

	if !n.Deriver.IsZero() {
		field("Deriver", n.Deriver.String())
	}
	for _, sig := range sortedSet(n.Sigs, Signature.Compare) {
		field("Sig", sig.String())
	}
	if n.CA != "" {
		field("CA", n.CA)
	}
	return dst
}

// Text returns what Append appends.
func (n *NarInfo) Text(storeDir string) string { return string(n.Append(nil, storeDir)) }

// Fingerprint returns the text that signatures sign. It is of one line, without a
// line feed. (Nix: src/libstore/path-info.cc.)
func (n *NarInfo) Fingerprint(storeDir string) string {
	var b strings.Builder
	b.WriteString("1;")
	b.WriteString(n.StorePath.Path(storeDir))
	b.WriteByte(';')
	b.WriteString(NewHash(SHA256, n.NarHash[:]).String())
	b.WriteByte(';')
	b.WriteString(strconv.FormatUint(n.NarSize, 10))
	b.WriteByte(';')
	for i, ref := range sortedSet(n.References, StorePath.Compare) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(ref.Path(storeDir))
	}
	return b.String()
}

// Sign adds key's signature, unless it is there.
func (n *NarInfo) Sign(storeDir string, key PrivateKey) {
	n.addSigs(key.Sign(n.Fingerprint(storeDir)))
}

// Verify returns the first of keys that has signed n. Keys of one name, and any
// number of bad signatures, do not hide a good one.
func (n *NarInfo) Verify(storeDir string, keys []PublicKey) (PublicKey, bool) {
	fingerprint := n.Fingerprint(storeDir)
	for _, key := range keys {
		for _, sig := range n.Sigs {
			if key.Verify(fingerprint, sig) {
				return key, true
			}
		}
	}
	return PublicKey{}, false
}

// MergeSigs adds the signatures of other, a record of the same path and contents.
// The result does not depend on the order of merges. If the fingerprints differ, it
// returns ErrFingerprint and changes nothing.
func (n *NarInfo) MergeSigs(storeDir string, other *NarInfo) error {
	if n.Fingerprint(storeDir) != other.Fingerprint(storeDir) {
		return fmt.Errorf("merge signatures of %s: %w", n.StorePath, ErrFingerprint)
	}
	n.addSigs(other.Sigs...)
	return nil
}

func (n *NarInfo) addSigs(sigs ...Signature) {
	n.Sigs = sortedSet(slices.Concat(n.Sigs, sigs), Signature.Compare)
}

// sortedSet returns the elements of s in order and without duplicates. It leaves s as
// it is, and returns it if it is such a set already.
func sortedSet[T comparable](s []T, compare func(a, b T) int) []T {
	isSet := true
	for i := 1; i < len(s) && isSet; i++ {
		isSet = compare(s[i-1], s[i]) < 0
	}
	if isSet {
		return s
	}
	s = slices.Clone(s)
	slices.SortFunc(s, compare)
	return slices.Compact(s)
}
