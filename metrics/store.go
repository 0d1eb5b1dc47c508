package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/index"
)

// Store has the counters of a store collected.
func (m *Metrics) Store(s *chunkstore.Store) {
	m.Registry.MustRegister(&storeCollector{s})
	m.Cache("plan", s.PlanCache)
}

// A number is a metric that is read when it is collected.
type number[T any] struct {
	desc *prometheus.Desc
	typ  prometheus.ValueType
	of   func(T) float64
}

func counter[T any](name, help string, of func(T) float64) number[T] {
	return number[T]{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, of}
}

func gauge[T any](name, help string, of func(T) float64) number[T] {
	return number[T]{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, of}
}

type storeNumber = *chunkstore.Counters

var storeNumbers = []number[storeNumber]{
	counter("dedupd_ingest_nars_total", "NARs that were uploaded and committed, known ones too.", func(c storeNumber) float64 { return float64(c.NARs) }),
	counter("dedupd_ingest_nar_bytes_total", "Bytes of these NARs.", func(c storeNumber) float64 { return float64(c.NARBytes) }),
	counter("dedupd_ingest_uploaded_bytes_total", "Bytes of the files, compressed or not, in which these NARs were uploaded.", func(c storeNumber) float64 { return float64(c.UploadedNARBytes) }),
	counter("dedupd_ingest_paths_total", "Narinfos that were uploaded and committed.", func(c storeNumber) float64 { return float64(c.Paths) }),
	counter("dedupd_ingest_files_total", "Logs, listings and other small files that were uploaded and committed.", func(c storeNumber) float64 { return float64(c.OtherFiles) }),
	counter("dedupd_ingest_new_chunks_total", "Chunks of uploads that the store did not have.", func(c storeNumber) float64 { return float64(c.NewChunks) }),
	counter("dedupd_ingest_new_chunk_bytes_total", "Bytes of these chunks, before compression.", func(c storeNumber) float64 { return float64(c.NewChunkBytes) }),
	counter("dedupd_ingest_new_frame_bytes_total", "Bytes of these chunks as they are stored.", func(c storeNumber) float64 { return float64(c.NewFrameBytes) }),
	counter("dedupd_ingest_known_chunks_total", "Chunks of uploads that the store had.", func(c storeNumber) float64 { return float64(c.KnownChunks) }),
	counter("dedupd_ingest_known_chunk_bytes_total", "Bytes of these chunks, before compression.", func(c storeNumber) float64 { return float64(c.KnownChunkBytes) }),
	counter("dedupd_ingest_again_chunks_total", "Of these, chunks that were stored again, since a NAR was scattered over too many packs.", func(c storeNumber) float64 { return float64(c.AgainChunks) }),
	counter("dedupd_ingest_again_chunk_bytes_total", "Bytes of these chunks, before compression.", func(c storeNumber) float64 { return float64(c.AgainChunkBytes) }),
	gauge("dedupd_uploads_running", "NARs that are being taken in.", func(c storeNumber) float64 { return float64(c.UploadsRunning) }),
	gauge("dedupd_uploads_waiting", "NARs that wait for others, for room in the spool, or for room on the disk.", func(c storeNumber) float64 { return float64(c.UploadsWaiting) }),
	gauge("dedupd_spool_packs", "Packs that are not in the bucket yet, the open one included.", func(c storeNumber) float64 { return float64(c.SpoolPacks) }),
	gauge("dedupd_spool_bytes", "Bytes of these packs.", func(c storeNumber) float64 { return float64(c.SpoolBytes) }),
	gauge("dedupd_spool_oldest_seconds", "Age of the oldest commit in these packs; 0 if there is none.", func(c storeNumber) float64 {
		if c.SpoolOldest.IsZero() {
			return 0
		}
		return time.Since(c.SpoolOldest).Seconds()
	}),
	counter("dedupd_damaged_chunks_total", "Chunks that were found damaged, and marked, since the start.", func(c storeNumber) float64 { return float64(c.DamagedChunks) }),
	gauge("dedupd_index_disk_bytes", "Size of the index's file.", func(c storeNumber) float64 { return float64(c.Index.Disk) }),
	gauge("dedupd_index_memtable_bytes", "Memory of changes of the index that are not in its file yet, estimated.", func(c storeNumber) float64 { return float64(c.Index.Memtable) }),
	gauge("dedupd_index_pending_rows", "Changed rows of the index that are not in its file yet.", func(c storeNumber) float64 { return float64(c.Index.Pending) }),
	gauge("dedupd_index_filter_bytes", "Memory of the index's filter.", func(c storeNumber) float64 { return float64(c.Index.Filter) }),
	counter("dedupd_bucket_cache_hits_total", "Blocks of packs that downloads found in the cache on disk.", func(c storeNumber) float64 { return float64(c.Cache.Hits) }),
	counter("dedupd_bucket_cache_misses_total", "Blocks of packs that downloads waited for.", func(c storeNumber) float64 { return float64(c.Cache.Misses) }),
	counter("dedupd_bucket_cache_hit_bytes_total", "Bytes that downloads read of blocks in the cache.", func(c storeNumber) float64 { return float64(c.Cache.HitBytes) }),
	counter("dedupd_bucket_cache_fetches_total", "Requests that the cache made of the bucket, without their retries.", func(c storeNumber) float64 { return float64(c.Cache.Fetches) }),
	counter("dedupd_bucket_cache_fetched_bytes_total", "Bytes that these brought.", func(c storeNumber) float64 { return float64(c.Cache.FetchedBytes) }),
	counter("dedupd_bucket_cache_evictions_total", "Blocks that the cache dropped for others.", func(c storeNumber) float64 { return float64(c.Cache.Evictions) }),
	counter("dedupd_bucket_cache_damaged_blocks_total", "Blocks that were damaged on the cache's disk, and fetched again.", func(c storeNumber) float64 { return float64(c.Cache.Dropped) }),
	gauge("dedupd_bucket_cache_bytes", "Room that the cache takes on the disk.", func(c storeNumber) float64 { return float64(c.Cache.Bytes) }),
}

