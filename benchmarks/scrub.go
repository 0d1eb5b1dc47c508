package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/packfile"
)

const (
	scrubNAR  = 64 << 20 // bytes of each of the NARs that are stored beside the corpus
	scrubNARs = 16
)

// scrub measures how fast everything that is stored is read and proven, by the clock: by
// check --read-data, and by the server's scrubbing without a limit. The yardstick is what
// is slower: reading the packs, or one core's decoding of the frames in them.
func scrub(ctx context.Context, b *bench) ([]row, error) {
	repo := b.repository("scrub")
	if err := b.fillForScrub(ctx, repo); err != nil {
		return nil, err
	}
	packs, err := packFiles(repo.bucket)
	if err != nil {
		return nil, err
	}
	payloads := filepath.Join(b.work, "payloads.zst")
	volume, err := writePayloads(payloads, repo.bucket, packs)
	if err != nil {
		return nil, err
	}
	speeds := make(map[string][]float64) // MB of frames a second
	cpu := make(map[string][]float64)    // seconds
	for i := range b.rounds {
		for _, m := range []struct {
			name string
			run  func() (bytes int64, spent, cpu time.Duration, err error)
		}{
			{"disk", func() (int64, time.Duration, time.Duration, error) { return readCold(repo.bucket, packs) }},
			{"zstd", func() (int64, time.Duration, time.Duration, error) { return decodeOnce(ctx, payloads, volume) }},
			{"check", func() (int64, time.Duration, time.Duration, error) { return b.checkOnce(ctx, repo) }},
			{"scrub", func() (int64, time.Duration, time.Duration, error) { return b.scrubOnce(ctx, repo) }},
		} {
			n, spent, onCPU, err := m.run()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.name, err)
			}
			speeds[m.name] = append(speeds[m.name], float64(n)/1e6/spent.Seconds())
			cpu[m.name] = append(cpu[m.name], onCPU.Seconds())
		}
		speeds["least"] = append(speeds["least"], min(speeds["disk"][i], speeds["zstd"][i]))
		b.progress("round %d of %d: MB/s %v", i+1, b.rounds, speeds)
	}
	const least = "least of disk and zstd"
	return []row{
		compare("check --read-data", "MB/s", speeds["check"], least, speeds["least"], atLeast(0.8)),
		compare("scrubbing", "MB/s", speeds["scrub"], least, speeds["least"], atLeast(0.8)),
		compare("CPU of check --read-data", "s", cpu["check"], "zstd", cpu["zstd"], nil),
		{What: "reading packs one after another, cold", Unit: "MB/s", Value: median(speeds["disk"])},
		{What: "zstd -dc of the frames, in memory", Unit: "MB/s", Value: median(speeds["zstd"])},
		{What: fmt.Sprintf("volume of the frames of %d packs", len(packs)), Unit: "MB", Value: float64(volume) / 1e6},
	}, nil
}

