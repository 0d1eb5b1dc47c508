package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dedupd/dedupd/compression"
)

// decodeXZ decodes the .nar.xz of the first generation one by one, in Go and in processes
// of xz, and all in one process of it.
func decodeXZ(ctx context.Context, b *bench) ([]row, error) {
	files, err := b.xzFiles()
	if err != nil {
		return nil, err
	}
	program, err := compression.FindProgram(ctx, 1)
	if err != nil {
		return nil, err
	}
	decoders := map[string]*compression.Program{"Go": nil, "a process for each of 32 KiB and more": program}
	cpu := make(map[string][]float64)
	var size int64
	for range b.rounds {
		spent, err := xzTime(ctx, files)
		if err != nil {
			return nil, err
		}
		cpu["xz -dc"] = append(cpu["xz -dc"], spent.Seconds())
		for name, program := range decoders {
			before := ownTime()
			if size, err = decodeFiles(files, program); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			cpu[name] = append(cpu[name], (ownTime() - before).Seconds())
		}
	}
	var rows []row
	for name := range decoders {
		rows = append(rows, compare(fmt.Sprintf("CPU of decoding %d files, %s", len(files), name), "s", cpu[name], "xz -dc", cpu["xz -dc"], nil))
	}
	return append(rows, row{What: "what they decode to", Unit: "MB", Value: float64(size) / 1e6}), nil
}

// xzFiles returns the .nar.xz of the first generation.
func (b *bench) xzFiles() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(b.corpus, "gen0", "xz", "nar", "*.nar.xz"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no .nar.xz in %q", b.corpus)
	}
	return files, err
}

// xzTime returns the CPU time of one `xz -dc` of all files.
func xzTime(ctx context.Context, files []string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, "xz", append([]string{"-dc", "-T1"}, files...)...) // output to /dev/null
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("xz: %w", err)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// decodeFiles returns how many bytes the files decode to.
func decodeFiles(files []string, program *compression.Program) (size int64, err error) {
	for _, file := range files {
		n, err := decodeFile(file, program)
		if err != nil {
			return size, fmt.Errorf("%s: %w", file, err)
		}
		size += n
	}
	return size, nil
}

func decodeFile(file string, program *compression.Program) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r, err := compression.NewReader(compression.XZ, f, compression.Limits{Program: program})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 128<<10))
}

// ownTime returns the CPU time of this process, and of those of its own that have ended.
func ownTime() time.Duration {
	var sum int64
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			panic(err) // who is none of the two
		}
		sum += u.Utime.Nano() + u.Stime.Nano()
	}
	return time.Duration(sum)
}
