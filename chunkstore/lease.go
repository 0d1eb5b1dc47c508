package chunkstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dedupd/dedupd/bucket"
)

// A lease says who writes to a bucket, so that a second writer is noticed, which somebody
// has started by mistake. Data is safe without it: packs have names of their own and are
// right in any order. What it prevents is that two servers, each of which sees only its
// own uploads, are taken for one cache.
//
// It is a row of objects, of which none is ever changed: who creates leases/<epoch> has the
// lease in that epoch. The holder renews it by creating the next one. Nobody compares
// clocks: that a holder is gone is seen by nothing newer appearing for as long as its
// lease says, by the clock of who waits.
//
// A holder that cannot reach the bucket goes on taking uploads for as long as the spool
// has room, however old its lease is: that is what the spool is for, and whoever took the
// lease meanwhile is not harmed by packs that come late. It learns of that as soon as the
// bucket is back, and then takes nothing more.
type lease struct {
	bucket bucket.Bucket
	opts   LeaseOptions
	log    *slog.Logger

	// Of the goroutine that renews it, or of who waits for it.
	mine leaseRecord // as it was written last
	old  []uint64    // epochs that are of no use any more
}

// LeaseOptions are the settings of a lease. Zero values mean the defaults.
type LeaseOptions struct {
	// TTL is how long others wait before they take it, unless it is renewed, which it is
	// three times as often; default 3 min.
	TTL time.Duration
	// TakeOver takes the lease from a holder that may be alive.
	TakeOver bool
}

// ErrLeased is wrapped when another writer has the lease of the bucket.
var ErrLeased = errors.New("another server writes to this bucket")

const (
	leasePrefix = "leases/"
	maxLease    = 4 << 10   // bytes of one
	maxTTL      = time.Hour // that is believed of somebody else's
)

// A leaseRecord is an object of a lease; see docs/format.md.
type leaseRecord struct {
	epoch    uint64    // it is the name of the object
	State    string    `json:"state"`   // ID of the state directory
	Process  string    `json:"process"` // ID of the process
	Seconds  int64     `json:"seconds"` // of which the lease is good without being renewed
	Released bool      `json:"released,omitempty"`
	Host     string    `json:"host"` // this and what follows is for people
	PID      int       `json:"pid"`
	Time     time.Time `json:"time"`
}

func (r *leaseRecord) String() string {
	return fmt.Sprintf("process %d on %s, which said so last at %s by its clock", r.PID, r.Host, r.Time.UTC().Format(time.RFC3339))
}

func leaseKey(epoch uint64) string { return fmt.Sprintf("%s%012d", leasePrefix, epoch) }

// AcquireLease takes the bucket's lease for this store, which renews it, and gives it back
// when it is closed. It waits if the lease is somebody else's, and returns an error that
// wraps ErrLeased if that one is alive. A store that loses its lease takes no more
// uploads (see Writable); what it has taken still goes to the bucket.
//
// It is called once at most. Opening a store needs no lease: what looks at a store, or
// repairs it, does not disturb a writer.
func (s *Store) AcquireLease(ctx context.Context, opts LeaseOptions) error {
	if bucket.Overwrites(s.opts.Bucket) {
		s.log.Warn("this bucket replaces objects: that no other server writes to it is likely, not certain")
	}
	id, err := stateID(s.opts.State)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	l := newLease(s.opts.Bucket, id, opts, s.log)
	if err := l.acquire(ctx); err != nil {
		return fmt.Errorf("lease of %s: %w", s.opts.Bucket, err)
	}
	ctx, s.stopLease = context.WithCancel(context.Background())
	s.leasing.Go(func() error {
		err := l.renew(ctx)
		if err == nil {
			return nil
		}
		s.log.Error("the lease is lost; nothing is taken in any more, what is in the spool is still uploaded", "err", err)
		err = fmt.Errorf("%w: %w", ErrReadOnly, err)
		s.leaseLost.Store(&err)
		return err
	})
	s.lease = l
	return nil
}

// giveBack ends the lease.
func (s *Store) giveBack(ctx context.Context) {
	if s.lease == nil {
		return
	}
	s.stopLease()
	if s.leasing.Wait() != nil {
		return
	}
	if err := s.lease.release(ctx); err != nil {
		s.log.Warn("the lease is not given back; another state directory will wait for it", "err", err)
	}
}

func newLease(b bucket.Bucket, state string, opts LeaseOptions, log *slog.Logger) *lease {
	if opts.TTL == 0 {
		opts.TTL = 3 * time.Minute
	}
	l := &lease{bucket: b, opts: opts, log: log}
	l.mine = leaseRecord{State: state, Process: randomID(), Seconds: int64(opts.TTL / time.Second), PID: os.Getpid()}
	l.mine.Host, _ = os.Hostname()
	return l
}

// acquire takes the lease, after waiting if it is somebody else's.
func (l *lease) acquire(ctx context.Context) error {
	newest, err := l.newest(ctx, 0)
	if err != nil {
		return err
	}
	// The lock of the state directory says that its last process is gone.
	free := newest == nil || newest.Released || newest.State == l.mine.State
	if !free && l.opts.TakeOver {
		l.log.Warn("taking the lease of the bucket from another server", "holder", newest)
	} else if !free {
		if newest, err = l.watch(ctx, newest); err != nil {
			return err
		}
	}
	if newest != nil {
		l.mine.epoch = newest.epoch
	}
	return l.next(ctx, false)
}

