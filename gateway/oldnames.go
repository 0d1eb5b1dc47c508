package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/encodings"
)

// serveOldName answers with the NAR o under the name of an upload in another compression:
// stored, which is as large as the NAR, or encoded, if Config.OldNames has a file.
func (g *Gateway) serveOldName(w *response, r *http.Request, f *chunkstore.File, o *chunkstore.Object, stored *content) error {
	if g.cfg.OldNames == nil {
		return g.serveNAR(w, r, stored, o.Size())
	}
	use := g.cfg.OldNames.Use(f.Name)
	defer use.Close()
	c, form := g.oldNameContent(r, f, stored, use)
	if _, ranged := requestedRange(r, c); !ranged && r.Method == http.MethodGet {
		use.Begin(g.making(f, o, stored.size))
	}
	use.Send(form)
	n, err := g.sendNAR(w, r, c, o.Size())
	use.Sent(n)
	return err
}

// oldNameContent chooses the form of an old name: the one that a client has begun with, if
// it goes on, and the smaller one if it begins. Who could come back for the rest of what
// might be another form by then is not told that there are ranges, and whoever comes back
// and could have begun with either is refused.
func (g *Gateway) oldNameContent(r *http.Request, f *chunkstore.File, stored *content, use *encodings.Use) (*content, encodings.Form) {
	stored.cache = g.cache.short // rather than have a proxy keep the larger form for a year
	cond := r.Header.Get("If-Range")
	size, sum, ok := use.File()
	if !ok {
		stored.noRanges = stored.noRanges || use.Began != encodings.Stored && cond != stored.etag
		return stored, encodings.Stored
	}
	encoded := &content{
		size: size, etag: codedETag(hashETag(f.Content), f.Compression+"-"+hex.EncodeToString(sum[:16])),
		typ: narType, cache: g.cache.forever, noRanges: stored.noRanges, write: use.Write,
	}
	_, ranged := requestedRange(r, stored)
	switch {
	case cond == encoded.etag, cond != stored.etag && use.Began == encodings.Encoded:
		return encoded, encodings.Encoded
	case ranged:
		return stored, encodings.Stored
	}
	encoded.noRanges = true
	return encoded, encodings.Encoded
}

// verifyMemory is what decoding a file that was encoded here may take, in bytes.
const verifyMemory = 48 << 20

// making says how to encode the NAR o in the compression of f. It is looked up anew, since
// that may be much later.
func (g *Gateway) making(f *chunkstore.File, o *chunkstore.Object, stored int64) encodings.Making {
	m := encodings.Making{Size: f.FileSize, Limit: stored / 10 * 9}
	typ := compression.Type(f.Compression)
	if typ == compression.Zstd {
		m.Size = o.FrameSize()
	}
	m.Encode = func(ctx context.Context, w io.Writer) error {
		o, err := g.narObject(ctx, f.Content)
		if err != nil {
			return err
		}
		if typ == compression.Zstd { // which the store has already
			return o.WriteFrames(ctx, w, 0, o.FrameSize())
		}
		return encodings.Compress(ctx, typ, w, func(w io.Writer) error {
			return o.WritePlain(ctx, w, 0, o.Size())
		})
	}
	m.Verify = func(r io.Reader) error {
		plain, err := compression.NewReader(typ, r, compression.Limits{MaxMemory: verifyMemory})
		if err != nil {
			return err
		}
		defer plain.Close()
		hash := sha256.New()
		if _, err := io.Copy(hash, plain); err != nil {
			return err
		}
		if got := chunkstore.Hash(hash.Sum(nil)); got != f.Content {
			return fmt.Errorf("it decodes to %x, not %x", got, f.Content)
		}
		return nil
	}
	return m
}
