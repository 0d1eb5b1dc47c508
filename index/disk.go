package index

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	berrors "go.etcd.io/bbolt/errors"
)

// What a failing disk leaves behind, and what is done about it:
//
//   - A write that failed has changed only pages that nothing on disk refers to, or one of
//     the two heads, and then everything that it refers to is durable. bbolt rolls the
//     transaction back and can go on. When the disk is full the memtable is tried again
//     until there is room; after any other failure the index is broken until it is reopened.
//   - After a sync that failed nothing is known. Linux marks the pages clean that it could
//     not write: they are read as if they were on disk, later syncs succeed, and bbolt would
//     write over pages of the head that is the only durable one. The index is broken, and
//     the file is distrusted: no later start uses it.
//   - What is read and is not what was written says the same of the file. It is read and
//     written on, for nothing depends on it that the packs do not say, but not reopened.

// errUnsynced says that what is on disk is not known.
var errUnsynced = errors.New("the disk did not confirm what was written")

// full are the errors of a disk without room.
var full = []error{syscall.ENOSPC, syscall.EDQUOT}

func isFull(err error) bool {
	for _, errno := range full {
		if errors.Is(err, errno) {
			return !errors.Is(err, errUnsynced)
		}
	}
	return false
}

// commitFailure makes what is known of a failed commit of bbolt part of the error: it
// is errUnsynced unless it surely came before a sync.
func commitFailure(err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) && path.Op == "write" || errors.Is(err, berrors.ErrMaxSizeReached) {
		return err
	}
	// bbolt: DB.grow keeps nothing of the error but its text.
	if text := err.Error(); strings.HasPrefix(text, "file resize error: ") {
		for _, errno := range full {
			if strings.HasSuffix(text, ": "+errno.Error()) {
				return fmt.Errorf("%w: %w", err, errno)
			}
		}
		return err
	}
	return fmt.Errorf("%w: %w", errUnsynced, err)
}

// distrustSuffix names the file that says why an index must not be opened again. It
// means nothing when there is no index beside it.
const distrustSuffix = ".damaged"

// distrust makes OpenBolt refuse the file from now on, as damaged, and says if that did
// not succeed. Only the first call does anything.
func (b *Bolt) distrust(why error) error {
	b.distrustOnce.Do(func() { b.distrustErr = distrust(b.path, why) })
	return b.distrustErr
}

// distrust notes why beside the file. If that cannot be done it removes the file, which
// takes no room and goes on being read by who has it open.
func distrust(path string, why error) error {
	err := writeSynced(path+distrustSuffix, fmt.Appendf(nil, "%s: %v\n", time.Now().UTC().Format(time.RFC3339), why))
	if err == nil {
		return nil
	}
	if gone := errors.Join(os.Remove(path), syncDir(filepath.Dir(path))); gone != nil {
		return fmt.Errorf("cannot note that the index is not to be used again: %w", errors.Join(err, gone))
	}
	return nil
}

// checkTrusted returns ErrDamaged if the file that is there was distrusted.
func checkTrusted(path string) error {
	why, err := os.ReadFile(path + distrustSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: it was found so %s", ErrDamaged, strings.TrimSpace(string(why)))
}

// watch distrusts the file if err, from reading it, says that it is damaged.
func (b *Bolt) watch(err error) error {
	if !errors.Is(err, ErrDamaged) {
		return err
	}
	b.damage.CompareAndSwap(nil, &err)
	if failed := b.distrust(err); failed != nil {
		return fmt.Errorf("%w; %w", err, failed)
	}
	return err
}

func writeSynced(path string, p []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
