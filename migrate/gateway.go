package migrate

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/push"
	"github.com/dedupd/dedupd/upstream"
)

// GatewayOptions say which gateway is imported into. Zero values mean the defaults.
type GatewayOptions struct {
	// URL is that of the cache: http or https, without user and query.
	URL string
	// User and Password are sent, by Basic, if there is a Password.
	User, Password string
	// StoreDir is the store directory of the paths; default chunkstore.DefaultStoreDir.
	StoreDir string
	// Temp is the directory for files on their way; default os.TempDir.
	Temp string
	// DecoderMemory bounds what decoding NARs takes, in bytes; default 256 MiB.
	DecoderMemory int64
	// XZ decodes xz; nil for doing it in this process.
	XZ *compression.Program
	// Retried is called before something is sent again.
	Retried func(err error, wait time.Duration)
}

// A Gateway is a Sink that is reached over HTTP: dedupd's, which can be asked for many paths at
// once and makes use of what it has of a NAR, or any other cache that takes uploads. A file is
// received whole, and checked, before it is sent, so that none comes there that is damaged, and
// sending can be tried again without asking the source for it again.
type Gateway struct {
	opts     GatewayOptions
	cache    *push.Cache
	source   *upstream.HTTP // the same one
	decoding *semaphore.Weighted

	mu    sync.Mutex
	known map[string]bool // hash parts, and whether they are there
}

var _ Sink = (*Gateway)(nil)

// OpenGateway returns the gateway that opts name, if it answers and is for the store directory.
func OpenGateway(ctx context.Context, opts GatewayOptions) (*Gateway, error) {
	if opts.StoreDir == "" {
		opts.StoreDir = chunkstore.DefaultStoreDir
	}
	if opts.DecoderMemory == 0 {
		opts.DecoderMemory = 256 << 20
	}
	source, err := upstream.NewHTTP(upstream.HTTPConfig{URL: opts.URL, StoreDir: opts.StoreDir, User: opts.User, Password: opts.Password})
	if err != nil {
		return nil, err
	}
	cache, err := push.Open(ctx, push.Options{URL: opts.URL, User: opts.User, Password: opts.Password, StoreDir: opts.StoreDir, Jobs: 16, Retried: opts.Retried})
	if err != nil {
		return nil, err
	}
	return &Gateway{opts: opts, cache: cache, source: source, decoding: semaphore.NewWeighted(opts.DecoderMemory), known: map[string]bool{}}, nil
}

// Close ends the connections that are not in use.
func (g *Gateway) Close() error { return g.cache.Close() }

// Repository implements Sink. Only the store directory is known.
func (g *Gateway) Repository() chunkstore.Repository {
	return chunkstore.Repository{StoreDir: g.opts.StoreDir}
}

// MaxNAR implements Sink. What is too large for it the gateway says by itself.
func (g *Gateway) MaxNAR() int64 { return math.MaxInt64 }

// maxKnown bounds how many paths are remembered. Others are asked for one by one.
const maxKnown = 1 << 20

func (g *Gateway) note(hashPart string, there bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) >= maxKnown {
		clear(g.known)
	}
	g.known[hashPart] = there
}

// LookUp asks for many paths at once, whose HasPath is then known. It is for one goroutine.
func (g *Gateway) LookUp(ctx context.Context, hashParts []string) error {
	absent, err := g.cache.Absent(ctx, hashParts)
	if err != nil {
		return fmt.Errorf("ask what is missing: %w", err)
	}
	for _, h := range hashParts {
		g.note(h, !absent[h])
	}
	return nil
}

// HasPath implements Sink.
func (g *Gateway) HasPath(ctx context.Context, hashPart string) (bool, error) {
	g.mu.Lock()
	there, known := g.known[hashPart]
	g.mu.Unlock()
	if known {
		return there, nil
	}
	header, err := g.cache.Head(ctx, hashPart+".narinfo")
	if err == nil && header != nil {
		g.note(hashPart, true)
	}
	return header != nil, err
}

// NarInfo implements Sink.
func (g *Gateway) NarInfo(ctx context.Context, hashPart string) (*narinfo.NarInfo, error) {
	info, err := g.source.NarInfo(ctx, hashPart)
	if errors.Is(err, upstream.ErrNotFound) {
		err = fmt.Errorf("%w: %w", chunkstore.ErrNotFound, err)
	}
	return info, err
}

// errRefused is wrapped by what the gateway says of a path that it does not want.
var errRefused = errors.New("the gateway refuses it")

