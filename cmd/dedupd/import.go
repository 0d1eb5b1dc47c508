package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/migrate"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// importFlags are the flags of import.
type importFlags struct {
	paths, skipped, only    string
	closureOf               []string
	keys                    []string
	user, passwordFile      string
	netrcFile               string
	jobs                    int
	noFiles, dryRun, asJSON bool
}

func importCommand() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import SOURCE",
		Short: "Bring a binary cache into the store",
		Long: "Bring what the store lacks from a binary cache: file:///directory, http://… or https://….\n" +
			"What is in a directory is found by itself; of a cache at a URL say which paths, with\n" +
			"--paths or --closure-of.\n\n" +
			"Every NAR is checked against its narinfo; signatures come along as they are, and nothing\n" +
			"is signed. The names by which clients remember files stay alive. What is not right, or\n" +
			"not there, is left out, counted, and with --skipped written to a file, which --paths\n" +
			"takes to try it again. An import that was interrupted goes on where it was.\n\n" +
			"The exit status is 1 if anything was left out.",
		Example: "  dedupd import file:///srv/cache --dry-run\n" +
			"  dedupd import https://cache.example --closure-of /nix/store/…-system\n" +
			"  curl -sL https://channels.nixos.org/nixos-unstable/store-paths.xz | xz -dc | dedupd import https://cache.nixos.org --paths -",
		Args: cobra.ExactArgs(1),
	}
	settings := addFlags(cmd, "bucket", "state", "memory", "max-nar", "max-file", "log-level", "log-format")
	flags := cmd.Flags()
	flags.StringVar(&f.paths, "paths", "", "file with store paths or their hash parts, the first word of each line; - for standard input")
	flags.StringArrayVar(&f.closureOf, "closure-of", nil, "store path to import with all that it refers to; may be repeated")
	flags.StringVar(&f.only, "only", "", "pattern, with * and ?, of the names of the paths to import: what follows the hash part")
	flags.StringArrayVar(&f.keys, "trusted-key", nil, "public key; one of those that are given must have signed a path; may be repeated")
	flags.StringVar(&f.skipped, "skipped", "", "file to write what is left out to, and why")
	flags.StringVar(&f.user, "user", "", "user name that the cache asks for")
	flags.StringVar(&f.passwordFile, "password-file", "", "file with the password, or token, that belongs to it")
	flags.StringVar(&f.netrcFile, "netrc-file", "", "file with user names and passwords")
	flags.IntVar(&f.jobs, "jobs", 16, "paths at a time")
	flags.BoolVar(&f.noFiles, "no-files", false, "leave out listings, logs, debug information and realisations")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only look what is missing")
	flags.BoolVar(&f.asJSON, "json", false, "write a report in JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		return f.run(cmd, s, args[0])
	}
	return cmd
}

func (f *importFlags) run(cmd *cobra.Command, s *Settings, from string) (err error) {
	if f.jobs < 1 {
		return fmt.Errorf("jobs is %d, not above 0", f.jobs)
	}
	up := Upstream{URL: from, Trust: true, User: f.user, PasswordFile: f.passwordFile, NetrcFile: f.netrcFile}
	if err := up.validate(); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	ctx, log := cmd.Context(), s.logger(cmd.ErrOrStderr())
	store, err := s.openStore(ctx, log)
	if errors.Is(err, chunkstore.ErrLocked) {
		return fmt.Errorf("%w: stop the server first", err)
	} else if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(s.ShutdownTimeout))
		defer cancel()
		err = errors.Join(err, store.Close(ctx))
	}()
	storeDir := store.Repository().StoreDir
	source, err := up.source(ctx, storeDir, "", log)
	if err != nil {
		return err
	}
	opts := migrate.Options{Closure: len(f.closureOf) > 0, NoFiles: f.noFiles, MaxFile: int64(s.MaxFile), Jobs: f.jobs, DryRun: f.dryRun, Warn: log.Warn}
	if opts.Paths, err = f.wanted(storeDir, cmd.InOrStdin()); err != nil {
		return err
	}
	if f.only != "" {
		if _, err := path.Match(f.only, ""); err != nil {
			return fmt.Errorf("only: %w", err)
		}
		opts.Match = func(name string) bool { ok, _ := path.Match(f.only, name); return ok }
	}
	for _, text := range f.keys {
		key, err := narinfo.ParsePublicKey(text)
		if err != nil {
			return fmt.Errorf("trusted-key: %q: %w", text, err)
		}
		opts.Keys = append(opts.Keys, key)
	}
	return f.importAll(cmd, store, source, opts)
}

