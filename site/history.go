package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
)

// A Sample is what the cache held at a time. Sizes are bytes.
type Sample struct {
	Time     time.Time `json:"time"`
	Paths    int64     `json:"paths"`
	NARs     int64     `json:"nars"`     // NarSize of every path
	Uploaded int64     `json:"uploaded"` // the files as they were uploaded
	Stored   int64     `json:"stored"`
}

func newSample(now time.Time, st *chunkstore.Stats) Sample {
	return Sample{now.UTC().Truncate(time.Second), st.StorePaths, st.PathBytes, st.UploadedBytes, st.StoredBytes}
}

// The history is a JSON file with samples, the oldest first: one an hour of the last
// week, one a day of the last year. It is for the chart, and nothing else depends on it.
const (
	historyFile = "history.json"
	maxHistory  = 1 << 20 // bytes

	sampleEvery = time.Hour
	hourlyFor   = 7 * 24 * time.Hour
	dailyFor    = 365 * 24 * time.Hour
)

// ReadHistory returns what the cache of a state directory held, the oldest first; nothing
// if it was never served.
func ReadHistory(state string) ([]Sample, error) {
	return readHistory(filepath.Join(state, historyFile))
}

// readHistory returns the samples in the file; there is no file at first.
func readHistory(path string) ([]Sample, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if info.Size() > maxHistory {
		return nil, fmt.Errorf("%s has %d bytes, more than there is to write", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var samples []Sample
	if err := json.Unmarshal(data, &samples); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return samples, nil
}

// writeHistory replaces the file, whole or not at all. It may be lost in a power cut.
func writeHistory(path string, samples []Sample) error {
	data, err := json.Marshal(samples)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), historyFile+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails when it was renamed
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// thin returns the samples that are kept at a time: of each day, or hour, the first.
func thin(samples []Sample, now time.Time) []Sample {
	var kept []Sample
	for _, s := range samples {
		age := now.Sub(s.Time)
		step := sampleEvery
		switch {
		case age > dailyFor, age < 0: // a clock was wrong
			continue
		case age > hourlyFor:
			step = 24 * time.Hour
		}
		if n := len(kept); n == 0 || s.Time.Truncate(step).After(kept[n-1].Time.Truncate(step)) {
			kept = append(kept, s)
		}
	}
	return kept
}
