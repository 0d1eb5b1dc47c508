// Package chunkstore is the engine of dedupd: it takes objects in, NARs above all, cuts
// them into chunks, commits them to packs, and gives them back.
//
// docs/architecture.md follows a chunk through the files of this package.
package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/packfile"
)

// ErrNotFound is returned for what the store does not have. It never stands for a
// bucket or an index that cannot be read.
var ErrNotFound = errors.New("not found")

// ErrClosed is returned by commits after Close.
var ErrClosed = errors.New("store is closed")

// ErrReadOnly is wrapped by all that would change a store that only follows others.
var ErrReadOnly = errors.New("this server only reads")

// Options are the settings of a store. Zero values mean the defaults.
type Options struct {
	// State is the directory of the spool and the index. It belongs to one process.
	State string
	// Bucket holds the packs.
	Bucket bucket.Bucket
	// Repository is what a new repository gets and an existing one must have. The zero
	// Repository takes an existing one as it is, and means the defaults for a new one.
	Repository Repository
	// PackSize is the size in bytes at which a pack is sealed; default 32 MiB.
	PackSize int64
	// FlushInterval is the age at which a commit's pack is sealed; default 30 s.
	FlushInterval time.Duration
	// Workers is how many processors uploads may keep busy; default GOMAXPROCS. Where that
	// is some more, readers do not wait for uploads.
	Workers int
	// PieceMemory bounds, in bytes, what chunks of running uploads take on their way to
	// disk; default 48 MiB. Beside it an upload has buffers of about 5 MiB.
	PieceMemory int64
	// DecoderMemory bounds, in bytes, what the decoders of running uploads take; default
	// 160 MiB. Uploads wait for each other; one that needs more by itself is refused.
	DecoderMemory int64
	// XZ decodes NARs in xz where that pays, its memory counted in DecoderMemory; default
	// nil, for doing so in this process.
	XZ *compression.Program
	// ReadMemory bounds, in bytes, what downloads take of frames, and of what they decode
	// to; default 64 MiB. Those that find none left wait for others.
	ReadMemory int64
	// CacheSize is how many bytes of packs in the bucket are kept in the state directory for
	// downloads; default none. Fetching takes up to half of ReadMemory more.
	CacheSize int64
	// PlanCache bounds, in bytes, what is remembered of how to serve NARs; default 32 MiB.
	PlanCache int64
	// IndexMemory bounds, in bytes, the changes of the index that wait to be written, and
	// those that are being written; default 64 MiB each.
	IndexMemory int
	// MaxFragments is how many packs that are not in the spool any more 8 MiB of a NAR may
	// be scattered over; default 16, negative for any number. Known chunks in more are
	// stored again.
	MaxFragments int
	// ParallelPuts is how many packs are sent to the bucket at a time; default 4.
	ParallelPuts int
	// RetryInterval is how long a failed upload of a pack waits before it is tried again;
	// default 1 s. Each further failure doubles that, up to 60 times as long. The index
	// tries a full disk again after a tenth of it, up to 5 times as long.
	RetryInterval time.Duration
	// AllowMissingPacks opens a store that lacks packs that the index names. It is for
	// repairing it, which makes it one that opens without: see CheckOptions.
	AllowMissingPacks bool
	// Limits say how much is taken in at a time.
	Limits Limits
	// OnLookup, if it is not nil, is told how long each look-up in the index has taken. It
	// is called concurrently.
	OnLookup func(time.Duration)
	// Follow opens a store that never writes to the bucket. What others add to it is seen
	// within FollowInterval and the time that they take to seal and upload a pack.
	Follow bool
	// FollowInterval is how often a follower looks into the bucket; default 10 s. Who asks
	// for a path that it does not know has it look sooner, after a tenth of that.
	FollowInterval time.Duration
	// FollowGap is how long a follower waits for a pack that was overtaken by later ones of
	// its writer, and for the last packs of a writer that has a successor; default 10 min.
	// What comes later than that is found by the list of all packs that it makes every hour.
	FollowGap time.Duration
	// Log takes what an operator should know; default slog.Default().
	Log *slog.Logger

	rebuild      bool // the index; see RebuildIndex
	fromSnapshot bool
	progress     func(RebuildProgress)
}

