package chunkstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/packfile"
)

// ErrBadUpload is wrapped by errors about what a client sent: it is not a NAR, it is
// cut short, or it is not what its name says.
var ErrBadUpload = errors.New("bad upload")

// An object is one that was taken in and not committed yet.
type object struct {
	content content
	recipe  []byte // encoded
	stage   *stage
	relies  map[packfile.Name]struct{}
	deep    bool   // deeper than new Nix versions accept
	damages uint64 // Store.damages when the first chunk was looked up

	chunks, chunkBytes int64 // of it, known ones too
	newBytes           int64 // of these, in stage
	again, againBytes  int64 // known ones that are in stage
}

func (o *object) close() { o.stage.close() }

// An ingest takes in one object in one pass. Its stages run in goroutines of their own,
// hand on what they have in order, and end together:
//
//	read:     the decoded bytes, in blocks
//	cut:      SHA-256 and structure check, mask, split, prove
//	encode:   a goroutine for each chunk: hash, look up, encode, verify
//	assemble: recipe and stage, in the order of the object
type ingest struct {
	store *Store
	cut   *cutter
	hash  hash.Hash
	turn  *turn // of the goroutine that cuts
	tasks chan *task

	mu      sync.Mutex
	claimed map[packfile.ID]bool // new chunks that a task of this upload encodes

	recipe  recipe
	object  *object
	scatter scatter
}

// A task is one piece on its way to the stage.
type task struct {
	piece  piece
	weight int64
	done   chan struct{}

	id    packfile.ID
	frame packfile.FrameInfo
	bytes []byte // of the frame, nil if the chunk is known
	known uint32 // number of the pack that a known chunk is in, 0 for this upload
	err   error
}

const (
	// pieceWeight is how much memory a piece of n bytes takes until it is staged, in
	// units of its length: itself, its frame, and decoding that.
	pieceWeight = 3
	// maxTasks is the number of pieces of one upload between cutting and staging.
	maxTasks = 16
	// cutStep is how many bytes of contents are read between cuts.
	cutStep = 256 << 10
)

// ingest reads an object from r to its end: a NAR, whose form is checked, or any bytes.
// Reading r is computing, done with the turn, where that is not nil. The caller closes
// what it returns.
func (s *Store) ingest(ctx context.Context, r io.Reader, reading *turn, isNAR bool) (*object, error) {
	in := &ingest{
		store: s, hash: sha256.New(), turn: s.newTurn(), tasks: make(chan *task, maxTasks), claimed: map[packfile.ID]bool{},
		scatter: scatter{max: s.opts.MaxFragments, packs: s.packs, stored: map[packfile.ID]bool{}},
		object:  &object{stage: &stage{dir: s.staging}, relies: map[packfile.Name]struct{}{}, damages: s.damages.Load()},
	}
	g, ctx := errgroup.WithContext(ctx)
	ahead := newReadAhead(r, reading, &s.buffers)
	var encoding errgroup.Group
	var err error
	if in.cut, err = newCutter(s.repo, &s.buffers, func(p piece) error { return in.start(ctx, &encoding, p) }); err != nil {
		return nil, err
	}
	defer in.cut.close()
	g.Go(func() error { return ahead.run(ctx) })
	g.Go(func() error {
		defer close(in.tasks)
		defer ahead.stop()
		in.turn.take()
		defer in.turn.give()
		if isNAR {
			return in.readNAR(ahead)
		}
		return in.readBytes(ahead)
	})
	g.Go(func() error { return in.assemble(ctx) })
	err = g.Wait()
	encoding.Wait()
	in.drain()
	if err != nil {
		in.object.close()
		return nil, err
	}
	return in.finish(isNAR), nil
}

// tee gives the bytes that are read to the hash and the cutter.
type tee struct {
	r  io.Reader
	in *ingest
}

func (t tee) Read(p []byte) (int, error) {
	n, err := waitingReader{t.r, t.in.turn}.Read(p)
	t.in.hash.Write(p[:n])
	t.in.cut.Write(p[:n])
	return n, err
}

func (in *ingest) readNAR(r io.Reader) error {
	nr := nar.NewReader(tee{r, in})
	for {
		h, err := nr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return badNAR(err)
		}
		if err := in.member(nr, h); err != nil {
			return err
		}
	}
	in.object.content.size = nr.Offset()
	in.object.deep = nr.Depth() >= nar.MaxDepth
	if err := in.cut.structure(nr.Offset()); err != nil {
		return err
	}
	return in.cut.segment()
}

// member takes in the contents of a file, or the target of a symlink. Contents of at
// least the minimum chunk size are a segment; what lies between shares one.
func (in *ingest) member(nr *nar.Reader, h *nar.Header) error {
	switch h.Type {
	case nar.Symlink:
		if err := in.cut.structure(h.Offset); err != nil {
			return err
		}
		end := h.Offset + int64(len(h.Target))
		return in.cut.contents(end, end)
	case nar.Regular:
		if err := in.cut.structure(h.Offset); err != nil {
			return err
		}
		own := h.Size >= int64(in.store.repo.MinSize)
		if own {
			if err := in.cut.segment(); err != nil {
				return err
			}
		}
		for end := h.Offset + h.Size; nr.Offset() < end; {
			if _, err := nr.Discard(cutStep); err != nil {
				return badNAR(err)
			}
			if err := in.cut.contents(nr.Offset(), end); err != nil {
				return err
			}
		}
		if own {
			return in.cut.segment()
		}
	}
	return nil
}

