package chunkstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"text/tabwriter"

	"github.com/zeebo/blake3"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// Stats says what a repository holds and what deduplication won. All sizes are bytes.
type Stats struct {
	StorePaths int64 `json:"store_paths"`
	PathBytes  int64 `json:"path_bytes"` // NarSize of every store path
	NARs       int64 `json:"nars"`       // distinct ones
	NARBytes   int64 `json:"nar_bytes"`
	Files      int64 `json:"files"` // logs, listings and the like
	FileBytes  int64 `json:"file_bytes"`

	// UploadedFiles and UploadedBytes are the NAR files as they were uploaded: what an
	// ordinary cache would hold.
	UploadedFiles int64 `json:"uploaded_files"`
	UploadedBytes int64 `json:"uploaded_bytes"`

	Chunks     int64 `json:"chunks"`
	ChunkBytes int64 `json:"chunk_bytes"` // before compression
	FrameBytes int64 `json:"frame_bytes"` // after it

	// StoredBytes is everything in the bucket, and in the spool on the way there.
	StoredBytes int64 `json:"stored_bytes"`
	Objects     int64 `json:"objects"` // in the bucket
	Packs       int64 `json:"packs"`   // in bucket and spool
	SpoolPacks  int64 `json:"spool_packs"`
	SpoolBytes  int64 `json:"spool_bytes"`

	// MaskingSavedBytes is about what would be stored more if store path hashes and
	// build-ids were not masked: the chunks that occur with several values, once for each.
	MaskingSavedBytes int64 `json:"masking_saved_bytes"`
	// WireBytes is what a client downloads who gets every NAR once.
	WireBytes int64 `json:"wire_bytes"`

	// AbsentObjects are NARs and large files that are damaged; they are in no other number.
	AbsentObjects int64 `json:"absent_objects"`

	IndexBytes  int64 `json:"index_bytes"`  // on disk
	FilterBytes int64 `json:"filter_bytes"` // in memory

	// Requests are those to the bucket, nil if it counts none.
	Requests *RequestStats `json:"requests,omitempty"`

	// Recovered is what opening the store has found and done.
	Recovered RecoveryReport `json:"recovered"`
	// Scrub is what scrubbing does and found last.
	Scrub *ScrubStatus `json:"scrub"`
	// Following says how far behind a follower is; nil for a writer.
	Following *FollowStatus `json:"following,omitempty"`

	// Ratios of the numbers above; 0 where there is nothing to divide by.
	DedupRatio      float64 `json:"dedup_ratio"`       // path bytes to chunk bytes
	StoredRatio     float64 `json:"stored_ratio"`      // stored bytes to path bytes
	UploadedRatio   float64 `json:"uploaded_ratio"`    // stored bytes to uploaded bytes
	ObjectsPerPath  float64 `json:"objects_per_path"`  // in the bucket
	WirePerNARByte  float64 `json:"wire_per_nar_byte"` // served bytes for each byte of NAR
	WirePerUploaded float64 `json:"wire_per_uploaded"` // served bytes to uploaded bytes
	MaskingOfStored float64 `json:"masking_of_stored"` // saved by masking, to stored bytes
}

// Stats counts. It reads the whole index and lists the bucket.
func (s *Store) Stats(ctx context.Context) (*Stats, error) {
	snap, err := s.ix.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer snap.Close()
	c := &counter{ctx: ctx, snap: snap, storeDir: s.repo.StoreDir}
	for _, step := range []func() error{c.chunks, c.paths, c.names, c.contents} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("count: %w", err)
		}
	}
	st := &c.Stats
	err = s.opts.Bucket.List(ctx, "", "", func(info bucket.Info) error {
		st.Objects++
		st.StoredBytes += info.Size
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list bucket: %w", err)
	}
	spool, err := s.spooled(ctx)
	if err != nil {
		return nil, err
	}
	for _, size := range spool {
		st.SpoolPacks++
		st.SpoolBytes += size
	}
	st.StoredBytes += st.SpoolBytes
	st.Packs = int64(len(snap.Marks()))
	if st.Scrub, err = s.scrubStatus(ctx, snap); err != nil {
		return nil, err
	}
	st.Recovered, st.Following = s.recovered, s.Following()
	st.Requests = s.Requests()
	ix := s.ix.Stats()
	st.IndexBytes, st.FilterBytes = ix.Disk, ix.Filter
	st.MaskingSavedBytes = int64(math.Round(float64(c.variants.sum()-c.masked.sum()) * ratio(st.FrameBytes, st.ChunkBytes)))
	st.setRatios()
	return st, nil
}

