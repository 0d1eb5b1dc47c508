package gateway

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/chunkstore"
)

// What is not compressed by itself can go out with a Content-Encoding, to clients that
// list it in Accept-Encoding: Nix up to 2.13 sends no such header, and 2.34 decodes
// less than it used to. There is never a Content-Encoding
//
//   - of "identity", which Nix up to 2.30 dies of;
//   - on zstd frames, which Nix up to 2.33 would decode once only;
//   - together with Accept-Ranges, since Nix then goes on where it has lost the
//     connection, and some count bytes before decoding and some after. A request for a
//     range gets it of the bytes as they are.
const (
	codingZstd = "zstd"
	codingGzip = "gzip"

	// minCoded is the size in bytes of the least text that is encoded. What is smaller
	// fits into a packet as it is.
	minCoded = 1 << 10
	// codedWindow is the zstd window, at most 8 MiB (RFC 9659).
	codedWindow = 1 << 20
)

// The codings that are offered, the best first: where something is stored as zstd frames
// only these, which cost nothing.
var (
	frameCodings = []string{codingZstd}
	textCodings  = []string{codingZstd, codingGzip}
	varyCoding   = []string{"Accept-Encoding"} // Vary, where there is a choice
)

// preferredCoding returns the one of the offered codings that the values of an
// Accept-Encoding header prefer, and "" for none. "*" counts for nothing: the client has
// to name what it can decode. (RFC 9110, section 12.5.3.)
func preferredCoding(header, offered []string) string {
	best, most, identity := len(offered), 0.0, 0.0
	for _, value := range header {
		for rest, more := value, true; more; {
			var item string
			item, rest, more = strings.Cut(rest, ",")
			name, weight, weighted := strings.Cut(item, ";")
			name = strings.TrimSpace(name)
			q := 1.0
			if weighted {
				q = parseQuality(strings.TrimSpace(weight))
			}
			if strings.EqualFold(name, "identity") {
				identity = q
				continue
			}
			for i, coding := range offered {
				if strings.EqualFold(name, coding) && q > 0 && (q > most || q == most && i < best) {
					best, most = i, q
				}
			}
		}
	}
	if best == len(offered) || identity > most {
		return ""
	}
	return offered[best]
}

// parseQuality parses "q=0.5". What is malformed is 0: unwanted.
func parseQuality(s string) float64 {
	if len(s) < 2 || !strings.EqualFold(s[:2], "q=") {
		return 0
	}
	q, err := strconv.ParseFloat(s[2:], 64)
	if err != nil || !(q >= 0 && q <= 1) {
		return 0
	}
	return q
}

// A text is a body that is in memory. It is encoded once, when the first client wants it.
type text struct {
	plain, zstd, gzip codedText
}

// A codedText is a text in one coding. The values of headers are ready for a http.Header.
type codedText struct {
	once           sync.Once
	body           []byte // nil if it would be no shorter than the text
	coding, length []string
}

func newText(b []byte) *text {
	return &text{plain: codedText{body: b, length: []string{strconv.Itoa(len(b))}}}
}

// weight is about how many bytes of memory the text takes.
func (t *text) weight() uint32 { return uint32(min(2*len(t.plain.body)+300, 1<<30)) }

// choose returns the form of the text in which r is answered, and sets the headers that say so.
func (t *text) choose(h http.Header, r *http.Request) *codedText {
	if len(t.plain.body) < minCoded {
		return &t.plain
	}
	h["Vary"] = varyCoding
	if r.Header["Range"] == nil {
		if c := t.as(preferredCoding(r.Header["Accept-Encoding"], textCodings)); c != nil {
			h["Content-Encoding"] = c.coding
			return c
		}
	}
	return &t.plain
}

// as returns the text in a coding, or nil if it is not to be had in that.
func (t *text) as(coding string) *codedText {
	var c *codedText
	switch coding {
	case codingZstd:
		c = &t.zstd
	case codingGzip:
		c = &t.gzip
	default:
		return nil
	}
	c.once.Do(func() {
		if b := encodeText(coding, t.plain.body); len(b) < len(t.plain.body) {
			c.body, c.coding, c.length = b, []string{coding}, []string{strconv.Itoa(len(b))}
		}
	})
	if c.body == nil {
		return nil
	}
	return c
}

// textEncoder is shared: it has some megabytes of memory.
var textEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(codedWindow), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // of the options
	}
	return e
})

func encodeText(coding string, b []byte) []byte {
	if coding == codingZstd {
		return textEncoder().EncodeAll(b, nil)
	}
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b) // fails where buf does: never
	w.Close()
	return buf.Bytes()
}

// content is the form of the text in which r is answered. etag is that of the text itself.
func (t *text) content(h http.Header, r *http.Request, etag, typ, cache string) *content {
	b := t.choose(h, r)
	c := &content{
		size: int64(len(b.body)), etag: etag, typ: typ, cache: cache,
		write: func(_ context.Context, w io.Writer, off, n int64) error {
			_, err := w.Write(b.body[off : off+n])
			return err
		},
	}
	if b.coding != nil {
		c.coded, c.etag = true, codedETag(etag, b.coding[0])
	}
	return c
}

// orFrames is c, which is all of o, or instead the zstd frames that the store has of it,
// if r asks for that.
func (c *content) orFrames(h http.Header, r *http.Request, o *chunkstore.Object) *content {
	if o.FrameSize() >= o.Size() {
		return c
	}
	h["Vary"] = varyCoding
	if r.Header["Range"] != nil || preferredCoding(r.Header["Accept-Encoding"], frameCodings) == "" {
		return c
	}
	h.Set("Content-Encoding", codingZstd)
	frames := *c
	frames.size, frames.write = o.FrameSize(), o.WriteFrames
	frames.coded, frames.etag = true, codedETag(c.etag, o.Layout()+"-"+codingZstd)
	return &frames
}

// codedETag returns the entity tag of what etag is of in a coding.
func codedETag(etag, coding string) string {
	return strings.TrimSuffix(etag, `"`) + "-" + coding + `"`
}
