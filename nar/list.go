package nar

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Listing is the table of contents of a NAR that binary caches publish as
// <hash part>.ls, version 1.
type Listing struct {
	Root *Node
}

// Node is one file of a Listing.
type Node struct {
	Type       Type
	Executable bool    // of a Regular file
	Size       int64   // of a Regular file's contents, in bytes
	Offset     int64   // of a Regular file's contents in the NAR
	Target     string  // of a Symlink
	Entries    []Entry // of a Directory, sorted by name
}

// Entry is a Directory's entry.
type Entry struct {
	Name string
	Node *Node
}

// nodeSize is about what a Node and its Entry take, in bytes, without name and target.
const nodeSize = 150

// Memory is about how many bytes the node takes, with all below it.
func (n *Node) Memory() int64 {
	size := int64(nodeSize + len(n.Target))
	for _, e := range n.Entries {
		size += int64(len(e.Name)) + e.Node.Memory()
	}
	return size
}

// Lookup returns the entry of a Directory with a name, nil if there is none.
func (n *Node) Lookup(name string) *Node {
	i, ok := slices.BinarySearchFunc(n.Entries, name, func(e Entry, name string) int { return strings.Compare(e.Name, name) })
	if !ok {
		return nil
	}
	return n.Entries[i].Node
}

// List reads a whole NAR and returns its listing. Its memory grows with the
// number of files. Errors are those of [Reader].
func List(src io.Reader) (*Listing, error) { return ListMax(src, math.MaxInt64) }

// ListMax is List for a listing of about max bytes of memory at most, see [Node.Memory]. If it
// would be larger the error is [ErrTooLarge].
func ListMax(src io.Reader, max int64) (*Listing, error) {
	type dir struct {
		path string
		node *Node
	}
	var (
		r    = NewReader(src)
		root *Node
		open []dir // root first
	)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return &Listing{Root: root}, nil
		}
		if err != nil {
			return nil, err
		}
		name := h.Path[strings.LastIndexByte(h.Path, '/')+1:]
		if max -= int64(nodeSize + len(name) + len(h.Target)); max < 0 {
			return nil, fmt.Errorf("nar: list: %w", ErrTooLarge)
		}
		n := &Node{Type: h.Type}
		switch h.Type {
		case Regular:
			n.Executable, n.Size, n.Offset = h.Executable, h.Size, h.Offset
		case Symlink:
			n.Target = h.Target
		}
		if root == nil {
			root = n
		} else {
			parentPath := strings.TrimSuffix(h.Path[:len(h.Path)-len(name)], "/")
			for open[len(open)-1].path != parentPath {
				open = open[:len(open)-1]
			}
			parent := open[len(open)-1].node
			parent.Entries = append(parent.Entries, Entry{Name: strings.Clone(name), Node: n}) // h.Path is longer
		}
		if h.Type == Directory {
			open = append(open, dir{h.Path, n})
		}
	}
}

// MarshalJSON returns the listing as new versions of Nix write it: keys sorted, no
// white space, executable always there. It returns [ErrNotUTF8] if the listing has
// no JSON form. (Calling it directly, not through package json, leaves out the
// escapes that only matter in HTML.)
// (Nix: src/libutil/memory-source-accessor/json.cc.)
func (l *Listing) MarshalJSON() ([]byte, error) {
	b, err := l.Root.appendJSON([]byte(`{"root":`))
	if err != nil {
		return nil, fmt.Errorf("nar: encode listing: %w", err)
	}
	return append(b, `,"version":1}`...), nil
}

func (n *Node) appendJSON(b []byte) ([]byte, error) {
	var err error
	switch n.Type {
	case Regular:
		b = append(b, `{"executable":`...)
		b = strconv.AppendBool(b, n.Executable)
		b = append(b, `,"narOffset":`...)
		b = strconv.AppendInt(b, n.Offset, 10)
		b = append(b, `,"size":`...)
		b = strconv.AppendInt(b, n.Size, 10)
		return append(b, `,"type":"regular"}`...), nil
	case Symlink:
		b = append(b, `{"target":`...)
		if b, err = appendJSONString(b, n.Target); err != nil {
			return nil, err
		}
		return append(b, `,"type":"symlink"}`...), nil
	case Directory:
		b = append(b, `{"entries":{`...)
		for i, e := range n.Entries {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendJSONString(b, e.Name); err != nil {
				return nil, err
			}
			b = append(b, ':')
			if b, err = e.Node.appendJSON(b); err != nil {
				return nil, err
			}
		}
		return append(b, `},"type":"directory"}`...), nil
	}
	return nil, fmt.Errorf("%v: no such file type", n.Type)
}

// appendJSONString appends s as a JSON string, with the escapes that Nix uses.
func appendJSONString(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, fmt.Errorf("%q: %w", s, ErrNotUTF8)
	}
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, `\b`...)
		case '\f':
			b = append(b, `\f`...)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			if c < ' ' {
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			} else {
				b = append(b, c)
			}
		}
	}
	return append(b, '"'), nil
}