// PutNarInfo implements Sink.
func (g *Gateway) PutNarInfo(ctx context.Context, info *narinfo.NarInfo) error {
	text := info.Append(nil, g.opts.StoreDir)
	err := g.cache.Put(ctx, info.StorePath.HashPart()+".narinfo", "text/x-nix-narinfo", bytes.NewReader(text), int64(len(text)))
	// The latter: it is there, but not where it would be safe. Asking for it again tells.
	if status := (*push.StatusError)(nil); errors.As(err, &status) && (status.Code == http.StatusForbidden || status.Code == http.StatusFailedDependency) {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if err == nil {
		g.note(info.StorePath.HashPart(), true)
	}
	return meaning(err)
}

// meaning returns err as a store would have said it.
func meaning(err error) error {
	var status *push.StatusError
	if !errors.As(err, &status) {
		return err
	}
	for code, said := range map[int]error{
		http.StatusBadRequest:            chunkstore.ErrBadUpload,
		http.StatusConflict:              chunkstore.ErrConflict,
		http.StatusRequestEntityTooLarge: chunkstore.ErrTooLarge,
		http.StatusUnsupportedMediaType:  compression.ErrUnsupported,
		http.StatusInsufficientStorage:   chunkstore.ErrNoSpace,
	} {
		if status.Code == code {
			return fmt.Errorf("%w: %w", said, err)
		}
	}
	return err
}

// HasNAR implements Sink. dedupd has each NAR also under its own hash.
func (g *Gateway) HasNAR(ctx context.Context, hash chunkstore.Hash, size int64) (bool, error) {
	header, err := g.cache.Head(ctx, "nar/"+narinfo.EncodeNix32(hash[:])+".nar")
	return header.Get("Content-Length") == fmt.Sprint(size), err
}

// File implements Sink. Of what is not a NAR only the name is known. dedupd serves a NAR with the
// entity tag "<nix32 NarHash>-<compression>". A file without such a tag counts as absent, and so does
// one whose name is not its hash: nobody would know that any more.
func (g *Gateway) File(ctx context.Context, name string) (*chunkstore.File, error) {
	header, err := g.cache.Head(ctx, name)
	if err != nil {
		return nil, err
	}
	absent := fmt.Errorf("file %s: %w", name, chunkstore.ErrNotFound)
	if header == nil {
		return nil, absent
	}
	file, isNAR := strings.CutPrefix(name, "nar/")
	if !isNAR {
		return &chunkstore.File{Name: name}, nil
	}
	stem, _, _ := strings.Cut(file, ".")
	tag, typ, _ := strings.Cut(strings.Trim(header.Get("Etag"), `"`), "-")
	content, ok := parseHash(tag)
	fileHash, known := parseHash(stem)
	if !ok || !known || typ == "" {
		return nil, absent
	}
	return &chunkstore.File{Name: name, NAR: true, Content: content, FileHash: fileHash, Compression: typ}, nil
}

// parseHash parses a SHA-256 in nix32.
func parseHash(s string) (chunkstore.Hash, bool) {
	b, err := narinfo.DecodeNix32(s)
	if err != nil || len(b) != len(chunkstore.Hash{}) {
		return chunkstore.Hash{}, false
	}
	return chunkstore.Hash(b), true
}

// PutNAR implements Sink.
func (g *Gateway) PutNAR(ctx context.Context, name string, r io.Reader, accept func(*chunkstore.File) error) (*chunkstore.File, error) {
	file, err := g.temp()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	f, err := g.receive(ctx, name, r, file)
	if err != nil {
		return nil, err
	}
	if accept != nil {
		if err := accept(f); err != nil {
			return nil, err
		}
	}
	return f, meaning(g.cache.Put(ctx, f.Name, "application/x-nix-nar", file, f.FileSize))
}

// receive writes r, a file with a NAR, to w, and returns what it is.
func (g *Gateway) receive(ctx context.Context, name string, r io.Reader, w io.Writer) (*chunkstore.File, error) {
	fileHash, narHash := sha256.New(), sha256.New()
	counter := &counter{w: io.MultiWriter(w, fileHash)}
	src := bufio.NewReaderSize(io.TeeReader(r, counter), compression.HeaderSize)
	head, err := src.Peek(compression.HeaderSize)
	if err != nil && err != io.EOF {
		return nil, err
	}
	typ, err := compression.Detect(name, head)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", chunkstore.ErrBadUpload, err)
	}
	need, err := compression.Memory(typ, head)
	if err == nil && need > g.opts.DecoderMemory {
		err = fmt.Errorf("%w: %d bytes, %d are allowed", compression.ErrTooMuchMemory, need, g.opts.DecoderMemory)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", chunkstore.ErrBadUpload, err)
	}
	if err := g.decoding.Acquire(ctx, need); err != nil {
		return nil, err
	}
	defer g.decoding.Release(need)
	plain, err := compression.NewReader(typ, src, compression.Limits{MaxMemory: need, Program: g.opts.XZ})
	if err != nil {
		return nil, badFile(err)
	}
	defer plain.Close()
	size, err := io.CopyBuffer(narHash, struct{ io.Reader }{plain}, make([]byte, copyBuffer))
	if err != nil {
		return nil, badFile(err)
	}
	f := &chunkstore.File{Name: name, Size: size, NAR: true, Compression: string(typ), FileSize: counter.n}
	narHash.Sum(f.Content[:0])
	fileHash.Sum(f.FileHash[:0])
	return f, nil
}

// badFile marks what is wrong with a file as what is wrong with an upload.
func badFile(err error) error {
	if errors.Is(err, compression.ErrCorrupt) || errors.Is(err, compression.ErrTooMuchMemory) {
		return fmt.Errorf("%w: %w", chunkstore.ErrBadUpload, err)
	}
	return err
}

// A counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// PutFile implements Sink.
func (g *Gateway) PutFile(ctx context.Context, name string, r io.Reader) (*chunkstore.File, error) {
	file, err := g.temp()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	size, err := io.Copy(file, r)
	if err != nil {
		return nil, err
	}
	typ := "application/json"
	if path.Dir(name) == "log" {
		typ = "text/plain; charset=utf-8"
	}
	return &chunkstore.File{Name: name, Size: size}, meaning(g.cache.Put(ctx, name, typ, file, size))
}

// temp makes a file without a name.
func (g *Gateway) temp() (*os.File, error) {
	file, err := os.CreateTemp(g.opts.Temp, "dedupd-import-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
