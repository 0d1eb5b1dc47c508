package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/narinfo"
)

const (
	// MaxMissing is how many paths can be asked for at once at MissingURL, and
	// MaxMissingBody how many bytes these may take there.
	MaxMissing     = 100_000
	MaxMissingBody = 8 << 20
	// MissingURL, relative to the cache, is where to POST a MissingRequest.
	MissingURL = "api/v1/missing"

	// maxAsking is the number of such queries that are answered at a time. One takes
	// less than 50 MiB of memory.
	maxAsking = 4
)

// A MissingRequest asks which of many store paths a cache does not have. They are hash
// parts, or whole names or paths of which only the hash part is looked at.
type MissingRequest struct {
	Hashes []string `json:"hashes"`
}

// A MissingReply holds what was asked for and is not there, or not whole: what a client
// has to upload. They are as in the request, and in its order.
type MissingReply struct {
	Missing []string `json:"missing"`
}

// postMissing answers a MissingRequest, or, for people with a shell, lines with lines. The
// first byte tells them apart, since Content-Type says what a client's author did not
// think of.
func (g *Gateway) postMissing(w *response, r *http.Request) error {
	if r.ContentLength > MaxMissingBody {
		return tooLarge(MaxMissingBody)
	}
	typ, err := contentEncoding(r)
	if err != nil {
		return err
	}
	// Readers share these slots, and uploads have their own. A slow client has one for
	// so long only.
	if err := take(r.Context(), g.asking); err != nil {
		return err
	}
	defer func() { <-g.asking }()
	src := g.body(w, r)
	src.end = time.Now().Add(src.timeout)
	body, err := decode(typ, src, MaxMissingBody, func() {})
	if err != nil {
		return err
	}
	defer body.Close()
	in := bufio.NewReader(body)
	first, err := in.Peek(1)
	if err != nil && err != io.EOF {
		return err
	}
	if string(first) == "{" {
		return g.missingJSON(w, r, in)
	}
	return g.missingLines(w, r, in)
}

func (g *Gateway) missingLines(w *response, r *http.Request, in *bufio.Reader) error {
	var paths []string
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var err error
		if paths, err = g.addPath(paths, strings.TrimSpace(lines.Text())); err != nil {
			return err
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return refuse(http.StatusBadRequest, "want one store path in each line: %w", err)
	} else if err != nil {
		return err
	}
	missing, err := g.missing(r.Context(), w.who, paths)
	if err != nil {
		return err
	}
	setAnswer(w, "text/plain; charset=utf-8")
	out := bufio.NewWriter(w)
	for _, p := range missing {
		out.WriteString(p)
		out.WriteByte('\n')
	}
	return out.Flush()
}

func (g *Gateway) missingJSON(w *response, r *http.Request, in *bufio.Reader) error {
	paths, err := g.decodePaths(in)
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	if errors.As(err, &syntax) || errors.As(err, &typ) || errors.Is(err, errNoRequest) {
		return refuse(http.StatusBadRequest, `want {"hashes":["<hash part>",…]}: %w`, err)
	} else if err != nil {
		return err
	}
	missing, err := g.missing(r.Context(), w.who, paths)
	if err != nil {
		return err
	}
	setAnswer(w, "application/json")
	return json.NewEncoder(w).Encode(MissingReply{append([]string{}, missing...)}) // [], not null
}

var errNoRequest = errors.New("something else")

// decodePaths decodes a MissingRequest, of which it never holds more than it may.
func (g *Gateway) decodePaths(in io.Reader) (paths []string, err error) {
	dec := json.NewDecoder(in)
	for _, want := range []json.Token{json.Delim('{'), "hashes", json.Delim('[')} {
		if err := expect(dec, want); err != nil {
			return nil, err
		}
	}
	for dec.More() {
		var p string
		if err := dec.Decode(&p); err != nil {
			return nil, err
		}
		if paths, err = g.addPath(paths, p); err != nil {
			return nil, err
		}
	}
	for _, want := range []json.Token{json.Delim(']'), json.Delim('}')} {
		if err := expect(dec, want); err != nil {
			return nil, err
		}
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.Join(errNoRequest, err)
	}
	return paths, nil
}

// expect reads the next token, which must be want.
func expect(dec *json.Decoder, want json.Token) error {
	token, err := dec.Token()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err == nil && token != want {
		return fmt.Errorf("%w: %.100v instead of %v", errNoRequest, token, want)
	}
	return err
}

// addPath appends a path that somebody asks for.
func (g *Gateway) addPath(paths []string, p string) ([]string, error) {
	base := strings.TrimPrefix(p, g.storeDir+"/")
	if !narinfo.IsHashPart(base) {
		if _, err := narinfo.ParseBaseName(base); err != nil {
			return nil, refuse(http.StatusBadRequest, "%.300q is no hash part of a store path", p)
		}
	}
	if len(paths) == MaxMissing {
		return nil, refuse(http.StatusRequestEntityTooLarge, "ask for %d paths at most", MaxMissing)
	}
	return append(paths, p), nil
}

// missing returns those of the paths that are not in the store.
func (g *Gateway) missing(ctx context.Context, who *access.Identity, paths []string) ([]string, error) {
	kept := paths[:0]
	for _, p := range paths {
		hashPart := strings.TrimPrefix(p, g.storeDir+"/")[:narinfo.HashPartLen]
		has, err := g.store.HasPath(ctx, hashPart)
		if err == nil && has && who.Limited() {
			has, err = g.covers(ctx, who, hashPart)
		}
		if err != nil {
			return nil, err
		}
		if !has {
			kept = append(kept, p)
		}
	}
	return kept, nil
}

// setAnswer sets the header of an answer to a POST.
func setAnswer(w *response, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", cacheNever)
}