// watch returns the newest lease when its holder is gone.
func (l *lease) watch(ctx context.Context, held *leaseRecord) (*leaseRecord, error) {
	ttl := max(l.opts.TTL, min(time.Duration(held.Seconds)*time.Second, maxTTL))
	l.log.Warn("another server has the lease of the bucket; waiting to see whether it is gone", "holder", held, "wait", ttl)
	poll := ttl / 18
	for since := time.Now(); ; {
		if err := sleep(ctx, poll); err != nil {
			return nil, err
		}
		newest, err := l.newest(ctx, held.epoch)
		switch {
		case err != nil:
			l.log.Warn("the bucket cannot be looked at; waiting begins anew", "err", err)
			since = time.Now() // it may not have been able to renew, either
		case newest != nil && newest.Released:
			return newest, nil
		case newest != nil:
			return nil, leased(newest)
		case time.Since(since) > ttl:
			l.log.Warn("the lease was not renewed, so its holder is gone", "holder", held)
			return held, nil
		}
	}
}

func leased(r *leaseRecord) error {
	return fmt.Errorf("%w: %v; stop it first, follow it (follow = true), or, if it is gone, use --take-over", ErrLeased, r)
}

// renew renews the lease until ctx ends, or until it is lost, which is its error.
func (l *lease) renew(ctx context.Context) error {
	failing := false
	for sleep(ctx, l.opts.TTL/3) == nil {
		err := l.renewOnce(ctx)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, ErrLeased):
			return err
		case err != nil && !failing:
			l.log.Warn("the lease cannot be renewed; uploads go on, into the spool", "err", err)
		case err == nil && failing:
			l.log.Info("the lease is renewed again")
		}
		failing = err != nil
	}
	return nil
}

func (l *lease) renewOnce(ctx context.Context) error {
	newest, err := l.newest(ctx, l.mine.epoch)
	if err != nil {
		return err
	}
	if newest != nil {
		if newest.Process != l.mine.Process {
			return leased(newest)
		}
		l.mine.epoch = newest.epoch // written by a PUT that seemed to fail
	}
	return l.next(ctx, false)
}

func (l *lease) release(ctx context.Context) error { return l.next(ctx, true) }

// next writes the lease of the next epoch, and removes all but that one and the one before.
func (l *lease) next(ctx context.Context, released bool) error {
	r := l.mine
	r.epoch, r.Released, r.Time = r.epoch+1, released, time.Now().UTC()
	data, _ := json.Marshal(r) // never fails
	data = append(data, '\n')
	err := l.bucket.Put(ctx, leaseKey(r.epoch), bytes.NewReader(data), int64(len(data)))
	if errors.Is(err, bucket.ErrExists) {
		there, err := l.read(ctx, r.epoch)
		if err != nil {
			return err
		}
		if there.Process != r.Process {
			return leased(there)
		}
	} else if err != nil {
		return err
	}
	old := l.old
	l.mine, l.old = r, nil
	for _, epoch := range old {
		if err := l.bucket.Delete(ctx, leaseKey(epoch)); err != nil {
			l.log.Debug("an old lease stays for now", "err", err)
		}
	}
	return nil
}

// newest returns the newest lease, nil if there is none after an epoch.
func (l *lease) newest(ctx context.Context, after uint64) (*leaseRecord, error) {
	var epochs []uint64
	err := l.bucket.List(ctx, leasePrefix, "", func(info bucket.Info) error {
		if epoch, err := strconv.ParseUint(strings.TrimPrefix(info.Key, leasePrefix), 10, 64); err == nil {
			epochs = append(epochs, epoch)
		}
		return nil
	})
	if err != nil || len(epochs) == 0 {
		return nil, err
	}
	last := len(epochs) - 1
	l.old = epochs[:last]
	if epochs[last] <= after {
		return nil, nil
	}
	return l.read(ctx, epochs[last])
}

// read reads the lease of an epoch. One that makes no sense is somebody's.
func (l *lease) read(ctx context.Context, epoch uint64) (*leaseRecord, error) {
	info, err := l.bucket.Stat(ctx, leaseKey(epoch))
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(info.Size, maxLease))
	if err := l.bucket.ReadAt(ctx, leaseKey(epoch), data, 0); err != nil {
		return nil, err
	}
	r := &leaseRecord{}
	if err := json.Unmarshal(data, r); err != nil {
		l.log.Warn("a lease is damaged; it counts as somebody's", "key", leaseKey(epoch), "err", err)
		r = &leaseRecord{Host: "a host that is not known"}
	}
	r.epoch = epoch
	return r, nil
}

// holderFile of a state directory has the ID by which its next process knows a lease as
// its own. It is on disk before there is a lease: one that is lost costs a wait.
const holderFile = "holder"

func stateID(state string) (string, error) {
	path := filepath.Join(state, holderFile)
	text, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(text)); err == nil && len(id) == len(randomID()) {
		return id, nil
	}
	id := randomID()
	if err := replaceFile(path, []byte(id+"\n")); err != nil {
		return "", err
	}
	return id, syncDir(state)
}

func randomID() string {
	var id [16]byte
	rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}
