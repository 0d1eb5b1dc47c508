package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

// maxLinks is how many symlinks are followed on the way to one file, as in Linux.
const maxLinks = 40

// A walker finds a file below the store directory, by names in listings: there is no file
// system that a name could lead astray in.
type walker struct {
	// open returns what the store path with a base name is, and the NAR that it is in.
	open     func(base string) (*nar.Node, chunkstore.Hash, error)
	storeDir string

	hash  chunkstore.Hash // of the NAR that the walker is in
	nodes []*nar.Node     // from its root down to where the walker is; none in the store directory
	todo  []string        // names that are still to be followed
	links int
}

// walk returns the file at a path relative to the store directory, and the hash of the
// NAR that it is in. Symlinks are followed, also to other store paths, and the last one, too.
func (w *walker) walk(path string) (*nar.Node, chunkstore.Hash, error) {
	w.todo = strings.Split(path, "/")
	for len(w.todo) > 0 {
		name := w.todo[0]
		w.todo = w.todo[1:]
		if err := w.step(name); err != nil {
			return nil, w.hash, err
		}
	}
	if len(w.nodes) == 0 {
		return nil, w.hash, notThere("this is the store directory")
	}
	return w.nodes[len(w.nodes)-1], w.hash, nil
}

// step goes to the entry of a name where the walker is. What is not a directory has none,
// not even an empty one: a slash at the end is for directories.
func (w *walker) step(name string) error {
	depth := len(w.nodes)
	if depth > 0 && w.nodes[depth-1].Type != nar.Directory {
		return notThere("there is a file on the way, where a directory should be")
	}
	switch {
	case w.links == 0 && (name == "." || name == ".."):
		return notThere("the URL has a dot segment, which clients resolve themselves")
	case name == "" || name == ".":
		return nil
	case name == ".." && depth > 0:
		w.nodes = w.nodes[:depth-1]
		return nil
	case name == "..":
		return notThere("the path leads out of the store directory")
	}
	var node *nar.Node
	if depth == 0 {
		var err error
		if node, w.hash, err = w.open(name); err != nil {
			return err
		}
	} else if node = w.nodes[depth-1].Lookup(name); node == nil {
		return notThere("no such file in the store path")
	}
	if node.Type == nar.Symlink {
		return w.follow(node.Target)
	}
	w.nodes = append(w.nodes, node)
	return nil
}

// follow goes on at the target of a symlink in the directory where the walker is.
func (w *walker) follow(target string) error {
	if w.links++; w.links > maxLinks {
		return notThere("too many symlinks on the way")
	}
	if strings.HasPrefix(target, "/") {
		inside, ok := strings.CutPrefix(target, w.storeDir+"/")
		if !ok {
			return notThere("a symlink leads out of the store directory, to %.300q", target)
		}
		target, w.nodes = inside, w.nodes[:0]
	}
	w.todo = append(strings.Split(target, "/"), w.todo...)
	return nil
}

func notThere(format string, args ...any) error {
	return refuse(http.StatusNotFound, "%w", fmt.Errorf(format, args...))
}

// walker returns a walker for a response, which is only let into paths that whoever gets
// it may read.
func (g *Gateway) walker(ctx context.Context, to *response) *walker {
	w := &walker{storeDir: g.storeDir}
	w.open = func(base string) (*nar.Node, chunkstore.Hash, error) {
		// A URL may have the hash part only.
		if !narinfo.IsHashPart(base) || w.links > 0 {
			if _, err := narinfo.ParseBaseName(base); err != nil {
				return nil, chunkstore.Hash{}, notThere("this is no store path")
			}
		}
		hashPart := base[:narinfo.HashPartLen]
		if ok, err := g.covers(ctx, to.who, hashPart); err != nil {
			return nil, chunkstore.Hash{}, err
		} else if !ok {
			return nil, chunkstore.Hash{}, chunkstore.ErrNotFound
		}
		info, err := g.store.NarInfo(ctx, hashPart)
		if err != nil {
			return nil, chunkstore.Hash{}, err
		}
		if base != hashPart && base != info.StorePath.String() {
			return nil, chunkstore.Hash{}, chunkstore.ErrNotFound
		}
		l, err := g.listing(ctx, info.NarHash)
		if err != nil {
			return nil, chunkstore.Hash{}, err
		}
		return l.root, info.NarHash, nil
	}
	return w
}
