package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/time/rate"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/migrate"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// importFlags are the flags of import.
type importFlags struct {
	paths, skipped, only string
	since                string
	closureOf            []string
	keys                 []string
	source               importSource
	jobs                 int
	noFiles, withFiles   bool
	dryRun, asJSON       bool
	sign                 bool
	stdin                io.Reader // the stream that is imported, if it is that
	to                   pushFlags // the gateway that is imported into, if that is not the store
}

func importCommand() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import SOURCE",
		Short: "Bring a binary cache into the store",
		Long: "Bring what the store lacks from a binary cache: file:///directory, s3://bucket?…, http://…\n" +
			"or https://…; of s3, go doc ./bucket OpenS3 has the parameters.\n" +
			"What is in a directory or on S3 is found by itself; of a cache at a URL say which paths, with\n" +
			"--paths or --closure-of. With - it is what nix-store --export writes, on standard input;\n" +
			"with /nix/store it is the Nix store of this machine, whose daemon is not needed.\n\n" +
			"Every NAR is checked against its narinfo; signatures come along as they are, and nothing\n" +
			"is signed, unless --sign says so: a stream has no signatures, and of a store what was built\n" +
			"there often has none, so that clients take these paths only if this cache signs them.\n" +
			"The names by which clients remember files stay alive. What is not right, or not there, is\n" +
			"left out, counted, and with --skipped written to a file, which --paths takes to try it\n" +
			"again. An import that was interrupted goes on where it was.\n\n" +
			"With --to the paths go to a gateway on another machine, or to any other cache that takes\n" +
			"uploads over HTTP; a gateway adds its signature to what it takes in. There must be room in\n" +
			"$TMPDIR for the NARs that are on their way. User name and password are, without a token, those of\n" +
			"$NETRC, ~/.netrc or /etc/nix/netrc.\n\n" +
			"The exit status is 1 if anything was left out.",
		Example: "  dedupd import file:///srv/cache --dry-run\n" +
			"  dedupd import https://cache.example --closure-of /nix/store/…-system\n" +
			"  nix-store --export $(nix-store -qR ./result) | dedupd import - --sign\n" +
			"  curl -sL https://channels.nixos.org/nixos-unstable/store-paths.xz | xz -dc | dedupd import https://cache.nixos.org --paths -",
		Args: cobra.ExactArgs(1),
	}
	settings := addFlags(cmd, "bucket", "state", "memory", "xz", "max-nar", "max-file", "key-files", "log-level", "log-format")
	flags := cmd.Flags()
	f.addSource(flags)
	flags.BoolVar(&f.sign, "sign", false, "sign what is imported with key-files; a server that has the store does it with its own")
	flags.StringVar(&f.skipped, "skipped", "", "file to write what is left out to, and why")
	flags.StringVar(&f.to.to, "to", "", "URL of a gateway to import into, instead of the store")
	flags.StringVar(&f.to.tokenFile, "token-file", os.Getenv("DEDUPD_TOKEN_FILE"), "file with the token that the gateway asks for (DEDUPD_TOKEN_FILE)")
	flags.BoolVar(&f.noFiles, "no-files", false, "leave out listings, logs, debug information and realisations")
	flags.BoolVar(&f.withFiles, "with-files", false, "with --paths or --closure-of, ask for the listing and the log of each path, which takes two requests more")
	cmd.MarkFlagsMutuallyExclusive("no-files", "with-files")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only look what is missing")
	flags.BoolVar(&f.asJSON, "json", false, "write the report in JSON, and progress as lines of it to standard error")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		return f.run(cmd, s, args[0])
	}
	return cmd
}

