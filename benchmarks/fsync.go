package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dedupd/dedupd/narinfo"
)

const (
	smallPaths   = 1000
	smallClients = 16
)

// fsyncs measures how long many small paths take to upload, by the clock: with syncs as
// they are, and with a server for which they do nothing. State and bucket are on the
// disk of -dir.
func fsyncs(ctx context.Context, b *bench) ([]row, error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(b.work, &disk); err != nil {
		return nil, err
	}
	if disk.Type == unix.TMPFS_MAGIC {
		return nil, errors.New("syncing costs nothing in memory: set -dir to a directory on a disk")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	paths, err := b.makeSmallPaths(filepath.Join(b.work, "small"))
	if err != nil {
		return nil, err
	}
	unsynced := *b
	unsynced.launcher = []string{self, unsyncedName}
	var with, without, syncs []float64
	for i := range b.rounds {
		took, err := timeSyncs(b.work)
		if err != nil {
			return nil, err
		}
		syncs = append(syncs, took...)
		first, second := b, &unsynced
		if i%2 == 1 { // what one leaves in the caches of the disk goes to either
			first, second = second, first
		}
		for _, variant := range []*bench{first, second} {
			spent, err := variant.copyOnce(ctx, fmt.Sprintf("fsync-%d", i), paths)
			if err != nil {
				return nil, err
			}
			if variant == b {
				with = append(with, spent.Seconds())
			} else {
				without = append(without, spent.Seconds())
			}
		}
		b.progress("round %d of %d: %.3f s, without syncs %.3f s", i+1, b.rounds, with[i], without[i])
	}
	what := fmt.Sprintf("%d small paths, %d clients", smallPaths, smallClients)
	return []row{
		compare(what, "s", with, "without syncs", without, atMost(2)),
		{What: "the same", Unit: "paths a second", Value: smallPaths / median(with)},
		{What: "one sync of 4 KiB more in a file", Unit: "ms", Value: median(syncs) * 1e3},
		{What: fmt.Sprintf("volume of %d NARs", len(paths)), Unit: "MB", Value: float64(narBytes(paths)) / 1e6},
	}, nil
}

// timeSyncs returns the seconds that syncs of a growing file in dir take: what the ratio
// depends on.
func timeSyncs(dir string) (seconds []float64, err error) {
	f, err := os.CreateTemp(dir, "sync-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4<<10)
	for range 50 {
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		start := time.Now()
		if err := f.Sync(); err != nil {
			return nil, err
		}
		seconds = append(seconds, time.Since(start).Seconds())
	}
	return seconds, nil
}

// copyOnce returns how long it takes to copy paths to a new repository, which is removed.
func (b *bench) copyOnce(ctx context.Context, name string, paths []storePath) (time.Duration, error) {
	defer os.RemoveAll(filepath.Join(b.work, name))
	server, err := b.serveRepository(ctx, b.repository(name), b.splitter)
	if err != nil {
		return 0, err
	}
	defer server.kill()
	// Whatever was written before is not to be waited for now.
	unix.Sync()
	start := time.Now()
	if err := copyTo(ctx, server.url, paths, smallClients); err != nil {
		return 0, err
	}
	spent := time.Since(start)
	_, err = server.stop()
	return spent, err
}

// makeSmallPaths makes paths of one file of 1 to 8 KiB each, below dir.
func (b *bench) makeSmallPaths(dir string) ([]storePath, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	random := rand.NewChaCha8([32]byte{})
	paths := make([]storePath, smallPaths)
	for i := range paths {
		p, nar, err := makeSmallPath(random)
		if err != nil {
			return nil, err
		}
		p.file = filepath.Join(dir, p.narinfo+".nar")
		if err := os.WriteFile(p.file, nar, 0o644); err != nil {
			return nil, err
		}
		paths[i] = p
	}
	return paths, nil
}

// makeSmallPath returns a path and its NAR, which is in no file.
func makeSmallPath(random *rand.ChaCha8) (p storePath, nar []byte, err error) {
	size := 1<<10 + int64(random.Uint64()%(7<<10))
	contents := make([]byte, (size+1)/2)
	random.Read(contents)
	// Half as much when it is compressed, as code and texts are.
	text := fmt.Appendf(nil, "%x", contents)[:size]
	head, tail := bigNARFrame(size)
	nar = append(append([]byte(head), text...), tail...)
	hash := sha256.Sum256(nar)

	part := binary.LittleEndian.AppendUint64(nil, random.Uint64())
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(append(part, hash[:12]...)) + "-small")
	if err != nil {
		return p, nil, err
	}
	info := &narinfo.NarInfo{
		StorePath: path, URL: "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar", Compression: "none",
		NarHash: hash, NarSize: uint64(len(nar)),
	}
	return storePath{
		narinfo: path.HashPart() + ".narinfo", text: info.Append(nil, "/nix/store"), nar: info.URL,
		narHash: "sha256:" + narinfo.EncodeNix32(hash[:]), narSize: int64(len(nar)),
	}, nar, nil
}
