package chunkstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// ErrConflict is wrapped when a name is taken by something else: names are write-once.
var ErrConflict = errors.New("exists already with other contents")

// PutNAR takes in the file name, which holds a NAR in a compression that its name and
// its first bytes tell, and commits both. accept, if it is not nil, is asked before the
// commit whether this is the file that it should be. Nothing stays of a file that is
// refused. When PutNAR returns nil the commit is on disk and visible.
//
// Before it reads the first byte it waits until the Limits allow that.
//
// Errors wrap ErrBadUpload, ErrConflict, ErrTooLarge, ErrNoSpace, ErrReadOnly, or what accept
// returned; what is wrong with the compression wraps an error of package compression as
// well.
func (s *Store) PutNAR(ctx context.Context, name string, r io.Reader, accept func(*File) error) (*File, error) {
	if err := s.Writable(); err != nil {
		return nil, err
	}
	end, err := s.uploads.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	reading := s.newTurn()
	u := newUpload(newSizeLimit(waitingReader{r, reading}, s.MaxNAR()))
	head, err := u.Peek(compression.HeaderSize)
	if err != nil && err != io.EOF {
		return nil, err
	}
	typ, err := compression.Detect(name, head)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadUpload, err)
	}
	need, err := compression.Memory(typ, head)
	if err == nil && need > s.opts.DecoderMemory {
		err = fmt.Errorf("%w: %d bytes, %d are allowed", compression.ErrTooMuchMemory, need, s.opts.DecoderMemory)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadUpload, err)
	}
	if err := s.decoding.Acquire(ctx, need); err != nil {
		return nil, err
	}
	defer s.decoding.Release(need)
	if typ != compression.None { // else it is that of the NAR
		u.hash = sha256.New()
	}
	plain, err := compression.NewReader(typ, u, compression.Limits{MaxMemory: need, Program: s.opts.XZ})
	if err != nil {
		return nil, badFile(err)
	}
	defer plain.Close()
	if compression.Apart(plain) {
		reading = nil // another goroutine reads r, and nobody computes here
	}
	return s.putNAR(ctx, name, typ, u, plain, reading, accept)
}

func (s *Store) putNAR(ctx context.Context, name string, typ compression.Type, u *upload, plain io.Reader, reading *turn, accept func(*File) error) (*File, error) {
	var crc hash.Hash32
	if typ == compression.Gzip { // its stored mode needs it
		crc = crc32.NewIEEE()
		plain = io.TeeReader(plain, crc)
	}
	o, err := s.ingest(ctx, newSizeLimit(plain, s.MaxNAR()), reading, true)
	if err != nil {
		return nil, badFile(err)
	}
	defer o.close()
	f := &File{
		Name: name, Content: o.content.hash, Size: o.content.size, NAR: true, Compression: string(typ),
		FileSize: u.size, FileHash: o.content.hash,
	}
	if u.hash != nil {
		u.hash.Sum(f.FileHash[:0])
	}
	if crc != nil {
		f.CRC32 = crc.Sum32()
	}
	if accept != nil {
		if err := accept(f); err != nil {
			return nil, err
		}
	}
	if o.deep {
		s.log.Warn("NAR is deeper than new versions of Nix accept", "file", name)
	}
	return f, s.commitFile(ctx, f, o)
}

// badFile marks what is wrong with an uploaded file as the client's fault.
func badFile(err error) error {
	for _, e := range []error{compression.ErrCorrupt, compression.ErrTooMuchMemory, compression.ErrUnsupported} {
		if errors.Is(err, e) && !errors.Is(err, ErrBadUpload) {
			return fmt.Errorf("%w: %w", ErrBadUpload, err)
		}
	}
	return err
}

// An upload counts, and hashes, the bytes of a file on their way to its decoder.
type upload struct {
	*bufio.Reader
	size int64
	hash hash.Hash // nil for none
}

func newUpload(r io.Reader) *upload {
	return &upload{Reader: bufio.NewReaderSize(r, compression.HeaderSize)}
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	u.size += int64(n)
	if u.hash != nil {
		u.hash.Write(p[:n])
	}
	return n, err
}