// addSource adds the flags that say what is to be imported.
func (f *importFlags) addSource(flags *pflag.FlagSet) {
	flags.StringVar(&f.paths, "paths", "", "file with store paths or their hash parts, the first word of each line; - for standard input")
	flags.StringArrayVar(&f.closureOf, "closure-of", nil, "store path with all that it refers to; may be repeated")
	flags.StringVar(&f.only, "only", "", "pattern, with * and ?, of the names of the paths to import: what follows the hash part")
	flags.StringVar(&f.since, "since", "", "leave out what the source has had for longer: a time like 36h, or a date like 2026-11-01; for directories and S3")
	flags.StringArrayVar(&f.keys, "trusted-key", nil, "public key; one of those that are given must have signed a path; may be repeated")
	flags.StringVar(&f.source.Root, "root", "", "of a Nix store: directory that has its directories, if not /")
	flags.StringVar(&f.source.User, "user", "", "user name that the cache asks for")
	flags.StringVar(&f.source.PasswordFile, "password-file", "", "file with the password, or token, that belongs to it")
	flags.StringVar(&f.source.NetrcFile, "netrc-file", "", "file with user names and passwords")
	flags.IntVar(&f.jobs, "jobs", 16, "paths at a time")
	flags.Float64Var(&f.source.Rate, "rate", 0, "most requests a second to the source, over HTTP or to S3; 0 for no limit")
}

// options are those of importing from a source, by the flags that addSource has added.
func (f *importFlags) options(from string, stdin io.Reader) (opts migrate.Options, err error) {
	if f.jobs < 1 {
		return opts, fmt.Errorf("jobs is %d, not above 0", f.jobs)
	}
	if f.source.Rate < 0 {
		return opts, fmt.Errorf("rate is %g, not 0 or more", f.source.Rate)
	}
	opts = migrate.Options{Paths: f.wanted(stdin), Closure: len(f.closureOf) > 0, Match: f.only, Jobs: f.jobs}
	if opts.Since, err = parseSince(f.since); err != nil {
		return opts, err
	}
	for _, text := range f.keys {
		key, err := narinfo.ParsePublicKey(text)
		if err != nil {
			return opts, fmt.Errorf("trusted-key: %q: %w", text, err)
		}
		opts.Keys = append(opts.Keys, key)
	}
	if filepath.IsAbs(from) {
		f.source.Store = from
	} else {
		f.source.URL = from
	}
	return opts, nil
}

func (f *importFlags) run(cmd *cobra.Command, s *Settings, from string) error {
	opts, err := f.options(from, cmd.InOrStdin())
	if err != nil {
		return err
	}
	opts.Sign, opts.NoFiles, opts.WithFiles, opts.MaxFile, opts.DryRun = f.sign, f.noFiles, f.withFiles, int64(s.MaxFile), f.dryRun
	if from == "-" {
		f.stdin = cmd.InOrStdin()
		if f.source != (importSource{URL: from}) || f.paths != "" || len(f.closureOf) > 0 || len(f.keys) > 0 || f.since != "" {
			return errors.New("a stream has no password, no signatures and no dates, and cannot be asked for paths")
		}
	} else if _, err := f.source.upstream(); err != nil {
		return err
	}
	if f.to.to != "" && f.sign {
		return errors.New("a gateway signs what it takes in with its own keys")
	}
	if f.skipped != "" {
		// The old one may be what --paths names, and is of use until this import has ended.
		file, err := os.Create(f.skipped + ".new")
		if err != nil {
			return err
		}
		defer file.Close()
		opts.Skipped = func(s migrate.Skip) {
			fmt.Fprintf(file, "%s\t%s\t%s\n", s.Name, s.Reason, strings.Join(strings.Fields(s.Error), " "))
		}
	}
	importAll := f.importAll
	if f.to.to != "" {
		importAll = f.intoGateway
	}
	report, err := importAll(cmd, s, opts)
	if report == nil {
		return err
	}
	if err == nil && f.skipped != "" {
		err = os.Rename(f.skipped+".new", f.skipped)
	}
	if writeErr := write(cmd.OutOrStdout(), report, f.asJSON); err == nil {
		err = writeErr
	}
	if err == nil && report.Failed() > 0 {
		err = fmt.Errorf("%d things were left out", report.Failed())
	}
	return err
}

