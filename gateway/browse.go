package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"html/template"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/dedupd/dedupd/nar"
)

// browsePolicy is the Content-Security-Policy of what somebody has uploaded and a browser
// may show: no script, and nothing that has a right because it is from here. Manuals
// look as they should.
const browsePolicy = "sandbox allow-downloads; default-src 'none'; img-src 'self' data:; media-src 'self'; font-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"

// getInside answers with a file in a store path. Of a range of it no more is read than the
// chunks that it lies in.
func (g *Gateway) getInside(w *response, r *http.Request, res resource) error {
	node, hash, err := g.walker(r.Context(), w).walk(res.id)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Security-Policy", browsePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if node.Type == nar.Directory {
		return g.serveDirectory(w, r, node)
	}
	o, err := g.narObject(r.Context(), hash)
	if err != nil {
		return err
	}
	typ := mime.TypeByExtension(path.Ext(res.id))
	if typ == "" {
		typ = "application/octet-stream"
	}
	_, err = w.serve(r, &content{
		size: node.Size, etag: codedETag(hashETag(hash), "at-"+strconv.FormatInt(node.Offset, 10)), typ: typ, cache: g.cache.hours,
		write: func(ctx context.Context, w io.Writer, off, n int64) error {
			return o.WritePlain(ctx, w, node.Offset+off, n)
		},
	})
	return err
}

// serveDirectory answers with what is in a directory, but not below that: as a page for
// browsers, else as the listing of a NAR without the entries of its directories.
func (g *Gateway) serveDirectory(w *response, r *http.Request, dir *nar.Node) error {
	var b []byte
	var err error
	typ := "text/html; charset=utf-8"
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		b, err = directoryPage(r.URL.Path, dir)
	} else {
		typ = fileType(kindListing)
		b, err = directoryJSON(dir)
	}
	if err != nil {
		return err
	}
	c := newText(b).content(w.Header(), r, hashETag(sha256.Sum256(b)), typ, g.cache.hours)
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	_, err = w.serve(r, c)
	return err
}

func directoryJSON(dir *nar.Node) ([]byte, error) {
	flat := &nar.Node{Type: nar.Directory, Entries: slices.Clone(dir.Entries)}
	for i, e := range flat.Entries {
		if e.Node.Type == nar.Directory {
			flat.Entries[i].Node = &nar.Node{Type: nar.Directory}
		}
	}
	b, err := (&nar.Listing{Root: flat}).MarshalJSON()
	if errors.Is(err, nar.ErrNotUTF8) {
		return nil, refuse(http.StatusNotFound, "the directory has file names that JSON cannot hold; there is a page of it for browsers")
	}
	return b, err
}

// A pageEntry is a line of a directory's page.
type pageEntry struct {
	Name, Kind, Target string
	Href               string
	Size               int64
	File               bool
}

var directoryTemplate = template.Must(template.New("directory").Parse(`<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Path}}</title>
<style>
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 60rem; padding: 0 1rem }
h1 { font-size: 1rem; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid #8884; padding: .2rem .5rem .2rem 0; overflow-wrap: anywhere }
td:nth-child(n+2) { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
</style>
<h1>{{.Path}}</h1>
<table>
{{range .Entries}}<tr><td><a href="{{.Href}}">{{.Name}}</a>{{with .Target}} → {{.}}{{end}}<td>{{.Kind}}<td>{{if .File}}{{.Size}}{{end}}
{{end}}</table>
`))

// directoryPage is the page of the directory at a URL's decoded path.
func directoryPage(at string, dir *nar.Node) ([]byte, error) {
	page := struct {
		Path    string
		Entries []pageEntry
	}{Path: strings.TrimPrefix(at, "/serve/")}
	// Links are relative, for proxies that serve the cache below a path of their own.
	base := ""
	if !strings.HasSuffix(at, "/") {
		base = path.Base(at) + "/"
	}
	for _, e := range dir.Entries {
		p := pageEntry{Name: e.Name, Kind: e.Node.Type.String(), Target: e.Node.Target, Size: e.Node.Size, File: e.Node.Type == nar.Regular}
		if e.Node.Executable {
			p.Kind = "executable"
		}
		if e.Node.Type == nar.Directory {
			p.Name += "/"
		}
		p.Href = (&url.URL{Path: "./" + base + p.Name}).EscapedPath()
		page.Entries = append(page.Entries, p)
	}
	var b bytes.Buffer
	err := directoryTemplate.Execute(&b, page)
	return b.Bytes(), err
}
