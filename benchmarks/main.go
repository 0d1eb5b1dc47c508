// Benchmarks measures dedupd against what it is compared with in docs/benchmarks.md,
// both in one run, in interleaved rounds, on real parts: the dedupd that is built from
// this checkout, nginx, wrk, sha256sum, zstd.
//
//	go run ./benchmarks [flags] NAME…
//
// DEDUPD_CORPUS names the generated corpus (scripts/with-deps makes it). Data go to a
// temporary directory on the disk of -dir, which is removed at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// A bench is one run of one benchmark.
type bench struct {
	settings
	name   string
	work   string // temporary directory, removed after the run
	dedupd string // binary that is measured

	launcher []string // what the server's command line begins with, if not with dedupd
}

// settings are the flags.
type settings struct {
	corpus     string
	dir        string
	rounds     int
	seconds    int
	duration   int
	parallel   int
	splitter   string
	size       int64
	chunks     int
	packs      int
	json       bool
	serveFlags string
	binary     string
}

var benchmarks = []struct {
	name, what string
	run        func(context.Context, *bench) ([]row, error)
}{
	{"stored", "bytes and objects in the bucket, four generations, against .nar.xz", stored},
	{"puts", "requests to MinIO for each store path, uploading the corpus", puts},
	{"scatter", "what it costs, and gives, to keep NARs in few packs", scatter},
	{"ingest-known", "CPU of ingesting NARs that are stored, against sha256sum", ingestKnown},
	{"ingest-new", "CPU of ingesting new NARs, against sha256sum + zstd -3", ingestNew},
	{"xz", "CPU of decoding .nar.xz, in Go and in processes, against xz -dc", decodeXZ},
	{"import", "CPU, processors and memory of importing .nar.xz, against xz -dc and the ingest", imports},
	{"import-puts", "requests to MinIO for each path of an import of four generations", importPuts},
	{"serve", "serving .nar.zst from the page cache, against nginx", serve},
	{"narinfo", "narinfo requests a second, against nginx", narinfos},
	{"memory", "peak memory of 16 uploads at once", memory},
	{"index", "index of ten million chunks", indexes},
	{"rebuild", "making the index of ten million chunks from packs", rebuild},
	{"newmachine", "making the index of a thousand packs on MinIO, and from a snapshot", newMachine},
	{"fsync", "uploads of small paths, against the same with syncs disabled", fsyncs},
	{"pull", "a NAR that only an upstream has, against the upstream itself", pulls},
	{"oldnames", "downloads by the names of .nar.xz files: bytes and CPU, against nginx", oldNames},
	{"startup", "start after kill -9 with a full spool, nothing in the page cache", startup},
	{"dump", "NARs out of a Nix store, against nix-store --dump", dumps},
	{"load", "readers, uploads and downloads at once: no error, bounded memory", load},
	{"latency", "p99 of narinfos while 16 clients upload, against idle", latency},
	{"cold", "downloads from MinIO: requests, speed against one object, memory", cold},
	{"plan", "dedupd plan of all generations at a sample of 20 %, against importing them", plans},
	{"scrub", "reading and proving everything stored, against the disk and zstd", scrub},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 2 && os.Args[1] == unsyncedName {
		fmt.Fprintln(os.Stderr, "benchmarks:", execUnsynced(os.Args[2:]))
		os.Exit(1)
	}
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var s settings
	flags := flag.NewFlagSet("benchmarks", flag.ContinueOnError)
	flags.StringVar(&s.corpus, "corpus", os.Getenv("DEDUPD_CORPUS"), "`directory` with gen0 … gen3")
	flags.StringVar(&s.dir, "dir", "", "where temporary data go; default the system's")
	flags.IntVar(&s.rounds, "rounds", 5, "interleaved rounds; medians are reported")
	flags.IntVar(&s.seconds, "seconds", 4, "duration of one measurement of serve, narinfo and latency")
	flags.IntVar(&s.duration, "duration", 60, "load: seconds")
	flags.IntVar(&s.parallel, "parallel", 4, "uploads at once, but for memory")
	flags.StringVar(&s.splitter, "splitter", "rabin", "splitter, but for ingest-*, which measure both")
	flags.Int64Var(&s.size, "size", 500e6, "memory: bytes of each NAR")
	flags.IntVar(&s.packs, "packs", 1000, "newmachine: packs")
	flags.IntVar(&s.chunks, "chunks", 10_000_000, "index and rebuild: chunks")
	flags.BoolVar(&s.json, "json", false, "print JSON")
	flags.StringVar(&s.binary, "dedupd", "", "measure this `binary` instead of the checkout's")
	flags.StringVar(&s.serveFlags, "serve-flags", "", "more flags for dedupd serve, separated by spaces")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: go run ./benchmarks [flags] NAME…\n\nbenchmarks:")
		for _, b := range benchmarks {
			fmt.Fprintf(flags.Output(), "  %-14s %s\n", b.name, b.what)
		}
		fmt.Fprintln(flags.Output(), "  all\n\nflags:")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	names := flags.Args()
	if len(names) == 0 {
		flags.Usage()
		return nil
	}
	if s.rounds < 1 || s.seconds < 1 || s.duration < 1 || s.parallel < 1 || s.chunks < 1 || s.size < 1<<20 {
		return errors.New("rounds, seconds, duration, parallel and chunks are at least 1, size at least 1 MiB")
	}
	if runtime.GOOS != "linux" {
		return errors.New("measuring needs Linux's /proc")
	}
	if len(names) == 1 && names[0] == "all" {
		names = nil
		for _, b := range benchmarks {
			names = append(names, b.name)
		}
	}
	for _, name := range names {
		if err := runOne(ctx, s, name, flagsOf(flags)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func runOne(ctx context.Context, s settings, name, flags string) (err error) {
	for _, candidate := range benchmarks {
		if candidate.name != name {
			continue
		}
		b := &bench{settings: s, name: name, dedupd: s.binary}
		if b.work, err = os.MkdirTemp(s.dir, "dedupd-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
		if b.dedupd == "" && !slices.Contains([]string{"index", "rebuild", "newmachine", "dump", "scatter", "xz"}, name) {
			if b.dedupd, err = buildServer(ctx, b.work); err != nil {
				return err
			}
		}
		rows, err := candidate.run(ctx, b)
		if err != nil {
			return err
		}
		r := report{
			Name: name, What: candidate.what, Repeat: "go run ./benchmarks " + flags + name,
			Machine: machine(ctx), Tools: tools(ctx), Rows: rows,
		}
		if s.json {
			return r.writeJSON(os.Stdout)
		}
		return r.writeText(os.Stdout)
	}
	return errors.New("there is no such benchmark")
}

// flagsOf returns the flags that were set, as they were given.
func flagsOf(flags *flag.FlagSet) string {
	var b strings.Builder
	flags.Visit(func(f *flag.Flag) {
		fmt.Fprintf(&b, "-%s=%q ", f.Name, f.Value)
	})
	return strings.ReplaceAll(b.String(), `"`, "")
}

// progress tells on stderr what goes on; the results go to stdout.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, b.name+": "+format+"\n", args...)
}
