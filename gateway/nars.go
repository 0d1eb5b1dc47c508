package gateway

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
)

// The names of NARs, below nar/. Those of uploads are whatever a client chose, except
// that a hash must be the right one. The gateway's own two forms are
//
//	<nix32 NarHash>-<layout>.nar.zst   zstd frames; other frames have another layout
//	<nix32 NarHash>.nar                the NAR
const (
	narHashLen  = 52 // nix32 characters of a SHA-256
	framesExt   = ".nar.zst"
	plainExt    = ".nar"
	minLayout   = 16 // nix32 characters
	maxLayout   = 64
	narType     = "application/x-nix-nar"
	aliasBuffer = 64 << 10
)

// framesName returns the name of a NAR as zstd frames.
func framesName(hash chunkstore.Hash, layout string) string {
	return narinfo.EncodeNix32(hash[:]) + "-" + layout + framesExt
}

// parseFramesName is the reverse of framesName.
func parseFramesName(file string) (hash chunkstore.Hash, layout string, ok bool) {
	stem, ok := strings.CutSuffix(file, framesExt)
	if !ok || len(stem) < narHashLen+1 || stem[narHashLen] != '-' {
		return hash, "", false
	}
	layout = stem[narHashLen+1:]
	if len(layout) < minLayout || len(layout) > maxLayout || strings.Trim(layout, "0123456789abcdfghijklmnpqrsvwxyz") != "" {
		return hash, "", false
	}
	hash, ok = parseHash(stem[:narHashLen])
	return hash, layout, ok
}

// parsePlainName parses the name of a NAR without compression.
func parsePlainName(file string) (chunkstore.Hash, bool) {
	stem, ok := strings.CutSuffix(file, plainExt)
	if !ok || len(stem) != narHashLen {
		return chunkstore.Hash{}, false
	}
	return parseHash(stem)
}

// parseHash parses what looks like a SHA-256, in nix32 or in hexadecimal.
func parseHash(s string) (hash chunkstore.Hash, ok bool) {
	var b []byte
	err := errors.New("another length")
	switch len(s) {
	case narHashLen:
		b, err = narinfo.DecodeNix32(s)
	case hex.EncodedLen(len(hash)):
		b, err = hex.DecodeString(s)
	}
	if err != nil {
		return hash, false
	}
	return chunkstore.Hash(b), true
}

// A narRef is a NAR that a name stands for.
type narRef struct {
	hash chunkstore.Hash
	size int64 // bytes
}

// namedNAR returns the NAR at nar/<file>, and the compression that it has there. The
// error wraps chunkstore.ErrNotFound if there is none, and packfile.ErrCorrupt if it is
// not complete.
func (g *Gateway) namedNAR(ctx context.Context, name string) (narRef, compression.Type, error) {
	file := strings.TrimPrefix(name, "nar/")
	comp := compression.Zstd
	hash, _, ok := parseFramesName(file)
	if !ok {
		f, err := g.store.File(ctx, name)
		if err == nil {
			hash, comp, ok = f.Content, compression.Type(f.Compression), true
		} else if !errors.Is(err, chunkstore.ErrNotFound) {
			return narRef{}, "", err
		}
	}
	if !ok {
		comp = compression.None
		if hash, ok = parsePlainName(file); !ok {
			return narRef{}, "", chunkstore.ErrNotFound
		}
	}
	o, err := g.narObject(ctx, hash)
	if err != nil {
		return narRef{}, "", err
	}
	return narRef{hash, o.Size()}, comp, nil
}

// narObject returns a NAR by its hash.
func (g *Gateway) narObject(ctx context.Context, hash chunkstore.Hash) (*chunkstore.Object, error) {
	o, err := g.store.Object(ctx, hash)
	if err == nil && !o.NAR() {
		return nil, chunkstore.ErrNotFound
	}
	return o, err
}

func (g *Gateway) getNAR(w *response, r *http.Request, res resource) error {
	if running, err := g.getRunning(w, r, res); running {
		return err
	}
	err := g.getStoredNAR(w, r, res)
	if absent(err) && w.status == 0 {
		return g.getUpstreamNAR(w, r, res, err)
	}
	return err
}

func (g *Gateway) getStoredNAR(w *response, r *http.Request, res resource) error {
	if hash, layout, ok := parseFramesName(res.id); ok {
		o, err := g.narObject(r.Context(), hash)
		if err != nil {
			return err
		}
		return g.serveNAR(w, r, g.framesContent(hash, o, layout), o.Size())
	}
	f, err := g.store.File(r.Context(), res.name)
	if errors.Is(err, chunkstore.ErrNotFound) {
		hash, ok := parsePlainName(res.id)
		if !ok {
			return err
		}
		// A file of this name could only be uploaded with the same bytes.
		f, err = &chunkstore.File{Content: hash, Compression: string(compression.None)}, nil
	}
	if err != nil {
		return err
	}
	o, err := g.narObject(r.Context(), f.Content)
	if err != nil {
		return err
	}
	c, err := g.storedContent(f, o)
	if err != nil {
		return err
	}
	c.noRanges = g.cfg.Pull != nil && g.cfg.Pull.Gone(res.id)
	if f.Compression == string(compression.None) {
		return g.serveNAR(w, r, c.orFrames(w.Header(), r, o), o.Size())
	}
	return g.serveOldName(w, r, f, o, c)
}