func ratio(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func (st *Stats) setRatios() {
	st.DedupRatio = ratio(st.PathBytes, st.ChunkBytes)
	st.StoredRatio = ratio(st.StoredBytes, st.PathBytes)
	st.UploadedRatio = ratio(st.StoredBytes, st.UploadedBytes)
	st.ObjectsPerPath = ratio(st.Objects, st.StorePaths)
	st.WirePerNARByte = ratio(st.WireBytes, st.NARBytes)
	st.WirePerUploaded = ratio(st.WireBytes, st.UploadedBytes)
	st.MaskingOfStored = ratio(st.MaskingSavedBytes, st.StoredBytes)
}

// spooled returns the sizes of the packs of the spool that are not in the bucket yet.
func (s *Store) spooled(ctx context.Context) (sizes []int64, err error) {
	err = s.commit(ctx, &request{inspect: func(open *openPack) error {
		if open != nil {
			sizes = append(sizes, open.size())
		}
		sizes = append(sizes, s.uploader.waitingSizes()...)
		return nil
	}})
	return sizes, err
}

// A counter makes Stats from a snapshot of the index.
type counter struct {
	Stats
	ctx      context.Context
	snap     index.Snapshot
	storeDir string
	masked   distinct // chunks with spans
	variants distinct // the same, once for each set of values
}

func (c *counter) chunks() error {
	return c.snap.ForEachChunk(c.ctx, func(_ index.Key, l index.Location) error {
		c.Chunks++
		c.ChunkBytes += int64(l.Len)
		if l.Index == 0 {
			c.FrameBytes += int64(l.Prefix) + int64(l.Payload)
		}
		return nil
	})
}

func (c *counter) paths() error {
	return c.snap.ForEach(c.ctx, index.Paths, nil, func(_, row []byte) error {
		vs, err := decodeVariants(row, c.storeDir)
		if err == nil && len(vs) > 0 {
			c.StorePaths++
			c.PathBytes += int64(vs[0].info.NarSize)
		}
		return err
	})
}

func (c *counter) names() error {
	return c.snap.ForEach(c.ctx, index.Names, nil, func(_, row []byte) error {
		_, body := splitRow(row)
		f, err := decodeFile(body)
		if err != nil {
			return err
		}
		if f.NAR {
			c.UploadedFiles++
			c.UploadedBytes += f.FileSize
		} else {
			c.Files++
			c.FileBytes += f.Size
		}
		return nil
	})
}

func (c *counter) contents() error {
	return c.snap.ForEach(c.ctx, index.Contents, nil, func(key, row []byte) error {
		_, body := splitRow(row)
		o, err := decodeContent(body)
		if err != nil {
			return err
		}
		p, err := makePlan(c.ctx, c.snap, o)
		if errors.Is(err, packfile.ErrCorrupt) {
			c.AbsentObjects++
			return nil
		} else if err != nil {
			return err
		}
		if o.nar {
			c.NARs++
			c.NARBytes += o.size
			c.WireBytes += p.zsize
		}
		for i := range p.pieces {
			c.countMasked(p, &p.pieces[i])
		}
		return nil
	})
}

func (c *counter) countMasked(p *plan, pp *planPiece) {
	if len(pp.refs) == 0 || pp.literal() {
		return
	}
	h := blake3.New()
	h.Write(pp.id[:])
	for _, ref := range pp.refs {
		h.Write(p.values[ref][:])
	}
	c.masked.add(binary.LittleEndian.Uint64(pp.id[:]), pp.len)
	c.variants.add(binary.LittleEndian.Uint64(h.Sum(nil)), pp.len)
}

// distinct adds up the sizes of distinct things in bounded memory: exactly while they
// are few, then from those whose hash ends in a number of zero bits (adaptive sampling,
// Flajolet 1990).
type distinct struct {
	sizes map[uint64]int64
	zeros int
}

const maxDistinct = 1 << 18

func (d *distinct) add(hash uint64, size int64) {
	if bits.TrailingZeros64(hash) < d.zeros {
		return
	}
	if d.sizes == nil {
		d.sizes = map[uint64]int64{}
	}
	d.sizes[hash] = size
	for len(d.sizes) > maxDistinct {
		d.zeros++
		for h := range d.sizes {
			if bits.TrailingZeros64(h) < d.zeros {
				delete(d.sizes, h)
			}
		}
	}
}

func (d *distinct) sum() (n int64) {
	for _, size := range d.sizes {
		n += size
	}
	return n << d.zeros
}

// WriteText writes st as a table for people.
func (st *Stats) WriteText(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("store paths", "%d, %s of NARs", st.StorePaths, size(st.PathBytes))
	row("distinct NARs", "%d, %s", st.NARs, size(st.NARBytes))
	row("unique chunks", "%d, %s, compressed %s", st.Chunks, size(st.ChunkBytes), size(st.FrameBytes))
	row("stored", "%s: %.1f %% of the NARs", size(st.StoredBytes), 100*st.StoredRatio)
	row("deduplication", "%.2f : 1 before compression", st.DedupRatio)
	row("saved by masking", "about %s, %.1f %% of what is stored", size(st.MaskingSavedBytes), 100*st.MaskingOfStored)
	row("files as uploaded", "%d, %s: dedupd stores %.1f %% of that", st.UploadedFiles, size(st.UploadedBytes), 100*st.UploadedRatio)
	row("download of every NAR", "%s: %.2f bytes for each byte of NAR, %.2f for each uploaded", size(st.WireBytes), st.WirePerNARByte, st.WirePerUploaded)
	row("other files", "%d, %s", st.Files, size(st.FileBytes))
	row("objects in the bucket", "%d, %.4f for each store path", st.Objects, st.ObjectsPerPath)
	row("packs", "%d, of which %d (%s) wait in the spool", st.Packs, st.SpoolPacks, size(st.SpoolBytes))
	row("index", "%s on disk, filter %s in memory", size(st.IndexBytes), size(st.FilterBytes))
	if st.AbsentObjects > 0 {
		row("damaged", "%d objects, which are absent until they are uploaded again", st.AbsentObjects)
	}
	if st.Requests != nil {
		st.Requests.writeRows(row, st)
	}
	st.Recovered.writeRows(row)
	if st.Following != nil {
		st.Following.writeRows(row)
	}
	if st.Scrub != nil {
		st.Scrub.writeRows(row)
	}
	return tw.Flush()
}

// size writes a number of bytes with a decimal unit.
func size(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	f, i := float64(n), 0
	for ; f >= 1000 && i < len(units)-1; i++ {
		f /= 1000
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