func (o *Options) setDefaults() {
	if o.PackSize == 0 {
		o.PackSize = 32 << 20
	}
	if o.FlushInterval == 0 {
		o.FlushInterval = 30 * time.Second
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.PieceMemory == 0 {
		o.PieceMemory = 48 << 20
	}
	if o.DecoderMemory == 0 {
		o.DecoderMemory = 160 << 20
	}
	if o.ReadMemory == 0 {
		o.ReadMemory = 64 << 20
	}
	if o.PlanCache == 0 {
		o.PlanCache = 32 << 20
	}
	if o.MaxFragments == 0 {
		o.MaxFragments = 16
	}
	if o.ParallelPuts == 0 {
		o.ParallelPuts = 4
	}
	if o.RetryInterval == 0 {
		o.RetryInterval = time.Second
	}
	if o.FollowInterval == 0 {
		o.FollowInterval = 10 * time.Second
	}
	if o.FollowGap == 0 {
		o.FollowGap = 10 * time.Minute
	}
	o.Limits.setDefaults()
	if o.Log == nil {
		o.Log = slog.Default()
	}
}

// A Store is a repository that is open for reading, and, unless it is a follower, for
// writing. Its methods may be called concurrently.
type Store struct {
	opts Options
	repo Repository
	log  *slog.Logger

	lock     *os.File
	ix       index.Index
	packs    *packTable
	spool    *spool
	uploader *uploader
	commits  *committer
	uploads  *admission
	plans    *planCache
	buffers  bufferPool
	turns    chan struct{}          // see turn
	encoders chan *packfile.Encoder // one for each of Options.Workers
	decoders chan *packfile.Decoder
	memory   *semaphore.Weighted // bytes of Options.PieceMemory
	decoding *semaphore.Weighted // bytes of Options.DecoderMemory
	reading  *readBudget         // bytes of Options.ReadMemory
	staging  string
	ledger   *ledger // nil for a bucket that counts no requests

	restored  string         // snapshot that Open has made the index from
	rebuilt   RebuildReport  // what Open has done to the index
	recovered RecoveryReport // what Open has found and done
	leftOut   leftOut
	follower  *follower // nil for a writer
	lease     *lease    // nil for none
	leaseLost atomic.Pointer[error]
	damages   atomic.Uint64        // how often this process has found chunks damaged
	marked    atomic.Uint64        // the same, counted when everybody sees it
	wasIntact atomic.Pointer[bool] // what intact has found; nil before it has looked

	counts counts

	open   sync.RWMutex // held for reading by commits, for writing by Close
	closed bool

	snapshotting sync.Mutex // held while a snapshot is written

	committing errgroup.Group
	uploading  errgroup.Group
	leasing    errgroup.Group
	stopUpload context.CancelFunc // and following
	stopLease  context.CancelFunc
}

// Open opens the repository in opts.Bucket, or creates it, and takes the state directory
// for this process. What an earlier process left in the spool is recovered, and an index
// that is damaged is rebuilt. A follower creates nothing, and is refused a state directory
// with a spool that is not in the bucket.
func Open(ctx context.Context, opts Options) (*Store, error) {
	opts.setDefaults()
	s, err := open(ctx, opts)
	if errors.Is(err, index.ErrDamaged) {
		// Recovery has read it further than opening it did. The next opening knows.
		opts.Log.Error("the index is damaged; the store is opened again without it", "err", err)
		s, err = open(ctx, opts)
	}
	return s, err
}

func open(ctx context.Context, opts Options) (_ *Store, err error) {
	s := &Store{opts: opts, log: opts.Log, staging: filepath.Join(opts.State, "staging")}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	for _, dir := range []string{opts.State, s.staging} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	if s.lock, err = lockState(opts.State); err != nil {
		return nil, err
	}
	if s.spool, err = newSpool(filepath.Join(opts.State, "spool")); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	fresh, err := s.openIndex(ctx)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	owner, err := stateOwner(opts.State)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	// Where the state is somebody's a bucket without a repository is the wrong one, or a
	// disk that is not mounted.
	if s.repo, err = openRepository(ctx, opts.Bucket, opts.Repository, fresh && owner.ID == "" && !opts.Follow); err != nil {
		return nil, err
	}
	if err := s.repo.claimState(opts.State, owner); err != nil {
		return nil, err
	}
	s.ledger = openLedger(opts.Bucket, opts.State, s.log)
	if err := s.makeCodecs(); err != nil {
		return nil, err
	}
	s.plans, s.reading = newPlanCache(opts.PlanCache), newReadBudget(opts.ReadMemory)
	s.memory, s.decoding = semaphore.NewWeighted(opts.PieceMemory), semaphore.NewWeighted(opts.DecoderMemory)
	s.packs = newPackTable(opts.Bucket, s.ix)
	s.uploader = newUploader(&s.opts, s.ix, s.spool, s.packs)
	s.uploads = newAdmission(opts.Limits, opts.State, s.uploader, s.log)
	if opts.CacheSize > 0 {
		s.packs.cache = s.openCache()
	}
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	s.start()
	return s, nil
}

func (s *Store) makeCodecs() error {
	n := s.opts.Workers
	s.turns, s.encoders, s.decoders = make(chan struct{}, n), make(chan *packfile.Encoder, n), make(chan *packfile.Decoder, n)
	for range n {
		e, err := packfile.NewEncoder(packfile.LevelDefault)
		if err != nil {
			return err
		}
		d, err := packfile.NewDecoder()
		if err != nil {
			return err
		}
		s.encoders <- e
		s.decoders <- d
	}
	return nil
}

func (s *Store) start() {
	s.commits = &committer{store: s, requests: make(chan *request), stuck: make(chan struct{}), applier: newApplier(s.ix, s.repo.StoreDir)}
	s.committing.Go(func() error { return s.commits.run(context.Background(), s.log) })
	ctx, cancel := context.WithCancel(context.Background())
	s.stopUpload = cancel
	s.uploading.Go(func() error {
		s.uploader.run(ctx)
		return nil
	})
	s.uploading.Go(func() error {
		s.ledger.run(ctx)
		return nil
	})
	if s.follower != nil {
		s.uploading.Go(func() error {
			s.follower.run(ctx)
			return nil
		})
	}
}

// commit submits r unless the store is closed.
func (s *Store) commit(ctx context.Context, r *request) error {
	s.open.RLock()
	defer s.open.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if s.follower != nil && r.records != nil {
		return ErrReadOnly
	}
	if r.relies == nil {
		r.relies = map[packfile.Name]struct{}{}
	}
	return s.commits.submit(ctx, r)
}

// Close turns away uploads that wait for room, waits for running commits, seals the open pack, uploads as much of the spool as
// it can before ctx ends, and closes the index. What stays in the spool is uploaded by
// the next process.
func (s *Store) Close(ctx context.Context) error {
	s.open.Lock()
	if s.closed {
		s.open.Unlock()
		return nil
	}
	s.closed = true
	s.open.Unlock()
	s.uploads.close()
	close(s.commits.requests)
	err := s.committing.Wait()
	s.stopUpload()
	s.uploading.Wait()
	s.uploader.drain(ctx)
	s.giveBack(ctx)
	s.ledger.save()
	return errors.Join(err, s.release())
}

func (s *Store) release() error {
	var errs []error
	if s.packs != nil {
		errs = append(errs, s.packs.close())
	}
	if s.ix != nil {
		errs = append(errs, s.ix.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Repository returns the settings of the repository.
func (s *Store) Repository() Repository { return s.repo }

// Flush seals the open pack, and waits until the bucket has all packs and the index is
// on disk.
func (s *Store) Flush(ctx context.Context) error {
	if err := s.commit(ctx, &request{seal: true}); err != nil {
		return err
	}
	defer s.ledger.save()
	return s.uploader.wait(ctx)
}