// serveNAR answers with c, which is a form of a NAR of size bytes.
func (g *Gateway) serveNAR(w *response, r *http.Request, c *content, size int64) error {
	_, err := g.sendNAR(w, r, c, size)
	return err
}

// sendNAR is serveNAR, and returns how many bytes were sent.
func (g *Gateway) sendNAR(w *response, r *http.Request, c *content, size int64) (int64, error) {
	n, err := w.serve(r, c)
	g.served.add(n, c.size, size)
	return n, err
}

// framesContent is a NAR as the frames that the store has of it. If these are not the
// ones of layout any more, a client that starts gets them all the same, and one that
// goes on where it stopped does not.
func (g *Gateway) framesContent(hash chunkstore.Hash, o *chunkstore.Object, layout string) *content {
	c := &content{
		size: o.FrameSize(), etag: codedETag(hashETag(hash), o.Layout()),
		typ: narType, cache: g.cache.forever, write: o.WriteFrames,
	}
	if layout != o.Layout() {
		c.noRanges, c.cache = true, g.cache.short
	}
	return c
}

// storedContent is a NAR in the compression of an upload. The bytes are not those of
// the upload, but a fixed function of the NAR's.
func (g *Gateway) storedContent(f *chunkstore.File, o *chunkstore.Object) (*content, error) {
	c := &content{
		size: o.Size(), etag: codedETag(hashETag(f.Content), f.Compression),
		typ: narType, cache: g.cache.forever, write: o.WritePlain,
	}
	if f.Compression == string(compression.None) {
		return c, nil
	}
	stored, err := compression.NewStored(compression.Type(f.Compression), o.Size(), f.CRC32)
	if err != nil { // the name came by an import
		return nil, fmt.Errorf("%s: %w: %v", f.Name, chunkstore.ErrNotFound, err)
	}
	c.size = stored.Size()
	c.write = func(ctx context.Context, w io.Writer, off, n int64) error {
		b := bufio.NewWriterSize(w, aliasBuffer)
		err := stored.WriteRange(b, off, n, func(w io.Writer, off, n int64) error {
			return o.WritePlain(ctx, w, off, n)
		})
		if err != nil {
			return err
		}
		return b.Flush()
	}
	return c, nil
}

// putNAR takes in a NAR under the name that the client gives it, which a narinfo will
// refer to, maybe of several paths, and which the client may ask for long afterwards:
// what it has uploaded it remembers for 30 days.
func (g *Gateway) putNAR(w *response, r *http.Request, res resource) error {
	if _, _, ok := parseFramesName(res.id); ok {
		return refuse(http.StatusBadRequest, "names like this are the gateway's own; use <FileHash>.nar.<compression>")
	}
	if len(r.Header["Content-Encoding"]) > 0 {
		return refuse(http.StatusUnsupportedMediaType, "a NAR cannot have a Content-Encoding")
	}
	limit := g.store.MaxNAR()
	if w.who.MaxNAR > 0 {
		limit = min(limit, w.who.MaxNAR)
	}
	if r.ContentLength > limit {
		return tooLarge(limit)
	}
	done, err := w.who.Limits.Upload(r.Context())
	if err != nil {
		return err
	}
	defer done()
	// The store does not read the body, so that a client which waits to be told so has
	// not sent it, until there is room.
	body := w.who.Limits.Reader(r.Context(), g.body(w, r))
	_, err = g.store.PutNAR(r.Context(), res.name, body, func(f *chunkstore.File) error {
		if f.Size > limit || f.FileSize > limit {
			return tooLarge(limit)
		}
		return checkNarName(res.id, f)
	})
	if errors.Is(err, chunkstore.ErrNoSpace) {
		// A client that did not wait must not have its body taken for a request.
		w.Header().Set("Connection", "close")
	}
	return err
}

// checkNarName checks the hash that a file name may begin with: that of the file, as Nix
// does it, or that of the NAR.
func checkNarName(file string, f *chunkstore.File) error {
	stem, _, _ := strings.Cut(file, ".")
	if hashPart, narHash, ok := strings.Cut(stem, "-"); ok && narinfo.IsHashPart(hashPart) {
		// As nix-serve names NARs, and package pull.
		if hash, ok := parseHash(narHash); ok && hash != f.Content {
			return refuse(http.StatusBadRequest, "the name says that NarHash is %s, but it is %s", narHash, narinfo.EncodeNix32(f.Content[:]))
		}
		return nil
	}
	hash, ok := parseHash(stem)
	if ok && hash != f.FileHash && hash != f.Content {
		return refuse(http.StatusBadRequest, "the name says that the hash is %s, but that of the file is %s", stem, narinfo.EncodeNix32(f.FileHash[:]))
	}
	if hash, ok := parsePlainName(file); ok && hash != f.FileHash {
		return refuse(http.StatusBadRequest, "%s is the name of the NAR itself, but the file is compressed", file)
	}
	return nil
}
