package simulation

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

// An archive is a NAR, and the store path that clients take it for.
type archive struct {
	files []file
	nar   []byte
	hash  [sha256.Size]byte
	path  narinfo.StorePath
	refs  []narinfo.StorePath
}

type file struct {
	nar.Header
	contents []byte
}

// A library makes archives that have much in common. It may be used concurrently.
type library struct {
	storeDir string

	mu    sync.Mutex
	blobs [][]byte
	made  []*archive
}

func newLibrary(rng *rand.Rand, storeDir string) *library {
	l := &library{storeDir: storeDir}
	for range 12 {
		l.blobs = append(l.blobs, randomBytes(rng, randomSize(rng)))
	}
	l.blobs = append(l.blobs, randomBytes(rng, 512<<10+rng.IntN(2<<20)))
	return l
}

func randomSize(rng *rand.Rand) int { return rng.IntN(1 << (4 + rng.IntN(13))) }

// randomBytes are random, or text, or zeros.
func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	switch rng.IntN(5) {
	case 0:
	case 1, 2:
		for i := range b {
			b[i] = "etaoin shrdlu\n"[rng.IntN(14)]
		}
	default:
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
	}
	return b
}

// some returns an archive that was made before, or nil.
func (l *library) some(rng *rand.Rand) *archive {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.made) == 0 {
		return nil
	}
	return l.made[rng.IntN(len(l.made))]
}

// next makes an archive.
func (l *library) next(rng *rand.Rand) *archive {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &archive{}
	switch n := rng.IntN(20); {
	case len(l.made) > 0 && n < 6:
		a.files = l.change(rng, l.made[rng.IntN(len(l.made))].files)
	case n < 8:
		a.files = []file{{nar.Header{Type: nar.Regular}, randomBytes(rng, rng.IntN(2))}}
	case n == 8:
		a.files = []file{{nar.Header{Type: nar.Symlink, Target: l.reference(rng)}, nil}}
	default:
		a.files = []file{{Header: nar.Header{Type: nar.Directory}}}
		for i := range rng.IntN(12) {
			a.files = append(a.files, l.file(rng, fmt.Sprintf("file%02d", i)))
		}
	}
	for range rng.IntN(3) {
		if len(l.made) > 0 {
			a.refs = append(a.refs, l.made[rng.IntN(len(l.made))].path)
		}
	}
	a.finish(rng)
	l.made = append(l.made, a)
	return a
}

func (l *library) file(rng *rand.Rand, name string) file {
	f := file{Header: nar.Header{Path: name, Type: nar.Regular, Executable: rng.IntN(3) == 0}}
	if rng.IntN(10) == 0 {
		f.Type, f.Executable, f.Target = nar.Symlink, false, l.reference(rng)
		return f
	}
	for range rng.IntN(4) {
		switch rng.IntN(5) {
		case 0:
			f.contents = append(f.contents, randomBytes(rng, randomSize(rng))...)
		case 1:
			f.contents = append(f.contents, l.reference(rng)...)
		default:
			i := rng.IntN(len(l.blobs) - 1)
			if rng.IntN(40) == 0 {
				i = len(l.blobs) - 1 // the large one
			}
			blob := l.blobs[i]
			if rng.IntN(4) == 0 && len(blob) > 0 {
				blob = blob[rng.IntN(len(blob)):]
			}
			f.contents = append(f.contents, blob...)
		}
	}
	return f
}

func (l *library) reference(rng *rand.Rand) string {
	return l.storeDir + "/" + narinfo.EncodeNix32(randomHash(rng)) + "-some-name/bin"
}

func randomHash(rng *rand.Rand) []byte {
	b := make([]byte, 20)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// change is a rebuild: the same files with other hashes in them, or a byte changed.
func (l *library) change(rng *rand.Rand, files []file) []file {
	files = slices.Clone(files)
	prefix := []byte(l.storeDir + "/")
	for i := range files {
		b := slices.Clone(files[i].contents)
		for at := bytes.Index(b, prefix); at >= 0 && len(b)-at > len(prefix)+32; {
			copy(b[at+len(prefix):], narinfo.EncodeNix32(randomHash(rng)))
			next := bytes.Index(b[at+1:], prefix)
			if next < 0 {
				break
			}
			at += 1 + next
		}
		if len(b) > 0 && rng.IntN(6) == 0 {
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		}
		files[i].contents = b
	}
	return files
}

func (a *archive) finish(rng *rand.Rand) {
	var buf bytes.Buffer
	w := nar.NewWriter(&buf)
	for i := range a.files {
		f := &a.files[i]
		f.Size = int64(len(f.contents))
		must(w.WriteHeader(&f.Header))
		_, err := w.Write(f.contents)
		must(err)
	}
	must(w.Close())
	a.nar = buf.Bytes()
	a.hash = sha256.Sum256(a.nar)
	var err error
	a.path, err = narinfo.ParseBaseName(narinfo.EncodeNix32(randomHash(rng)) + "-simulated")
	must(err)
}

// must panics: what it is for cannot fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// An encoded archive is one as clients upload it.
type encoded struct {
	*archive
	typ  compression.Type
	name string // nar/…
	body []byte
}

var types = []compression.Type{compression.None, compression.Zstd, compression.XZ, compression.Gzip, compression.Brotli, compression.LZ4}

func encode(rng *rand.Rand, a *archive) *encoded {
	e := &encoded{archive: a, typ: types[min(rng.IntN(9), 8)%len(types)]}
	var buf bytes.Buffer
	switch e.typ {
	case compression.Zstd:
		w, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20))
		must(err)
		_, err = w.Write(a.nar)
		must(err)
		must(w.Close())
	case compression.Gzip:
		w := gzip.NewWriter(&buf)
		_, err := w.Write(a.nar)
		must(err)
		must(w.Close())
	default:
		s, err := compression.NewStored(e.typ, int64(len(a.nar)), 0)
		must(err)
		must(s.WriteRange(&buf, 0, s.Size(), func(w io.Writer, off, n int64) error {
			_, err := w.Write(a.nar[off : off+n])
			return err
		}))
	}
	e.body = buf.Bytes()
	sum := sha256.Sum256(e.body)
	e.name = "nar/" + narinfo.EncodeNix32(sum[:]) + ".nar" + extension(e.typ)
	return e
}

func extension(t compression.Type) string {
	switch t {
	case compression.None:
		return ""
	case compression.Zstd:
		return ".zst"
	case compression.Gzip:
		return ".gz"
	}
	return "." + string(t)
}

// info is the narinfo of the archive as a client uploads it.
func (e *encoded) info() *narinfo.NarInfo {
	return &narinfo.NarInfo{
		StorePath: e.path, URL: e.name, Compression: string(e.typ), NarHash: e.hash, NarSize: uint64(len(e.nar)),
		References: e.refs,
	}
}

// decode returns what a body holds.
func decode(t compression.Type, body []byte) ([]byte, error) {
	r, err := compression.NewReader(t, bytes.NewReader(body), compression.Limits{MaxMemory: 256 << 20})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
