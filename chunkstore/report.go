package chunkstore

import (
	"fmt"
	"io"
	"strings"
)

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
	LostPacks  int64 `json:"lost_packs"` // that are known to be; they are not looked at
	ReadData   bool  `json:"read_data"`

	// AbsentPaths and AbsentFiles count what is not served before it is uploaded again,
	// for damage that is known. That is no problem: the store is as whole as it can be.
	AbsentPaths int64 `json:"absent_paths"`
	AbsentFiles int64 `json:"absent_files"`
	// The affected ones are these, and those that damage will make absent that this check
	// has found. AffectedPaths and AffectedFiles name the first of them; files that hold
	// NARs are not among these.
	AffectedPathCount int64    `json:"affected_path_count"`
	AffectedPaths     []string `json:"affected_paths"`
	AffectedFileCount int64    `json:"affected_file_count"`
	AffectedFiles     []string `json:"affected_files"`

	// ProblemCount is the number of problems; Problems describes the first of them.
	ProblemCount int64    `json:"problem_count"`
	Problems     []string `json:"problems"`
	// Repaired is the number of problems that were dealt with, and Marked that of the
	// chunks that were found damaged and are marked so now.
	Repaired int64 `json:"repaired"`
	Marked   int64 `json:"marked"`
}

// maxProblems is the number of problems, and of affected paths, that a report names.
const maxProblems = 1000

// OK says that nothing is wrong that was not repaired.
func (r *CheckReport) OK() bool { return r.ProblemCount == r.Repaired }

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
	writeAffected(b, "store paths", r.AffectedPaths, r.AffectedPathCount)
	writeAffected(b, "files", r.AffectedFiles, r.AffectedFileCount)
	switch {
	case r.ProblemCount == 0:
		b.WriteString("no problems\n")
	case r.Repaired > 0:
		fmt.Fprintf(b, "%d problems, %d of them repaired: %d chunks were damaged\n", r.ProblemCount, r.Repaired, r.Marked)
	default:
		fmt.Fprintf(b, "%d problems\n", r.ProblemCount)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeAffected(b *strings.Builder, what string, names []string, count int64) {
	if count == 0 {
		return
	}
	fmt.Fprintf(b, "%d %s cannot be served until they are uploaded again:\n", count, what)
	for _, name := range names {
		fmt.Fprintf(b, "  %s\n", name)
	}
	if n := count - int64(len(names)); n > 0 {
		fmt.Fprintf(b, "  and %d more\n", n)
	}
}
