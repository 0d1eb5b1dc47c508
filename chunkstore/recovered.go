package chunkstore

import (
	"context"
	"log/slog"
	"time"
)

// RecoveryReport says what opening a store has found and done.
type RecoveryReport struct {
	Packs       int           `json:"packs"`   // that were open, and are sealed now
	Entries     int           `json:"entries"` // of their journals
	Commits     int           `json:"commits"` // in these
	Dropped     int64         `json:"dropped"` // bytes behind the ends of journals, that nobody was told of
	Applied     int           `json:"applied"` // packs that the index on disk did not have
	IndexAnew   bool          `json:"index_anew"`
	Snapshot    string        `json:"snapshot,omitempty"` // that the index was made from
	Uploads     int           `json:"uploads"`            // packs that the bucket does not have yet
	UploadBytes int64         `json:"upload_bytes"`
	Elapsed     time.Duration `json:"elapsed_ns"`

	// Salvaged packs were damaged in the spool: what is whole of them is in new ones.
	// LostChunks is the number of chunks that are not, as far as that can be known.
	Salvaged   int   `json:"salvaged"`
	LostChunks int64 `json:"lost_chunks"`
	// Aside are all damaged files in the spool, those of earlier starts too. They are of no
	// use to the store.
	Aside []string `json:"aside"`
	// BadPacks are packs in the bucket that cannot be read and that the index does not
	// have. Omitted commits rely on these, or on packs that are missing. Check repairs that.
	BadPacks []string `json:"bad_packs"`
	Omitted  int      `json:"omitted"`
}

// OK says that nothing was found that an operator should look at.
func (r *RecoveryReport) OK() bool {
	return r.Salvaged == 0 && len(r.Aside) == 0 && len(r.BadPacks) == 0 && r.Omitted == 0
}

func (r *RecoveryReport) log(log *slog.Logger) {
	level := slog.LevelInfo
	if !r.OK() {
		level = slog.LevelError
	}
	log.Log(context.Background(), level, "recovered", "packs", r.Packs, "entries", r.Entries, "commits", r.Commits,
		"dropped bytes", r.Dropped, "packs applied", r.Applied, "index anew", r.IndexAnew, "from snapshot", r.Snapshot,
		"packs to upload", r.Uploads, "bytes to upload", r.UploadBytes,
		"packs salvaged", r.Salvaged, "chunks lost", r.LostChunks, "files set aside", len(r.Aside),
		"bad packs", len(r.BadPacks), "commits left out", r.Omitted, "elapsed", r.Elapsed)
}

func (r *RecoveryReport) writeRows(row func(name, format string, args ...any)) {
	row("at start", "%d packs with %d commits were open, %d packs were new to the index, in %v", r.Packs, r.Commits, r.Applied, r.Elapsed.Round(time.Millisecond))
	if !r.OK() {
		row("damage at start", "%d packs of the spool with %d chunks lost, %d packs of the bucket, %d commits left out, %d files set aside",
			r.Salvaged, r.LostChunks, len(r.BadPacks), r.Omitted, len(r.Aside))
	}
}
