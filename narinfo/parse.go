package narinfo

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Parse parses a narinfo for a store at storeDir, as the C++ readers of Nix do
// (Nix: src/libstore/nar-info.cc), which has consequences beyond "Name: value" lines:
//
//   - The value starts two characters behind the first colon, whatever they are, and
//     the line feed that ends it is looked for from there. So "References:" without a
//     space takes the next line for its value.
//   - A blank line becomes a part of the next field's name, which is then unknown.
//   - A carriage return becomes a part of the value.
//   - Unknown fields are ignored, but a line without a colon or line feed is an error.
//   - Of fields given twice the last one counts, but References and CA may not be given
//     again after a value that was not empty.
//   - Without Compression, or with an empty one, it is bzip2.
//   - "unknown-deriver" does not undo a Deriver given before.
//
// What only some versions refuse is treated as documented with [NarInfo]. All errors
// are ErrCorrupt. Parse takes linear time, but callers should limit len(data); memory
// of the result is shared with one copy of it.
func Parse(data []byte, storeDir string) (*NarInfo, error) {
	p := parser{storeDir: storeDir}
	text := string(data)
	for line := 1; text != ""; line++ {
		name, value, rest, err := cutField(text)
		if err == nil {
			err = p.set(name, value)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrCorrupt, line, err)
		}
		text = rest
	}
	if err := p.finish(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return &p.info, nil
}

// cutField cuts the first field off text, with the algorithm of the C++ readers.
func cutField(text string) (name, value, rest string, err error) {
	name, after, ok := strings.Cut(text, ":")
	if !ok {
		return "", "", "", errors.New("no colon")
	}
	if len(after) > 0 {
		value, rest, ok = strings.Cut(after[1:], "\n")
	}
	if len(after) == 0 || !ok {
		return "", "", "", errors.New("no line feed")
	}
	return name, value, rest, nil
}

type parser struct {
	storeDir    string
	info        NarInfo
	haveNarHash bool
}

// set takes in one field.
func (p *parser) set(name, value string) (err error) {
	n := &p.info
	switch name {
	case "StorePath":
		n.StorePath, err = ParseStorePath(p.storeDir, value)
	case "URL":
		n.URL = value
	case "Compression":
		n.Compression = value
	case "FileHash":
		n.FileHash, err = ParseHash(value)
	case "FileSize":
		n.FileSize, err = parseSize(value)
	case "NarHash":
		err = p.setNarHash(value)
	case "NarSize":
		n.NarSize, err = parseSize(value)
	case "References":
		err = p.setReferences(value)
	case "Deriver":
		if value != "unknown-deriver" {
			n.Deriver, err = ParseBaseName(value)
		}
	case "Sig":
		if sig, err := ParseSignature(value); err == nil {
			n.Sigs = append(n.Sigs, sig)
		} else {
			n.DroppedSigs++
		}
	case "CA":
		if n.CA != "" {
			return errors.New("a second CA")
		}
		n.CA, err = value, checkCA(value)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (p *parser) setNarHash(value string) error {
	h, err := ParseHash(value)
	if err != nil {
		return err
	}
	if h.Algo() != SHA256 {
		return fmt.Errorf("%v instead of sha256", h.Algo())
	}
	p.info.NarHash = [32]byte(h.Sum())
	p.haveNarHash = true
	return nil
}

func (p *parser) setReferences(value string) error {
	if len(p.info.References) > 0 {
		return errors.New("given again")
	}
	for base := range strings.SplitSeq(value, " ") {
		if base == "" {
			continue
		}
		ref, err := ParseBaseName(base)
		if err != nil {
			return err
		}
		p.info.References = append(p.info.References, ref)
	}
	return nil
}

// finish does what needs all fields.
func (p *parser) finish() error {
	n := &p.info
	switch {
	case n.StorePath.IsZero():
		return errors.New("no StorePath")
	case n.URL == "":
		return errors.New("no URL")
	case !p.haveNarHash:
		return errors.New("no NarHash")
	case n.NarSize == 0:
		return errors.New("no NarSize")
	}
	if n.Compression == "" {
		n.Compression = "bzip2"
	}
	n.References = sortedSet(n.References, StorePath.Compare)
	n.Sigs = sortedSet(n.Sigs, Signature.Compare)
	return nil
}

// parseSize parses a decimal number. Nix takes leading zeros and a plus sign, but no
// minus and no white space.
func parseSize(s string) (uint64, error) {
	return strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, 64)
}

// checkCA checks the syntax of a content address that may be empty:
//
//	text:sha256:<digest>
//	fixed:[r:|git:]<algo>:<digest>
//
// (Nix: src/libstore/content-address.cc.)
func checkCA(s string) error {
	if s == "" {
		return nil
	}
	method, rest, _ := strings.Cut(s, ":")
	switch method {
	case "text":
		// Newer versions take other algorithms here. 2.8 does not, and they are
		// of no use: store paths of that kind are made of SHA-256.
		if !strings.HasPrefix(rest, "sha256:") {
			return fmt.Errorf("%q is not text:sha256:<digest>", s)
		}
	case "fixed":
		if after, ok := strings.CutPrefix(rest, "r:"); ok {
			rest = after
		} else if after, ok := strings.CutPrefix(rest, "git:"); ok {
			rest = after
		}
	default:
		return fmt.Errorf("%q begins neither with text: nor with fixed: as it must", s)
	}
	name, digest, ok := strings.Cut(rest, ":")
	if !ok {
		return fmt.Errorf("%q has no <algo>:<digest>", s)
	}
	algo, err := parseAlgo(name)
	if err != nil {
		return err
	}
	_, err = parseDigest(algo, digest)
	return err
}