// importAll imports, with progress, and writes the reports.
func (f *importFlags) importAll(cmd *cobra.Command, store *chunkstore.Store, source upstream.Source, opts migrate.Options) (err error) {
	if f.skipped != "" {
		file, err := os.Create(f.skipped)
		if err != nil {
			return err
		}
		defer file.Close()
		opts.Skipped = func(s migrate.Skip) {
			fmt.Fprintf(file, "%s\t%s\t%s\n", s.Name, s.Reason, strings.Join(strings.Fields(s.Error), " "))
		}
	}
	var progress migrate.Progress
	begun := time.Now()
	stop := showProgress(cmd.ErrOrStderr(), func() string { return importLine(&progress, time.Since(begun)) })
	report, err := migrate.Import(cmd.Context(), store, source, opts, &progress)
	stop()
	if err == nil && !f.dryRun {
		err = store.Flush(cmd.Context())
	}
	if writeErr := write(cmd.OutOrStdout(), report, f.asJSON); err == nil {
		err = writeErr
	}
	if err == nil && report.Failed() > 0 {
		err = fmt.Errorf("%d things were left out", report.Failed())
	}
	return err
}

func importLine(p *migrate.Progress, since time.Duration) string {
	return fmt.Sprintf("%d paths: %d imported, %d were there, %d left out; %.1f MB of NARs, %.1f MB/s",
		p.Paths.Load(), p.Imported.Load(), p.Present.Load(), p.Skipped.Load(),
		float64(p.NARBytes.Load())/1e6, float64(p.NARBytes.Load())/1e6/max(since.Seconds(), 1e-3))
}

// showProgress shows line now and then until the function that it returns is called: on a
// terminal over the one before, else every ten seconds in a line of its own.
func showProgress(w io.Writer, line func() string) (stop func()) {
	every, format := 10*time.Second, "%s\n"
	if isTerminal(w) {
		every, format = 200*time.Millisecond, "\r\x1b[K%s"
	}
	done := make(chan struct{})
	var shown sync.WaitGroup
	shown.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(w, format, line())
			case <-done:
				if isTerminal(w) {
					fmt.Fprintf(w, format, "")
				}
				return
			}
		}
	})
	return func() {
		close(done)
		shown.Wait()
	}
}

// wanted returns what lists the hash parts of the paths that the flags name, or nil if
// they name none.
func (f *importFlags) wanted(storeDir string, stdin io.Reader) (func(context.Context, func(string) error) error, error) {
	if f.paths == "" && len(f.closureOf) == 0 {
		return nil, nil
	}
	roots := make([]string, len(f.closureOf))
	for i, text := range f.closureOf {
		var err error
		if roots[i], err = hashPart(storeDir, text); err != nil {
			return nil, fmt.Errorf("closure-of: %w", err)
		}
	}
	return func(_ context.Context, fn func(string) error) error {
		for _, h := range roots {
			if err := fn(h); err != nil {
				return err
			}
		}
		switch f.paths {
		case "":
			return nil
		case "-":
			return readPaths(storeDir, stdin, fn)
		}
		file, err := os.Open(f.paths)
		if err != nil {
			return fmt.Errorf("paths: %w", err)
		}
		defer file.Close()
		return readPaths(storeDir, file, fn)
	}, nil
}

// readPaths calls fn with the hash part of what the first word of each line names.
func readPaths(storeDir string, r io.Reader, fn func(string) error) error {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		h, err := hashPart(storeDir, words[0])
		if err != nil {
			return fmt.Errorf("paths, line %d: %w", n, err)
		}
		if err := fn(h); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read paths: %w", err)
	}
	return nil
}

// hashPart returns the hash part of a store path, of its base name, or that it is itself.
func hashPart(storeDir, text string) (string, error) {
	if narinfo.IsHashPart(text) {
		return text, nil
	}
	p, err := narinfo.ParseBaseName(strings.TrimPrefix(text, storeDir+"/"))
	if err != nil {
		return "", err
	}
	return p.HashPart(), nil
}
