package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const uploads = 16

// encodings are what the uploads of memory come in. The xz files have the dictionary of
// `xz -6`, 8 MiB, which is what a decoder's memory depends on, but are made with the
// search of -0: at the 2.5 MB/s of -6 the files would take an hour.
var encodings = []struct {
	name, extension string
	command         []string
}{
	{"none", "", nil},
	{"zstd -3", ".zst", []string{"zstd", "-3", "-T1", "-q", "-c"}},
	{"xz, dictionary of -6", ".xz", []string{"xz", "-T1", "--lzma2=preset=0,dict=8MiB", "-c"}},
}

// memory samples the server's anonymous memory while 16 large NARs come in at once, of
// which no two share a chunk.
func memory(ctx context.Context, b *bench) ([]row, error) {
	gens, err := b.load()
	if err != nil {
		return nil, err
	}
	sources := distinct(gens, byNAR)
	var rows []row
	for _, e := range encodings {
		b.progress("%s: %d NARs of %d bytes", e.name, uploads, b.size)
		files, err := b.makeUploads(ctx, sources, e.extension, e.command)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		peak, err := b.uploadAtOnce(ctx, "memory"+e.extension, sources, files, e.extension)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		spent := time.Since(start)
		b.progress("%s: peak %d bytes, %.0f s", e.name, peak, spent.Seconds())
		rows = append(rows,
			row{What: "peak RssAnon, " + e.name, Unit: "MB", Value: float64(peak) / 1e6, Target: atMost(512)},
			row{What: "in, " + e.name, Unit: "MB/s of NAR", Value: float64(uploads*b.size) / 1e6 / spent.Seconds()})
		for _, file := range files {
			os.Remove(file)
		}
	}
	return rows, nil
}

// makeUploads compresses the NARs, two at a time; there are no files if there is no command.
func (b *bench) makeUploads(ctx context.Context, sources []storePath, extension string, command []string) ([]string, error) {
	if command == nil {
		return nil, nil
	}
	files := make([]string, uploads)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for i := range uploads {
		files[i] = filepath.Join(b.work, fmt.Sprintf("upload-%d%s", i, extension))
		group.Go(func() error {
			out, err := os.Create(files[i])
			if err != nil {
				return err
			}
			defer out.Close()
			nar := newBigNAR(sources, i, b.size)
			defer nar.Close()
			cmd := exec.CommandContext(ctx, command[0], command[1:]...)
			cmd.Stdin, cmd.Stdout = nar, out
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %w", command[0], err)
			}
			return out.Close()
		})
	}
	return files, group.Wait()
}

// uploadAtOnce returns the peak of the memory of a new server that takes all uploads.
func (b *bench) uploadAtOnce(ctx context.Context, name string, sources []storePath, files []string, extension string) (peak int64, err error) {
	server, err := b.serveRepository(ctx, b.repository(name), b.splitter)
	if err != nil {
		return 0, err
	}
	defer server.kill()
	defer os.RemoveAll(filepath.Join(b.work, name))

	sampling, stop := context.WithCancel(ctx)
	defer stop()
	sampled := make(chan int64)
	go func() { sampled <- server.peakMemory(sampling) }()

	group, uploading := errgroup.WithContext(ctx)
	for i := range uploads {
		group.Go(func() error {
			var body io.ReadCloser = newBigNAR(sources, i, b.size)
			size := bigNARSize(b.size)
			if files != nil {
				f, err := os.Open(files[i])
				if err != nil {
					return err
				}
				info, err := f.Stat()
				if err != nil {
					return err
				}
				body, size = f, info.Size()
			}
			defer body.Close()
			return put(uploading, fmt.Sprintf("%s/nar/upload-%d.nar%s", server.url, i, extension), body, size)
		})
	}
	err = group.Wait()
	stop()
	peak = <-sampled
	if err != nil {
		return 0, err
	}
	if peak == 0 {
		return 0, errors.New("no sample of the server's memory")
	}
	_, err = server.stop()
	return peak, err
}

// peakMemory samples RssAnon every 20 ms until ctx ends, and returns the largest in bytes.
func (c *child) peakMemory(ctx context.Context) int64 {
	pid := fmt.Sprint(c.cmd.Process.Pid)
	return peak(ctx, 20*time.Millisecond, func() int64 { return memoryOf(pid) })
}

// peak samples something until ctx ends, and returns the largest.
func peak(ctx context.Context, every time.Duration, sample func() int64) (peak int64) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		peak = max(peak, sample())
		select {
		case <-ctx.Done():
			return peak
		case <-tick.C:
		}
	}
}

// memoryOf returns the RssAnon of a process in bytes, 0 if it has ended.
func memoryOf(pid string) int64 {
	var kib int64
	fmt.Sscan(procField("/proc/"+pid+"/status", "RssAnon"), &kib)
	return kib << 10
}

// A bigNAR reads as the NAR of one regular file, whose contents are the corpus's NARs
// one after another. Every 32 KiB, 8 bytes tell bigNARs of different seeds apart, so
// that they share no chunk, while compressing like real data.
type bigNAR struct {
	io.Reader
	contents *corpusReader
}

const (
	stampEvery = 32 << 10
	stampSize  = 8
)

func newBigNAR(sources []storePath, seed int, size int64) *bigNAR {
	contents := &corpusReader{sources: sources, seed: uint64(seed)}
	head, tail := bigNARFrame(size)
	return &bigNAR{
		Reader:   io.MultiReader(strings.NewReader(head), io.LimitReader(contents, size), strings.NewReader(tail)),
		contents: contents,
	}
}

func (n *bigNAR) Close() error { return n.contents.Close() }

// bigNARSize returns the length of the NAR of a file of size bytes.
func bigNARSize(size int64) int64 {
	head, tail := bigNARFrame(size)
	return int64(len(head)) + size + int64(len(tail))
}

func bigNARFrame(size int64) (head, tail string) {
	var b []byte
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
		b = append(b, make([]byte, -len(s)&7)...)
	}
	head = string(binary.LittleEndian.AppendUint64(b, uint64(size)))
	tail = strings.Repeat("\x00", int(-size&7)) + "\x01\x00\x00\x00\x00\x00\x00\x00)\x00\x00\x00\x00\x00\x00\x00"
	return head, tail
}

// corpusReader reads the files of sources one after another, for ever, with stamps.
type corpusReader struct {
	sources []storePath
	seed    uint64
	next    int
	file    *os.File
	buf     [stampEvery]byte
	rest    []byte // of buf, not yet read
	blocks  uint64
}

func (c *corpusReader) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		if err := c.fill(c.buf[:]); err != nil {
			return 0, err
		}
		// A multiple of an odd constant: bytes that differ in every block and for every seed.
		stamp := (c.seed<<40 | c.blocks) * 0x9e3779b97f4a7c15
		binary.LittleEndian.PutUint64(c.buf[stampEvery/2:][:stampSize], stamp)
		c.blocks++
		c.rest = c.buf[:]
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *corpusReader) fill(p []byte) error {
	for len(p) > 0 {
		if c.file == nil {
			f, err := os.Open(c.sources[c.next%len(c.sources)].file)
			if err != nil {
				return err
			}
			c.file = f
			c.next++
		}
		n, err := c.file.Read(p)
		p = p[n:]
		if err == io.EOF {
			c.file.Close()
			c.file = nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (c *corpusReader) Close() error {
	if c.file == nil {
		return nil
	}
	return c.file.Close()
}