// parseSince returns the moment that text names: so long ago, or a day or second.
func parseSince(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago > 0 {
		return time.Now().Add(-ago), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("since: %q is neither a time like 36h nor a date like 2026-11-01", text)
}

// importAll imports into the store, or has the server do it that has the store.
func (f *importFlags) importAll(cmd *cobra.Command, s *Settings, opts migrate.Options) (report *migrate.Report, err error) {
	ctx, log := cmd.Context(), s.logger(cmd.ErrOrStderr())
	opts.Warn = log.Warn
	store, err := s.openStore(ctx, log, s.inBulk)
	locked := errors.Is(err, chunkstore.ErrLocked)
	if err != nil && !locked {
		return nil, err
	}
	var last atomic.Pointer[migrate.Counts] // of the server
	var progress migrate.Progress
	last.Store(new(migrate.Counts))
	counts := progress.Counts
	if locked {
		counts = func() migrate.Counts { return *last.Load() }
	}
	begun := time.Now()
	stop := showProgress(cmd.ErrOrStderr(), func() string { return importLine(counts(), time.Since(begun), f.asJSON) })
	defer stop()
	if locked {
		client, url, show := serverClient(s.State), serverURL+"/import", func(c migrate.Counts) { last.Store(&c) }
		if f.stdin != nil {
			report, err = migrate.AskStream(ctx, client, url, f.stdin, opts, show)
		} else {
			report, err = migrate.Ask(ctx, client, url, &f.source, opts, show)
		}
		if err != nil {
			err = fmt.Errorf("ask the server that uses %s: %w", s.State, err)
		}
		return report, err
	}
	defer func() { err = errors.Join(err, s.closeStore(ctx, store)) }()
	if !f.dryRun {
		if err := store.AcquireLease(ctx, chunkstore.LeaseOptions{TTL: time.Duration(s.LeaseTTL)}); err != nil {
			return nil, err
		}
	}
	if f.sign {
		if opts.SigningKeys, err = readKeys(s.KeyFiles, true); err != nil {
			return nil, err
		}
	}
	report, err = f.into(ctx, store, opts, &progress, log)
	if err == nil && !f.dryRun {
		err = store.Flush(ctx)
	}
	return report, err
}

// into imports into a sink.
func (f *importFlags) into(ctx context.Context, sink migrate.Sink, opts migrate.Options, progress *migrate.Progress, log *slog.Logger) (*migrate.Report, error) {
	if f.stdin != nil {
		return migrate.ImportStream(ctx, sink, f.stdin, opts, progress)
	}
	source, err := f.source.open(ctx, sink.Repository().StoreDir, log)
	if err != nil {
		return nil, err
	}
	if c, ok := source.(io.Closer); ok {
		defer c.Close()
	}
	return migrate.Import(ctx, sink, source, opts, progress)
}

// intoGateway imports into a gateway, over HTTP.
func (f *importFlags) intoGateway(cmd *cobra.Command, s *Settings, opts migrate.Options) (*migrate.Report, error) {
	ctx, log := cmd.Context(), s.logger(cmd.ErrOrStderr())
	opts.Warn = log.Warn
	user, password, err := f.to.credentials()
	if err != nil {
		return nil, err
	}
	xz, err := s.xzProgram(ctx)
	if err != nil {
		return nil, err
	}
	sink, err := migrate.OpenGateway(ctx, migrate.GatewayOptions{
		URL: f.to.to, User: user, Password: password, DecoderMemory: int64(s.Memory) / 2, XZ: xz,
		Retried: func(err error, wait time.Duration) { log.Warn("trying again", "in", wait, "err", err) },
	})
	if err != nil {
		return nil, err
	}
	defer sink.Close()
	var progress migrate.Progress
	begun := time.Now()
	stop := showProgress(cmd.ErrOrStderr(), func() string { return importLine(progress.Counts(), time.Since(begun), f.asJSON) })
	defer stop()
	return f.into(ctx, sink, opts, &progress, log)
}

// inBulk makes larger packs, and has them wait longer, where the settings say nothing of
// that: each costs a request, and an import that loses its disk can begin again.
func (s *Settings) inBulk(o *chunkstore.Options) {
	defaults := defaultSettings()
	if s.PackSize == defaults.PackSize {
		o.PackSize = 64 << 20
	}
	if s.FlushInterval == defaults.FlushInterval {
		o.FlushInterval = 10 * time.Minute
	}
}

// importHandler has the server import for those who may use its socket.
func importHandler(store *chunkstore.Store, keys []narinfo.PrivateKey, log *slog.Logger) http.Handler {
	return migrate.Handler(store, func(ctx context.Context, text json.RawMessage) (upstream.Source, error) {
		var s importSource
		if err := json.Unmarshal(text, &s); err != nil {
			return nil, err
		}
		return s.open(ctx, store.Repository().StoreDir, log)
	}, keys, log.Warn)
}

// An importSource is the cache that is imported, as the flags name it.
type importSource struct {
	URL, User, PasswordFile, NetrcFile string

	Store, Root string  // of a Nix store on this machine
	Rate        float64 // requests a second; 0 for no limit
}

func (s *importSource) upstream() (*Upstream, error) {
	up := &Upstream{URL: s.URL, Store: s.Store, Root: s.Root, Trust: true, User: s.User, PasswordFile: s.PasswordFile, NetrcFile: s.NetrcFile}
	if err := up.validate(); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return up, nil
}

func (s *importSource) open(ctx context.Context, storeDir string, log *slog.Logger) (upstream.Source, error) {
	up, err := s.upstream()
	if err != nil {
		return nil, err
	}
	log.Info("reading a source", "source", up.name())
	source, err := up.source(ctx, storeDir, "", log)
	if l, ok := source.(interface{ Limit(*rate.Limiter) }); ok && s.Rate > 0 {
		l.Limit(rate.NewLimiter(rate.Limit(s.Rate), 1))
	}
	return source, err
}

// importLine says how far an import is, in words or in JSON.
func importLine(c migrate.Counts, since time.Duration, asJSON bool) string {
	seconds := max(since.Seconds(), 1e-3)
	if asJSON {
		text, _ := json.Marshal(struct {
			Progress migrate.Counts `json:"progress"`
			Seconds  float64        `json:"seconds"`
		}{c, seconds}) // of numbers
		return string(text)
	}
	line := fmt.Sprintf("%d paths: %d imported, %d were there, %d left out; %.1f MB of NARs, %.1f MB/s",
		c.Paths, c.Imported, c.Present, c.Skipped, float64(c.NARBytes)/1e6, float64(c.NARBytes)/1e6/seconds)
	if c.NewChunkBytes > 0 {
		line += fmt.Sprintf(", deduplication %.2f : 1", float64(c.ChunkBytes)/float64(c.NewChunkBytes))
	}
	if c.Listed > 0.01 {
		left := time.Duration(seconds * (1 - c.Listed) / c.Listed * float64(time.Second))
		line += fmt.Sprintf(", about %v left", left.Round(time.Second))
	}
	return line
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
func (f *importFlags) wanted(stdin io.Reader) func(context.Context, func(string) error) error {
	if f.paths == "" && len(f.closureOf) == 0 {
		return nil
	}
	return func(_ context.Context, fn func(string) error) error {
		for _, text := range f.closureOf {
			h, err := hashPart(text)
			if err != nil {
				return fmt.Errorf("closure-of: %w", err)
			}
			if err := fn(h); err != nil {
				return err
			}
		}
		switch f.paths {
		case "":
			return nil
		case "-":
			return readPaths(stdin, fn)
		}
		file, err := os.Open(f.paths)
		if err != nil {
			return fmt.Errorf("paths: %w", err)
		}
		defer file.Close()
		return readPaths(file, fn)
	}
}

// readPaths calls fn with the hash part of the path that the first word of each line names,
// or with that word if it is another file, as in what was left out.
func readPaths(r io.Reader, fn func(string) error) error {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		item := words[0]
		if !migrate.IsFile(item) {
			var err error
			if item, err = hashPart(item); err != nil {
				return fmt.Errorf("paths, line %d: %w", n, err)
			}
		}
		if err := fn(item); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read paths: %w", err)
	}
	return nil
}

// hashPart returns the hash part of a store path in whatever store directory, of its base
// name, or that it is itself.
func hashPart(text string) (string, error) {
	base := path.Base(text)
	if narinfo.IsHashPart(base) {
		return base, nil
	}
	p, err := narinfo.ParseBaseName(base)
	if err != nil {
		return "", err
	}
	return p.HashPart(), nil
}