// badNAR tells errors in the NAR from those of the reader below it.
func badNAR(err error) error {
	if errors.Is(err, nar.ErrFormat) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrBadUpload, err)
	}
	return err
}

// readBytes takes in an object that is all contents.
func (in *ingest) readBytes(r io.Reader) error {
	buf := in.store.buffers.get(cutStep)
	defer in.store.buffers.put(buf)
	src := tee{r, in}
	for {
		n, err := io.ReadFull(src, buf)
		in.object.content.size += int64(n)
		size := in.object.content.size
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if err := in.cut.contents(size, size); err != nil {
				return err
			}
			return in.cut.segment()
		}
		if err != nil {
			return err
		}
		if err := in.cut.contents(size, size+1); err != nil {
			return err
		}
	}
}

// start takes a piece from the cutter and has it encoded as soon as there is memory.
func (in *ingest) start(ctx context.Context, encoding *errgroup.Group, p piece) error {
	t := &task{piece: p, weight: pieceWeight * int64(cap(p.masked)), done: make(chan struct{})}
	var err error
	in.turn.while(func() { err = in.store.memory.Acquire(ctx, t.weight) })
	if err != nil {
		return err
	}
	if len(p.masked) < in.store.repo.Literal {
		close(t.done)
	} else {
		encoding.Go(func() error {
			defer close(t.done)
			turn := in.store.newTurn()
			turn.take()
			defer turn.give()
			t.err = in.encode(ctx, t)
			return nil
		})
	}
	in.turn.while(func() {
		select {
		case in.tasks <- t:
		case <-ctx.Done():
			<-t.done
			in.free(t)
			err = ctx.Err()
		}
	})
	return err
}

func (in *ingest) free(t *task) {
	in.store.memory.Release(t.weight)
	in.store.buffers.put(t.piece.masked)
	in.store.buffers.put(t.bytes)
}

// drain frees the tasks that a failed assembly left.
func (in *ingest) drain() {
	for t := range in.tasks {
		<-t.done
		in.free(t)
	}
}

// encode finds out whether the chunk is known, and makes a frame of it if not.
func (in *ingest) encode(ctx context.Context, t *task) error {
	t.id = packfile.ChunkID(t.piece.masked, t.piece.spans)
	var l [1]index.Location
	if err := in.store.ix.Chunks(ctx, []index.Key{index.Key(t.id)}, l[:]); err != nil {
		return fmt.Errorf("look up chunk: %w", err)
	}
	if t.known = l[0].Pack; t.known != 0 {
		return nil
	}
	in.mu.Lock()
	mine := !in.claimed[t.id]
	in.claimed[t.id] = true
	in.mu.Unlock()
	if !mine {
		return nil
	}
	return in.makeFrame(t)
}

func (in *ingest) makeFrame(t *task) error {
	enc := <-in.store.encoders
	defer func() { in.store.encoders <- enc }()
	f, err := enc.Encode(t.id, t.piece.masked, t.piece.spans)
	if err != nil {
		return err
	}
	t.frame = f.Info()
	t.bytes = append(in.store.buffers.get(len(f.Stored))[:0], f.Stored...)
	return nil
}

// assemble builds the recipe, and stages new frames, in the order of the object.
func (in *ingest) assemble(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case t, ok := <-in.tasks:
			if !ok {
				return nil
			}
			<-t.done
			err := t.err
			if err == nil {
				err = in.add(ctx, t)
			}
			in.free(t)
			if err != nil {
				return err
			}
		}
	}
}

func (in *ingest) add(ctx context.Context, t *task) error {
	n := len(t.piece.masked)
	it := item{id: t.id, len: uint32(n), refs: t.piece.refs}
	if n < in.store.repo.Literal {
		it.plain = append([]byte(nil), t.piece.masked...)
		it.spans = t.piece.spans
	} else {
		in.object.chunks++
		in.object.chunkBytes += int64(n)
	}
	in.recipe.items = append(in.recipe.items, it)
	again, err := in.placeKnown(ctx, t)
	in.scatter.at += int64(n)
	if err != nil || t.bytes == nil {
		return err
	}
	if again {
		in.object.again++
		in.object.againBytes += int64(n)
	} else {
		in.object.newBytes += int64(n)
	}
	return in.object.stage.add(t.frame, t.bytes, again)
}

// placeKnown decides whether a chunk that is known stays where it is, or is stored again;
// then it makes the frame.
func (in *ingest) placeKnown(ctx context.Context, t *task) (again bool, err error) {
	if t.known == 0 || in.scatter.stored[t.id] {
		return false, nil
	}
	if in.scatter.keep(t.known) {
		name, err := in.store.packs.name(ctx, t.known)
		in.object.relies[name] = struct{}{}
		return false, err
	}
	in.scatter.stored[t.id] = true
	turn := in.store.newTurn()
	turn.take()
	defer turn.give()
	return true, in.makeFrame(t)
}

func (in *ingest) finish(isNAR bool) *object {
	o := in.object
	o.recipe = in.recipe.encode()
	o.content.nar = isNAR
	o.content.recipe = recipeID(o.recipe)
	o.content.table = in.cut.table
	in.hash.Sum(o.content.hash[:0])
	return o
}
