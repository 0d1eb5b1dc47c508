package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/migrate"
)

// exportFlags are the flags of export.
type exportFlags struct {
	opts        migrate.ExportOptions
	compression string
	closureOf   []string
	asJSON      bool
}

func exportCommand() *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export DESTINATION [PATH…]",
		Short: "Write the store as a plain binary cache",
		Long: "Write the store, or some paths, or their closures, as a plain binary cache that needs no dedupd:\n" +
			"into file:///directory, which must be empty or from an earlier export, or s3://bucket?….\n" +
			"Signatures go along, and nothing is signed. An export that was interrupted goes on\n" +
			"where it was. To - it is a stream, on standard output, for nix-store --import: without\n" +
			"signatures, of which such a stream has none, and always whole.\n" +
			"Paths that are named are exported as they are, those of --closure-of with all that they\n" +
			"refer to.\n" +
			"Beside a running server, export with --follow and a --state of its own.\n\n" +
			"The exit status is 1 if a path could not be exported.",
		Example: "  dedupd export file:///srv/plain --compression xz\n" +
			"  dedupd export 's3://plain?region=eu-central-1' --closure-of /nix/store/…-system --dry-run\n" +
			"  dedupd export - --closure-of /nix/store/…-system | ssh island nix-store --import\n" +
			"  dedupd export - /nix/store/…-app /nix/store/…-lib > two.export",
		Args: cobra.MinimumNArgs(1),
	}
	settings := addFlags(cmd, "bucket", "state", "follow", "memory", "log-level", "log-format")
	flags := cmd.Flags()
	flags.StringVar(&f.compression, "compression", "zstd", "of the NARs: none, zstd or xz")
	cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions([]string{"none", "zstd", "xz"}, cobra.ShellCompDirectiveNoFileComp))
	flags.IntVar(&f.opts.Level, "level", 0, "of the compression; default 3 of zstd, 6 of xz")
	flags.StringArrayVar(&f.closureOf, "closure-of", nil, "store path to export with all that it refers to, and nothing else; may be repeated")
	flags.StringVar(&f.opts.Match, "only", "", "pattern, with * and ?, of the names of the paths to export: what follows the hash part")
	flags.IntVar(&f.opts.Jobs, "jobs", workers, "paths at a time")
	flags.IntVar(&f.opts.Priority, "priority", 40, "of the cache, as clients see it")
	flags.BoolVar(&f.opts.DryRun, "dry-run", false, "only look what is missing there")
	flags.BoolVar(&f.asJSON, "json", false, "write a report in JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		return f.run(cmd, s, args[0], args[1:])
	}
	return cmd
}

func (f *exportFlags) run(cmd *cobra.Command, s *Settings, to string, paths []string) (err error) {
	if f.opts.Closure = len(f.closureOf) > 0; f.opts.Closure && len(paths) > 0 {
		return errors.New("paths are named as arguments, or with --closure-of")
	}
	for _, text := range append(paths, f.closureOf...) {
		h, err := hashPart(text)
		if err != nil {
			return err
		}
		f.opts.Paths = append(f.opts.Paths, h)
	}
	if f.opts.Jobs < 1 {
		return fmt.Errorf("jobs is %d, not above 0", f.opts.Jobs)
	}
	ctx, log := cmd.Context(), s.logger(cmd.ErrOrStderr())
	if _, err := os.Stat(filepath.Join(s.State, "lock")); err != nil && !s.Follow {
		return fmt.Errorf("there is no store: %w", err)
	}
	export, report, err := f.destination(cmd, to)
	if err != nil {
		return err
	}
	store, err := s.openStore(ctx, log)
	if errors.Is(err, chunkstore.ErrLocked) {
		return fmt.Errorf("%w: export with --follow and another --state, or stop the server", err)
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.closeStore(ctx, store)) }()
	f.opts.Compression, f.opts.Temp = compression.Type(f.compression), filepath.Join(s.State, "staging")
	f.opts.Failed = func(path string, err error) { log.Error("a path was not exported", "path", path, "err", err) }
	var progress migrate.ExportProgress
	begun := time.Now()
	stop := showProgress(cmd.ErrOrStderr(), func() string { return exportLine(progress.Report(), time.Since(begun)) })
	done, err := export(ctx, store, f.opts, &progress)
	stop()
	if done == nil {
		return err
	}
	if writeErr := write(report, done, f.asJSON); err == nil {
		err = writeErr
	}
	if err == nil && done.Failed > 0 {
		err = fmt.Errorf("%d paths could not be exported", done.Failed)
	}
	return err
}

// An exporter writes a store somewhere.
type exporter func(context.Context, *chunkstore.Store, migrate.ExportOptions, *migrate.ExportProgress) (*migrate.ExportReport, error)

// destination returns what exports to a destination, and where the report goes.
func (f *exportFlags) destination(cmd *cobra.Command, to string) (exporter, io.Writer, error) {
	stdout := cmd.OutOrStdout()
	if to != "-" {
		dst, err := bucket.Open(cmd.Context(), to)
		return func(ctx context.Context, store *chunkstore.Store, opts migrate.ExportOptions, progress *migrate.ExportProgress) (*migrate.ExportReport, error) {
			return migrate.Export(ctx, store, dst, opts, progress)
		}, stdout, err
	}
	for _, name := range []string{"compression", "level", "jobs", "priority"} {
		if cmd.Flags().Changed(name) {
			return nil, nil, fmt.Errorf("%s: not of a stream", name)
		}
	}
	if isTerminal(stdout) && !f.opts.DryRun {
		return nil, nil, errors.New("a stream is not for people: write it to a file, or to nix-store --import")
	}
	return func(ctx context.Context, store *chunkstore.Store, opts migrate.ExportOptions, progress *migrate.ExportProgress) (*migrate.ExportReport, error) {
		return migrate.ExportStream(ctx, store, stdout, opts, progress)
	}, cmd.ErrOrStderr(), nil
}

func exportLine(r migrate.ExportReport, since time.Duration) string {
	return fmt.Sprintf("%d paths: %d exported, %d were there, %d failed; %.1f MB of NARs, %.1f MB/s",
		r.Paths, r.Exported, r.Present, r.Failed, float64(r.NARBytes)/1e6, float64(r.NARBytes)/1e6/max(since.Seconds(), 1e-3))
}
