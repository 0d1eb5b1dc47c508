package nixexport

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"

	"github.com/dedupd/dedupd/narinfo"
)

// A Reader reads a stream. Its memory is bounded whatever the input. It starts no goroutines,
// and is not for use by several. Errors of its methods stick.
type Reader struct {
	r        *bufio.Reader
	storeDir string
	nar      *narReader // of the path whose record comes next; nil between paths
	err      error
}

// NewReader returns a Reader of a stream of paths in a store directory. It reads ahead by up
// to 64 KiB.
func NewReader(r io.Reader, storeDir string) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, bufferSize), storeDir: storeDir}
}

// Next goes to the next path, and returns its NAR: the bytes up to where it ends, of whose form
// no more is checked than it takes to find that. Call Path before Next is called again. At the end of
// the stream it returns io.EOF. Streams one behind the other are read as one.
func (r *Reader) Next() (io.Reader, error) {
	for r.err == nil {
		var n uint64
		if n, r.err = r.number(); r.err != nil {
			break
		}
		switch n {
		case 0:
			_, r.err = r.r.Peek(1)
		case 1:
			r.nar = &narReader{r: r.r}
			return r.nar, nil
		default:
			r.err = malformed("it does not look as if nix-store --export had written it")
		}
	}
	return nil, r.err
}

// Path returns what is said behind the NAR that Next has returned. What was not read of that
// is skipped.
func (r *Reader) Path() (*Path, error) {
	if r.err != nil {
		return nil, r.err
	}
	p, err := r.path()
	r.err = err
	return p, err
}

func (r *Reader) path() (*Path, error) {
	if _, err := io.Copy(io.Discard, r.nar); err != nil {
		return nil, err
	}
	if n, err := r.number(); err != nil {
		return nil, err
	} else if n != magic {
		return nil, malformed("no %q behind a NAR", "NIXE")
	}
	p := new(Path)
	var err error
	if p.StorePath, err = r.storePath(); err != nil {
		return nil, err
	}
	refs, err := r.number()
	if err != nil {
		return nil, err
	}
	if refs > maxReferences {
		return nil, malformed("%s has %d references", p.StorePath, refs)
	}
	for range refs {
		ref, err := r.storePath()
		if err != nil {
			return nil, err
		}
		p.References = append(p.References, ref)
	}
	deriver, err := r.string(maxPath)
	if err != nil {
		return nil, err
	}
	// Which nobody relies on: it is not worth losing the path for.
	p.Deriver, _ = narinfo.ParseStorePath(r.storeDir, deriver)
	return p, r.signature()
}

func (r *Reader) storePath() (narinfo.StorePath, error) {
	s, err := r.string(maxPath)
	if err != nil {
		return narinfo.StorePath{}, err
	}
	p, err := narinfo.ParseStorePath(r.storeDir, s)
	if err != nil {
		return narinfo.StorePath{}, malformed("%v", err)
	}
	return p, nil
}

func (r *Reader) signature() error {
	n, err := r.number()
	switch {
	case err != nil:
		return err
	case n == 1:
		_, err = r.string(maxSignature)
	case n > 1:
		err = malformed("%d where a signature may follow", n)
	}
	return err
}

func (r *Reader) number() (uint64, error) {
	var b [lenSize]byte
	if _, err := io.ReadFull(r.r, b[:]); err != nil {
		return 0, cutShort(err)
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// string reads a string of up to limit bytes.
func (r *Reader) string(limit uint64) (string, error) {
	n, err := r.number()
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", malformed("string of %d bytes", n)
	}
	b := make([]byte, n+padding(n))
	if _, err := io.ReadFull(r.r, b); err != nil {
		return "", cutShort(err)
	}
	if len(bytes.Trim(b[n:], "\x00")) > 0 {
		return "", malformed("padding is not zero")
	}
	return string(b[:n]), nil
}

// A narReader reads up to the end of a NAR, which is where its parentheses are balanced. What
// follows the words contents, name and target is any string; all others are words of
// the format.
type narReader struct {
	r     *bufio.Reader
	left  uint64 // bytes of the string that is being read
	begun bool
	value bool // any string comes next
	depth int
	last  bool // the parentheses are balanced
	err   error
}

const (
	narMagic = "nix-archive-1"
	maxWord  = 16
	// maxValue leaves room for length and padding.
	maxValue = 1<<63 - 1<<10
)

// Read implements io.Reader. It fills p unless the NAR ends.
func (n *narReader) Read(p []byte) (done int, _ error) {
	for done < len(p) && n.err == nil {
		if n.left == 0 {
			n.err = n.next()
			continue
		}
		k, err := n.r.Read(p[done : done+int(min(n.left, uint64(len(p)-done)))])
		done, n.left, n.err = done+k, n.left-uint64(k), cutShort(err)
	}
	if done > 0 || len(p) == 0 {
		return done, nil
	}
	return 0, n.err
}

// next looks at the next string, and leaves it to be read. At the end it returns io.EOF.
func (n *narReader) next() error {
	if n.last {
		return io.EOF
	}
	b, err := n.r.Peek(lenSize)
	if err != nil {
		return cutShort(err)
	}
	size := binary.LittleEndian.Uint64(b)
	if n.value {
		if size > maxValue {
			return malformed("a string of %d bytes in a NAR", size)
		}
		n.value, n.left = false, lenSize+size+padding(size)
		return nil
	}
	if size > maxWord {
		return malformed("a word of %d bytes in a NAR", size)
	}
	n.left = lenSize + size + padding(size)
	if b, err = n.r.Peek(int(n.left)); err != nil {
		return cutShort(err)
	}
	return n.word(string(b[lenSize : lenSize+size]))
}

// word takes a word of the format into account.
func (n *narReader) word(word string) error {
	switch {
	case !n.begun && word != narMagic, n.begun && n.depth == 0 && word != "(":
		return malformed("no NAR where one should begin")
	case word == "(":
		n.depth++
	case word == ")":
		n.depth--
		n.last = n.depth == 0
	case word == "contents", word == "name", word == "target":
		n.value = true
	}
	n.begun = true
	return nil
}