var indexRows = prometheus.NewDesc("dedupd_index_rows", "Rows in the index's file.", []string{"table"}, nil)

type followNumber = *chunkstore.FollowStatus

// followNumbers are those of a follower.
var followNumbers = []number[followNumber]{
	gauge("dedupd_follow_lag_seconds", "Age of the last look into the bucket that succeeded.", func(s followNumber) float64 { return time.Since(s.Looked).Seconds() }),
	gauge("dedupd_follow_waiting_packs", "Packs of which commits rely on packs that are not there yet, or that cannot be read.", func(s followNumber) float64 { return float64(s.Waiting) }),
	gauge("dedupd_follow_waiting_oldest_seconds", "Age of the first of these; 0 if there is none.", func(s followNumber) float64 {
		if s.OldestWaiting.IsZero() {
			return 0
		}
		return time.Since(s.OldestWaiting).Seconds()
	}),
	counter("dedupd_follow_looks_total", "Looks into the bucket.", func(s followNumber) float64 { return float64(s.Looks) }),
	counter("dedupd_follow_failed_looks_total", "Looks that failed.", func(s followNumber) float64 { return float64(s.Failed) }),
	counter("dedupd_follow_applied_packs_total", "Packs that were applied.", func(s followNumber) float64 { return float64(s.Applied) }),
}

type scrubNumber = *chunkstore.ScrubRound

// scrubNumbers are those of the last round of scrubbing that was finished, or of one
// that has not yet been.
var scrubNumbers = []number[scrubNumber]{
	gauge("dedupd_scrub_finished_timestamp_seconds", "When the last round of scrubbing ended.", func(r scrubNumber) float64 { return float64(r.Finished.Unix()) }),
	gauge("dedupd_scrub_duration_seconds", "How long that round took.", func(r scrubNumber) float64 { return r.Finished.Sub(r.Started).Seconds() }),
	gauge("dedupd_scrub_packs", "Packs that it read.", func(r scrubNumber) float64 { return float64(r.Packs) }),
	gauge("dedupd_scrub_bytes", "Bytes of frames that it read.", func(r scrubNumber) float64 { return float64(r.Bytes) }),
	gauge("dedupd_scrub_damaged_chunks", "Damaged chunks that it found.", func(r scrubNumber) float64 { return float64(r.Damaged) }),
	gauge("dedupd_scrub_bad_packs", "Packs that it found gone, or without a directory that can be read.", func(r scrubNumber) float64 { return float64(r.BadPacks) }),
}

type storeCollector struct{ store *chunkstore.Store }

func (s *storeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, n := range storeNumbers {
		ch <- n.desc
	}
	for _, n := range scrubNumbers {
		ch <- n.desc
	}
	for _, n := range followNumbers {
		ch <- n.desc
	}
	ch <- indexRows
}

func (s *storeCollector) Collect(ch chan<- prometheus.Metric) {
	c := s.store.Counters()
	for _, n := range storeNumbers {
		ch <- prometheus.MustNewConstMetric(n.desc, n.typ, n.of(&c))
	}
	for t := index.Chunks; t <= index.Meta; t++ {
		ch <- prometheus.MustNewConstMetric(indexRows, prometheus.GaugeValue, float64(c.Index.Rows[t]), t.String())
	}
	if st := s.store.Following(); st != nil {
		for _, n := range followNumbers {
			ch <- prometheus.MustNewConstMetric(n.desc, n.typ, n.of(st))
		}
	}
	status, err := s.store.ScrubStatus(context.Background())
	if err != nil || status.Last == nil {
		return // there is nothing to tell; the other numbers are not to be lost
	}
	for _, n := range scrubNumbers {
		ch <- prometheus.MustNewConstMetric(n.desc, n.typ, n.of(status.Last))
	}
}
