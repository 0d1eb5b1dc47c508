package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// CheckOptions say how deep a check goes.
type CheckOptions struct {
	// ReadData reads and decodes every frame and computes every chunk's ID, instead of
	// the metadata alone.
	ReadData bool
	// Progress, if it is not nil, is called now and then with the packs that are done.
	Progress func(done, total int)
}

// CheckReport says what a check has looked at and found.
type CheckReport struct {
	Packs      int64 `json:"packs"`
	PackBytes  int64 `json:"pack_bytes"`
	Frames     int64 `json:"frames"`
	DeadFrames int64 `json:"dead_frames"` // stored twice, or damaged: not used
	Damaged    int64 `json:"damaged"`     // chunks that are known to be damaged where they are
	Chunks     int64 `json:"chunks"`
	Records    int64 `json:"records"`
	StorePaths int64 `json:"store_paths"`
	Objects    int64 `json:"objects"` // NARs and large files
	Files      int64 `json:"files"`
	BytesRead  int64 `json:"bytes_read"` // of frames, with ReadData
	ReadData   bool  `json:"read_data"`

	// ProblemCount is the number of problems; Problems describes the first of them.
	ProblemCount int64    `json:"problem_count"`
	Problems     []string `json:"problems"`
}

// maxProblems is the number of problems that a report describes.
const maxProblems = 1000

// OK says that nothing is wrong.
func (r *CheckReport) OK() bool { return r.ProblemCount == 0 }