// PutFile stores the bytes of r under name: in the name's record if they are few, else
// in chunks. Its promise and its errors are those of PutNAR.
func (s *Store) PutFile(ctx context.Context, name string, r io.Reader) (*File, error) {
	if err := s.Writable(); err != nil {
		return nil, err
	}
	head, err := io.ReadAll(io.LimitReader(r, maxInline+1))
	if err != nil {
		return nil, err
	}
	if len(head) <= maxInline {
		hash := Hash(sha256.Sum256(head))
		f := &File{Name: name, Content: hash, Size: int64(len(head)), FileSize: int64(len(head)), FileHash: hash, inline: head}
		return f, s.commitFile(ctx, f, nil)
	}
	o, err := s.ingest(ctx, io.MultiReader(bytes.NewReader(head), r), nil, false)
	if err != nil {
		return nil, err
	}
	defer o.close()
	f := &File{Name: name, Content: o.content.hash, Size: o.content.size, FileSize: o.content.size, FileHash: o.content.hash}
	return f, s.commitFile(ctx, f, o)
}

// commitFile commits a name, and the object behind it if it is not inline.
func (s *Store) commitFile(ctx context.Context, f *File, o *object) error {
	r := &request{relies: map[packfile.Name]struct{}{}}
	if o != nil {
		r.relies, r.stage = o.relies, o.stage
	}
	r.records = func(ctx context.Context, a *applier) ([]packfile.Record, error) {
		var records []packfile.Record
		if o != nil {
			if err := a.stillThere(ctx, s, o.damages, o); err != nil {
				return nil, err
			}
			if err := a.addNew(ctx, &records, r.relies, index.Recipes, o.content.recipe[:], packfile.RecordRecipe, o.recipe); err != nil {
				return nil, err
			}
			if err := a.addNew(ctx, &records, r.relies, index.Contents, o.content.hash[:], packfile.RecordContent, o.content.encode()); err != nil {
				return nil, err
			}
		}
		return a.addName(ctx, records, f)
	}
	if !r.stage.empty() {
		if err := s.uploads.waitForSpool(ctx); err != nil {
			return err
		}
	}
	err := s.commit(ctx, r)
	if err == nil {
		s.counts.committed(f, o)
	}
	return err
}

// addName adds the record of f, unless the name stands for it already.
func (a *applier) addName(ctx context.Context, records []packfile.Record, f *File) ([]packfile.Record, error) {
	have, err := a.get(ctx, index.Names, []byte(f.Name))
	if errors.Is(err, index.ErrNotFound) {
		return append(records, packfile.Record{Type: packfile.RecordName, Body: f.encode()}), nil
	} else if err != nil {
		return nil, err
	}
	_, body := splitRow(have)
	old, err := decodeFile(body)
	if err != nil {
		return nil, err
	}
	if !old.same(f) {
		return nil, fmt.Errorf("%s %w", f.Name, ErrConflict)
	}
	return records, nil
}

// addNew adds a record unless its row is there already; then it adds the pack that the
// row comes from to relies.
func (a *applier) addNew(ctx context.Context, records *[]packfile.Record, relies map[packfile.Name]struct{},
	t index.Table, key []byte, typ packfile.RecordType, body []byte) error {
	have, err := a.get(ctx, t, key)
	if errors.Is(err, index.ErrNotFound) {
		*records = append(*records, packfile.Record{Type: typ, Body: body})
		return nil
	} else if err != nil {
		return err
	}
	id, _ := splitRow(have)
	relies[id.pack()] = struct{}{}
	return nil
}

// File returns what is known of the file that was uploaded as name. The error wraps
// ErrNotFound if there is none.
func (s *Store) File(ctx context.Context, name string) (*File, error) {
	row, err := s.ix.Get(ctx, index.Names, []byte(name))
	if errors.Is(err, index.ErrNotFound) {
		return nil, fmt.Errorf("file %s: %w", name, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("look up file %s: %w", name, err)
	}
	_, body := splitRow(row)
	f, err := decodeFile(body)
	if err != nil {
		return nil, fmt.Errorf("file %s: %w", name, err)
	}
	return f, nil
}

// WriteFile writes the bytes [off, off+n) of a file that is no NAR.
func (s *Store) WriteFile(ctx context.Context, w io.Writer, f *File, off, n int64) error {
	if f.inline != nil {
		if off < 0 || n < 0 || off > f.Size || n > f.Size-off {
			return fmt.Errorf("bytes %d to %d of a file of %d", off, off+n, f.Size)
		}
		_, err := w.Write(f.inline[off : off+n])
		return err
	}
	o, err := s.Object(ctx, f.Content)
	if err != nil {
		return err
	}
	return o.WritePlain(ctx, w, off, n)
}
