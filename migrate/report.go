package migrate

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/dedupd/dedupd/chunkstore"
)

// A Reason says in a few words why something was not imported.
type Reason string

// All Reasons.
const (
	NoNarInfo    Reason = "no narinfo"    // of a path that was asked for, or referred to
	BadNarInfo   Reason = "bad narinfo"   // not one, or of another path or store directory
	BadSignature Reason = "bad signature" // of none of the keys that must have signed it
	NoNAR        Reason = "no NAR"
	BadNAR       Reason = "bad NAR"     // damaged, or with another hash or size than the narinfo says
	Unsupported  Reason = "unsupported" // compression
	TooLarge     Reason = "too large"
	BadFile      Reason = "bad file"    // a log, listing, …
	Conflict     Reason = "conflict"    // the store has something else under the name
	Refused      Reason = "refused"     // by the gateway that is imported into
	Unreachable  Reason = "unreachable" // the source has failed
)

// A Skip is something that was not imported.
type Skip struct {
	// Name is the base name of a store path, its hash part if no more is known, or the name
	// of another file.
	Name   string `json:"name"`
	Reason Reason `json:"reason"`
	Error  string `json:"error"`
}

// A Report says what an import has done.
type Report struct {
	DryRun   bool  `json:"dry_run"`
	Paths    int64 `json:"paths"`    // that were looked at
	Present  int64 `json:"present"`  // were in the store
	Imported int64 `json:"imported"` // of a dry run: would be
	// Shared are paths among the imported whose NAR came with another one.
	Shared int64 `json:"shared"`
	Files  int64 `json:"files"` // logs, listings, …
	// NARBytes is the size of the NARs that were imported, and ReadBytes what was read of
	// them from the source, compressed.
	NARBytes  int64 `json:"nar_bytes"`
	ReadBytes int64 `json:"read_bytes"`
	// Renamed are NARs whose file is not what its name or FileHash says, though the NAR is
	// right: they have another name here.
	Renamed int64            `json:"renamed"`
	Skipped map[Reason]int64 `json:"skipped"`
	// Incomplete are paths that were imported and refer to one that the store does not have.
	Incomplete int64   `json:"incomplete"`
	Seconds    float64 `json:"seconds"`
}

// Failed is the number of things that were not imported though they should have been.
func (r *Report) Failed() (n int64) {
	for _, k := range r.Skipped {
		n += k
	}
	return n
}

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	b := new(strings.Builder)
	verb := "imported"
	if r.DryRun {
		verb = "to import"
	}
	fmt.Fprintf(b, "%d paths: %d %s, %d were there\n", r.Paths, r.Imported, verb, r.Present)
	if r.Shared > 0 {
		fmt.Fprintf(b, "%d of them share the NAR of another one\n", r.Shared)
	}
	if r.DryRun {
		fmt.Fprintf(b, "%.1f MB of NARs\n", float64(r.NARBytes)/1e6)
	} else {
		fmt.Fprintf(b, "%.1f MB of NARs from %.1f MB in %.1f s, %.1f MB/s\n", float64(r.NARBytes)/1e6, float64(r.ReadBytes)/1e6, r.Seconds, float64(r.NARBytes)/1e6/max(r.Seconds, 1e-3))
	}
	if r.Files > 0 {
		fmt.Fprintf(b, "%d logs, listings and other files\n", r.Files)
	}
	if r.Renamed > 0 {
		fmt.Fprintf(b, "%d NARs are right, but not the file that their narinfo names: they have another name here\n", r.Renamed)
	}
	if r.Incomplete > 0 {
		fmt.Fprintf(b, "%d imported paths refer to paths that are not here\n", r.Incomplete)
	}
	for _, reason := range slices.Sorted(maps.Keys(r.Skipped)) {
		fmt.Fprintf(b, "skipped, %s: %d\n", reason, r.Skipped[reason])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Progress is how far an import is. It may be read at any time.
type Progress struct {
	paths, present, imported, skipped, narBytes, read atomic.Int64

	listed atomic.Int64                              // of 1<<20: see Counts.Listed
	chunks atomic.Pointer[func() (all, fresh int64)] // of Counts; nil if it is not known
}

// Counts are a Progress at one moment.
type Counts struct {
	Paths    int64 `json:"paths"`     // looked at
	Present  int64 `json:"present"`   // of these, were in the store
	Imported int64 `json:"imported"`  // of these, were not
	Skipped  int64 `json:"skipped"`   // paths and files that were left out
	NARBytes int64 `json:"nar_bytes"` // of the NARs of those that were imported
	Read     int64 `json:"read"`      // bytes from the source, compressed
	// Listed is about which part of the source's paths was looked at, 0 if nobody can
	// tell: hash parts are spread evenly, so that a list in their order says it.
	Listed float64 `json:"listed,omitempty"`
	// ChunkBytes came to the store meanwhile, whoever sent them, before compression, and
	// NewChunkBytes were not there; both are 0 if the store is elsewhere.
	ChunkBytes    int64 `json:"chunk_bytes,omitempty"`
	NewChunkBytes int64 `json:"new_chunk_bytes,omitempty"`
}

// Counts returns what there is now.
func (p *Progress) Counts() Counts {
	c := Counts{
		Paths: p.paths.Load(), Present: p.present.Load(), Imported: p.imported.Load(), Skipped: p.skipped.Load(),
		NARBytes: p.narBytes.Load(), Read: p.read.Load(), Listed: float64(p.listed.Load()) / (1 << 20),
	}
	if chunks := p.chunks.Load(); chunks != nil {
		c.ChunkBytes, c.NewChunkBytes = (*chunks)()
	}
	return c
}

// watch has the progress tell what comes to store from now on.
func (p *Progress) watch(store Sink) {
	s, ok := store.(interface{ Counters() chunkstore.Counters })
	if !ok {
		return
	}
	before := s.Counters()
	chunks := func() (all, fresh int64) {
		c := s.Counters()
		fresh = c.NewChunkBytes - before.NewChunkBytes
		return fresh + c.KnownChunkBytes - before.KnownChunkBytes, fresh
	}
	p.chunks.Store(&chunks)
}

// at returns which of 1<<20 equal parts of all hash parts one is in.
func at(hashPart string) (n int64) {
	const digits = "0123456789abcdfghijklmnpqrsvwxyz"
	for _, c := range []byte(hashPart[:4]) {
		n = n<<5 | int64(strings.IndexByte(digits, c))
	}
	return n
}