// WriteText writes the report for people.
func (r *CheckReport) WriteText(w io.Writer) error {
	how := "metadata only"
	if r.ReadData {
		how = size(r.BytesRead) + " of frames decoded"
	}
	b := new(strings.Builder)
	fmt.Fprintf(b, "%d packs (%s), %d frames (%d unused), %d chunks, %d records, %d store paths, %d objects, %d files: %s\n",
		r.Packs, size(r.PackBytes), r.Frames, r.DeadFrames, r.Chunks, r.Records, r.StorePaths, r.Objects, r.Files, how)
	for _, p := range r.Problems {
		fmt.Fprintf(b, "  %s\n", p)
	}
	if r.OK() {
		b.WriteString("no problems\n")
	} else {
		fmt.Fprintf(b, "%d problems\n", r.ProblemCount)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// A checker compares packs and index, as they are at one moment between two commits.
type checker struct {
	store *Store
	opts  CheckOptions
	snap  index.Snapshot
	packs map[packfile.Name]bool // that the index has applied
	open  *openPack              // as it was at that moment, nil for none
	used  map[uint32]int64       // chunks that the index has in each pack, as counted from the packs
	dec   *packfile.Decoder
	buf   []byte
	CheckReport
}

// Check compares everything: that each reference leads to something, that every byte of
// every pack is accounted for, and that index and packs agree. Uploads go on meanwhile;
// what they add is not looked at. The error is about the check itself; what it finds is
// in the report.
func (s *Store) Check(ctx context.Context, opts CheckOptions) (*CheckReport, error) {
	c := &checker{store: s, opts: opts, packs: map[packfile.Name]bool{}, used: map[uint32]int64{}}
	c.ReadData, c.Problems = opts.ReadData, []string{}
	var err error
	if c.dec, err = packfile.NewDecoder(); err != nil {
		return nil, err
	}
	err = s.commit(ctx, &request{inspect: func(open *openPack) (err error) {
		if open != nil {
			o := *open
			o.entries = slices.Clone(open.entries)
			c.open = &o
		}
		c.snap, err = s.ix.Snapshot(ctx)
		return err
	}})
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	defer c.snap.Close()
	for _, step := range []func(context.Context) error{c.checkPacks, c.checkChunks, c.checkPaths, c.checkNames, c.checkContents, c.checkBucket} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
	}
	return &c.CheckReport, nil
}

func (c *checker) problem(format string, args ...any) {
	c.ProblemCount++
	if len(c.Problems) < maxProblems {
		c.Problems = append(c.Problems, fmt.Sprintf(format, args...))
	}
}

// found reports err as a problem if it is about the data, and returns it if it is not.
func (c *checker) found(what string, err error) error {
	if errors.Is(err, packfile.ErrCorrupt) || errors.Is(err, bucket.ErrNotFound) || errors.Is(err, index.ErrNotFound) ||
		errors.Is(err, ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, narinfo.ErrCorrupt) {
		c.problem("%s: %v", what, err)
		return nil
	}
	return err
}

func (c *checker) checkPacks(ctx context.Context) error {
	marks := c.snap.Marks()
	var names []packfile.Name
	for text := range marks {
		name, err := packfile.ParseName(text)
		if err != nil {
			c.problem("mark %q of the index: %v", text, err)
			continue
		}
		names = append(names, name)
		c.packs[name] = true
	}
	sortNames(names)
	for i, name := range names {
		err := c.checkPack(ctx, name, marks[name.String()])
		if err := c.found("pack "+name.String(), err); err != nil {
			return err
		}
		if c.opts.Progress != nil {
			c.opts.Progress(i+1, len(names))
		}
	}
	return nil
}

func (c *checker) checkPack(ctx context.Context, name packfile.Name, mark uint64) error {
	number, err := c.store.packs.number(ctx, name)
	if err != nil {
		return err
	}
	c.Packs++
	if c.open != nil && c.open.name == name {
		return c.checkOpen(ctx, number)
	}
	size, err := c.store.packs.size(ctx, number)
	if err != nil {
		return err
	}
	pack, err := packfile.Read(name, packReader{ctx, c.store.packs, number}, size)
	if err != nil {
		return err
	}
	c.PackBytes += size
	if uint64(pack.Entries) != mark {
		c.problem("pack %s: the index applied %d of %d entries", name, mark, pack.Entries)
	}
	for i, f := range pack.Frames {
		if err := c.checkFrame(ctx, name, number, pack.Offsets[i], f); err != nil {
			return err
		}
	}
	return pack.ForEachCommit(func(n int, commit *packfile.Commit) error {
		return c.checkCommit(ctx, newCommitID(name, n), commit)
	})
}

func (c *checker) checkOpen(ctx context.Context, number uint32) error {
	at, n := int64(packfile.HeaderSize), 0
	for _, e := range c.open.entries {
		for _, f := range e.Frames {
			if err := c.checkFrame(ctx, c.open.name, number, at, f); err != nil {
				return err
			}
			at += f.Size()
		}
		if e.Commit == nil {
			continue
		}
		commit, err := packfile.ParseCommit(e.Commit)
		if err != nil {
			return err
		}
		if err := c.checkCommit(ctx, newCommitID(c.open.name, n), commit); err != nil {
			return err
		}
		n++
	}
	c.PackBytes += at
	return nil
}

// checkFrame compares one frame of a pack with the index, and with its own bytes.
func (c *checker) checkFrame(ctx context.Context, pack packfile.Name, number uint32, at int64, f packfile.FrameInfo) error {
	c.Frames++
	ids := make([]index.Key, len(f.Chunks))
	locs := make([]index.Location, len(f.Chunks))
	for i, chunk := range f.Chunks {
		ids[i] = index.Key(chunk.ID)
	}
	if err := c.snap.Chunks(ctx, ids, locs); err != nil {
		return err
	}
	live, start := false, uint32(0)
	for i, chunk := range f.Chunks {
		want := frameLocation(number, at, f, i, start)
		start += chunk.Len
		damaged, err := c.knownDamage(ctx, &damage{pack, uint64(at), chunk.ID})
		if err != nil {
			return err
		}
		switch l := locs[i]; {
		case l == want && damaged:
			c.problem("pack %s: the index uses chunk %s at %d, which is damaged", pack, chunk.ID, at)
		case l == want:
			live = true
			c.used[number]++
		case damaged:
		case l.Pack == 0:
			c.problem("pack %s: chunk %s at %d is not in the index", pack, chunk.ID, at)
		case l.Pack == number && int64(l.Offset) == at:
			c.problem("pack %s: the index describes chunk %s at %d as %+v, the directory as %+v", pack, chunk.ID, at, l, want)
		}
	}
	if !live {
		c.DeadFrames++
	}
	if !c.opts.ReadData || !live {
		return nil // nobody will read what is not used
	}
	return c.found(fmt.Sprintf("pack %s, frame at %d", pack, at), c.readFrame(ctx, number, at, f))
}

// knownDamage counts, and says whether a chunk is known to be damaged where it is.
func (c *checker) knownDamage(ctx context.Context, d *damage) (bool, error) {
	_, err := c.snap.Get(ctx, index.Packs, d.key())
	if errors.Is(err, index.ErrNotFound) {
		return false, nil
	}
	if err == nil {
		c.Damaged++
	}
	return err == nil, err
}

func (c *checker) readFrame(ctx context.Context, number uint32, at int64, f packfile.FrameInfo) error {
	c.buf = slices.Grow(c.buf[:0], int(f.Size()))[:f.Size()]
	if err := c.store.packs.readAt(ctx, number, c.buf, at); err != nil {
		return err
	}
	c.BytesRead += f.Size()
	v, err := packfile.ParseFrame(f.Kind, len(f.Chunks), c.buf, f.Prefix, f.CRC)
	if err != nil {
		return err
	}
	return c.dec.Verify(&v, f.Chunks)
}

// checkCommit compares what a commit says with the index.
func (c *checker) checkCommit(ctx context.Context, id commitID, commit *packfile.Commit) error {
	for _, p := range commit.Packs {
		if !c.packs[p] {
			c.problem("pack %s: a commit relies on pack %s, which the index does not know", id.pack(), p)
		}
	}
	for _, r := range commit.Records {
		c.Records++
		err := c.checkRecord(ctx, id, r)
		if err := c.found(fmt.Sprintf("pack %s: a record of type %d", id.pack(), r.Type), err); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) checkRecord(ctx context.Context, id commitID, r packfile.Record) error {
	switch r.Type {
	case packfile.RecordRecipe:
		key := recipeID(r.Body)
		return c.checkRow(ctx, index.Recipes, key[:], id, r.Body)
	case packfile.RecordContent:
		o, err := decodeContent(r.Body)
		if err != nil {
			return err
		}
		return c.checkRow(ctx, index.Contents, o.hash[:], id, r.Body)
	case packfile.RecordName:
		f, err := decodeFile(r.Body)
		if err != nil {
			return err
		}
		return c.checkRow(ctx, index.Names, []byte(f.Name), id, r.Body)
	case packfile.RecordNarInfo:
		return c.checkNarInfo(ctx, r.Body)
	case packfile.RecordDamage:
		d, err := decodeDamage(r.Body)
		if err != nil {
			return err
		}
		return c.checkRow(ctx, index.Packs, d.key(), id, nil)
	}
	return fmt.Errorf("unknown type: %w", packfile.ErrCorrupt)
}

// checkRow checks that a record's row is there, from this commit or a lower one.
func (c *checker) checkRow(ctx context.Context, t index.Table, key []byte, id commitID, body []byte) error {
	row, err := c.snap.Get(ctx, t, key)
	if err != nil {
		return fmt.Errorf("row %q of %s: %w", key, t, err)
	}
	have, haveBody := splitRow(row)
	if id.less(have) || have == id && !bytes.Equal(body, haveBody) {
		return fmt.Errorf("row %q of %s is not what the pack says: %w", key, t, packfile.ErrCorrupt)
	}
	return nil
}

func (c *checker) checkNarInfo(ctx context.Context, text []byte) error {
	info, err := narinfo.Parse(text, c.store.repo.StoreDir)
	if err != nil {
		return err
	}
	row, err := c.snap.Get(ctx, index.Paths, []byte(info.StorePath.HashPart()))
	if err != nil {
		return fmt.Errorf("path %s: %w", info.StorePath, err)
	}
	vs, err := decodeVariants(row, c.store.repo.StoreDir)
	if err != nil {
		return err
	}
	for _, v := range vs {
		if v.info.Fingerprint(c.store.repo.StoreDir) == info.Fingerprint(c.store.repo.StoreDir) && hasSigs(v.info, info.Sigs) {
			return nil
		}
	}
	return fmt.Errorf("the index has another narinfo for %s: %w", info.StorePath, packfile.ErrCorrupt)
}

// checkChunks finds chunks that the index has where no pack has them.
func (c *checker) checkChunks(ctx context.Context) error {
	have := map[uint32]int64{}
	err := c.snap.ForEachChunk(ctx, func(_ index.Key, l index.Location) error {
		c.Chunks++
		have[l.Pack]++
		return nil
	})
	for number, n := range have {
		if n != c.used[number] {
			c.problem("the index has %d chunks in pack number %d, of which the pack has %d", n, number, c.used[number])
		}
	}
	return err
}

func (c *checker) checkPaths(ctx context.Context) error {
	return c.snap.ForEach(ctx, index.Paths, nil, func(key, row []byte) error {
		c.StorePaths++
		vs, err := decodeVariants(row, c.store.repo.StoreDir)
		if err == nil && len(vs) == 0 {
			err = errRecord
		}
		for _, v := range vs {
			if err == nil {
				err = c.checkContent(ctx, v.info.NarHash, int64(v.info.NarSize), true)
			}
		}
		return c.found(fmt.Sprintf("path %s", key), err)
	})
}

func (c *checker) checkNames(ctx context.Context) error {
	return c.snap.ForEach(ctx, index.Names, nil, func(key, row []byte) error {
		c.Files++
		_, body := splitRow(row)
		f, err := decodeFile(body)
		if err == nil && f.inline == nil {
			err = c.checkContent(ctx, f.Content, f.Size, f.NAR)
		}
		return c.found(fmt.Sprintf("file %s", key), err)
	})
}

func (c *checker) checkContent(ctx context.Context, hash Hash, size int64, isNAR bool) error {
	row, err := c.snap.Get(ctx, index.Contents, hash[:])
	if err != nil {
		return fmt.Errorf("object %x: %w", hash, err)
	}
	_, body := splitRow(row)
	o, err := decodeContent(body)
	if err == nil && (o.size != size || isNAR && !o.nar) {
		err = fmt.Errorf("object %x has %d bytes, not %d, or is no NAR: %w", hash, o.size, size, packfile.ErrCorrupt)
	}
	return err
}

// checkContents checks that every object's recipe and chunks are there and make it up.
func (c *checker) checkContents(ctx context.Context) error {
	return c.snap.ForEach(ctx, index.Contents, nil, func(key, row []byte) error {
		c.Objects++
		_, body := splitRow(row)
		o, err := decodeContent(body)
		if err == nil {
			_, err = makePlan(ctx, c.snap, o)
		}
		return c.found(fmt.Sprintf("object %x", key), err)
	})
}

// checkBucket finds packs that the index does not know, and what is no pack.
func (c *checker) checkBucket(ctx context.Context) error {
	return c.store.opts.Bucket.List(ctx, "", func(info bucket.Info) error {
		text, isPack := strings.CutPrefix(info.Key, packPrefix)
		name, err := packfile.ParseName(strings.TrimSuffix(text, packSuffix))
		switch {
		case info.Key == repositoryKey:
		case !isPack || err != nil:
			c.problem("the bucket holds %s, which is not dedupd's", info.Key)
		case !c.packs[name] && name.Writer != c.store.spool.writer:
			c.problem("the bucket holds pack %s, which the index does not know", name)
		}
		return nil
	})
}