// fillForScrub stores the corpus, and more that is like it, in a new repository.
func (b *bench) fillForScrub(ctx context.Context, repo repository) error {
	gens, err := b.load()
	if err != nil {
		return err
	}
	server, err := b.serveRepository(ctx, repo, b.splitter)
	if err != nil {
		return err
	}
	defer server.kill()
	if err := copyTo(ctx, server.url, distinct(gens, byNarinfo), b.parallel); err != nil {
		return err
	}
	sources := distinct(gens, byNAR)
	group, uploading := errgroup.WithContext(ctx)
	group.SetLimit(b.parallel)
	for i := range scrubNARs {
		group.Go(func() error {
			nar := newBigNAR(sources, i, scrubNAR)
			defer nar.Close()
			return put(uploading, fmt.Sprintf("%s/nar/scrub-%d.nar", server.url, i), nar, bigNARSize(scrubNAR))
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	_, err = server.stop()
	return err
}

// packFiles returns the keys of a bucket's packs.
func packFiles(bucket string) (keys []string, err error) {
	err = fs.WalkDir(os.DirFS(bucket), "packs", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			keys = append(keys, path)
		}
		return err
	})
	return keys, err
}

// writePayloads writes the zstd frames of all packs into one file. It returns the size
// of the packs' frames with what is before each: what is read to prove them.
func writePayloads(file, bucket string, packs []string) (volume int64, err error) {
	out, err := os.Create(file)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	for _, key := range packs {
		name, err := packfile.ParseName(strings.TrimSuffix(strings.TrimPrefix(key, "packs/"), ".pack"))
		if err != nil {
			return 0, err
		}
		b, err := os.ReadFile(filepath.Join(bucket, key))
		if err != nil {
			return 0, err
		}
		pack, err := packfile.Read(name, bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return 0, err
		}
		for i, f := range pack.Frames {
			stored := b[pack.Offsets[i]:][:f.Size()]
			view, err := packfile.ParseFrame(f.Kind, len(f.Chunks), stored, f.Prefix, f.CRC)
			if err != nil {
				return 0, err
			}
			if _, err := out.Write(view.Payload()); err != nil {
				return 0, err
			}
			volume += f.Size()
		}
	}
	return volume, out.Close()
}

// readCold reads files that are not in the page cache, one after another as dd does.
func readCold(bucket string, packs []string) (n int64, spent, cpu time.Duration, err error) {
	if err := dropCache(bucket); err != nil {
		return 0, 0, 0, err
	}
	buf := make([]byte, 1<<20)
	start := time.Now()
	for _, key := range packs {
		f, err := os.Open(filepath.Join(bucket, key))
		if err != nil {
			return 0, 0, 0, err
		}
		for err == nil {
			var k int
			k, err = f.Read(buf)
			n += int64(k)
		}
		f.Close()
		if err != io.EOF {
			return 0, 0, 0, err
		}
	}
	return n, time.Since(start), 0, nil
}

// decodeOnce has one thread of zstd decode the frames, from the page cache.
func decodeOnce(ctx context.Context, file string, volume int64) (n int64, spent, cpu time.Duration, err error) {
	if _, err := os.ReadFile(file); err != nil {
		return 0, 0, 0, err
	}
	cmd := exec.CommandContext(ctx, "zstd", "-dcq", "--no-asyncio", file) // output to /dev/null
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, 0, 0, fmt.Errorf("zstd: %w", err)
	}
	return volume, time.Since(start), cpuOf(cmd), nil
}

// checkOnce runs check --read-data; all of the command counts.
func (b *bench) checkOnce(ctx context.Context, repo repository) (n int64, spent, cpu time.Duration, err error) {
	if err := dropCache(repo.bucket); err != nil {
		return 0, 0, 0, err
	}
	cmd := b.command(ctx, repo, "check", "--read-data", "--json")
	start := time.Now()
	out, err := cmd.Output()
	spent = time.Since(start)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("%w\n%s", err, out)
	}
	var report struct {
		BytesRead int64 `json:"bytes_read"`
	}
	err = json.Unmarshal(out, &report)
	return report.BytesRead, spent, cpuOf(cmd), err
}

// scrubOnce has a server scrub everything once.
func (b *bench) scrubOnce(ctx context.Context, repo repository) (n int64, spent, cpu time.Duration, err error) {
	// A new index knows nothing of earlier rounds.
	if err := os.RemoveAll(repo.state); err != nil {
		return 0, 0, 0, err
	}
	if out, err := b.command(ctx, repo, "index", "rebuild").CombinedOutput(); err != nil {
		return 0, 0, 0, fmt.Errorf("%w\n%s", err, out)
	}
	if err := dropCache(repo.bucket); err != nil {
		return 0, 0, 0, err
	}
	unlimited := *b
	unlimited.serveFlags += " --scrub-rate 1000000GB"
	server, err := unlimited.serveRepository(ctx, repo, b.splitter)
	if err != nil {
		return 0, 0, 0, err
	}
	defer server.kill()
	for {
		out, err := b.command(ctx, repo, "stats", "--json").Output()
		if err != nil {
			return 0, 0, 0, err
		}
		var stats struct {
			Store struct {
				Scrub struct {
					Last *struct {
						Started, Finished time.Time
						Bytes             int64
					}
				}
			}
		}
		if err := json.Unmarshal(out, &stats); err != nil {
			return 0, 0, 0, err
		}
		if last := stats.Store.Scrub.Last; last != nil {
			cpu, err := server.stop()
			return last.Bytes, last.Finished.Sub(last.Started), cpu, err
		}
		select {
		case <-ctx.Done():
			return 0, 0, 0, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// cpuOf returns the CPU time that a command took that has ended.
func cpuOf(cmd *exec.Cmd) time.Duration {
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}
