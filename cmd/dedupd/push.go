package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jdx/go-netrc"
	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixstore"
	"github.com/dedupd/dedupd/push"
)

// pushFlags are the flags of push.
type pushFlags struct {
	to, tokenFile, netrcFile  string
	store, root, state        string
	jobs                      int
	noClosure, dryRun, asJSON bool
}

func pushCommand() *cobra.Command {
	var f pushFlags
	cmd := &cobra.Command{
		Use:   "push --to URL PATH…",
		Short: "Upload paths of the local Nix store to a cache",
		Long: "Upload paths of the local Nix store, and everything that they refer to, to a cache:\n" +
			"dedupd's, or any other that takes uploads over HTTP. A path may be a link to one,\n" +
			"such as ./result; with - they are read from standard input, one in each line. What\n" +
			"the cache has is not sent again, so that an upload that was interrupted goes on where\n" +
			"it was. A path becomes visible when everything is there that it refers to.\n\n" +
			"Signatures go along as they are in the local store; dedupd signs what it takes in.\n\n" +
			"The exit status is 1 if a path could not be uploaded.",
		Example: "  dedupd push --to https://cache.example ./result\n" +
			"  nix-store -qR /run/current-system | dedupd push --to https://cache.example --no-closure -",
		Args: cobra.MinimumNArgs(1),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.to, "to", os.Getenv("DEDUPD_TO"), "URL of the cache (DEDUPD_TO)")
	flags.StringVar(&f.tokenFile, "token-file", os.Getenv("DEDUPD_TOKEN_FILE"), "file with the token that the cache asks for (DEDUPD_TOKEN_FILE)")
	flags.StringVar(&f.netrcFile, "netrc-file", "", "file with user names and passwords, if there is no token; default $NETRC, ~/.netrc and /etc/nix/netrc")
	flags.StringVar(&f.store, "store", nixstore.DefaultDir, "directory of the Nix store")
	flags.StringVar(&f.root, "root", "", "directory that has the Nix store's directories, if not /")
	flags.StringVar(&f.state, "state", "", "state directory of Nix; default /nix/var/nix, below the root")
	flags.IntVar(&f.jobs, "jobs", 8, "uploads at a time")
	flags.BoolVar(&f.noClosure, "no-closure", false, "only the paths themselves, not what they refer to")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only print what the cache lacks")
	flags.BoolVar(&f.asJSON, "json", false, "write a report in JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) }
	return cmd
}

func (f *pushFlags) run(cmd *cobra.Command, args []string) error {
	ctx := cmd.Context()
	if f.to == "" {
		return errors.New("say where to, with --to or DEDUPD_TO")
	}
	if f.jobs < 1 {
		return fmt.Errorf("jobs is %d, not above 0", f.jobs)
	}
	user, password, err := f.credentials()
	if err != nil {
		return err
	}
	store, err := nixstore.Open(ctx, nixstore.Options{Dir: f.store, Root: f.root, State: f.state})
	if err != nil {
		return err
	}
	defer store.Close()
	infos, err := f.paths(ctx, store, args, cmd.InOrStdin())
	if err != nil {
		return err
	}
	show := &pushProgress{w: cmd.ErrOrStderr(), terminal: isTerminal(cmd.ErrOrStderr())}
	opts := push.Options{
		URL: f.to, User: user, Password: password, StoreDir: store.Dir(), Jobs: f.jobs, DryRun: f.dryRun,
		Uploaded: show.uploaded, Retried: show.retried,
	}
	stop := show.start()
	report, err := push.Push(ctx, store, infos, opts, &show.Progress)
	stop()
	if report == nil {
		return err
	}
	if writeErr := write(cmd.OutOrStdout(), report, f.asJSON); err == nil {
		err = writeErr
	}
	if err == nil && len(report.Failed) > 0 {
		err = fmt.Errorf("%d of %d paths could not be uploaded", len(report.Failed), len(report.Missing))
	}
	return err
}

// paths returns the narinfos of what args name.
func (f *pushFlags) paths(ctx context.Context, store *nixstore.Store, args []string, stdin io.Reader) ([]*narinfo.NarInfo, error) {
	var names []string
	for _, arg := range args {
		if arg != "-" {
			names = append(names, arg)
			continue
		}
		lines := bufio.NewScanner(stdin)
		for lines.Scan() {
			if line := strings.TrimSpace(lines.Text()); line != "" {
				names = append(names, line)
			}
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("read paths: %w", err)
		}
	}
	var paths []narinfo.StorePath
	for _, name := range names {
		p, err := store.Resolve(name)
		if err != nil {
			return nil, err
		}
		paths = append(paths, p)
	}
	if f.noClosure {
		return store.PathInfos(ctx, paths)
	}
	return store.Closure(ctx, paths)
}

// credentials returns the user name and password for the cache, or none.
func (f *pushFlags) credentials() (user, password string, err error) {
	if f.tokenFile != "" {
		text, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return "", "", fmt.Errorf("read token: %w", err)
		}
		return "dedupd", strings.TrimSpace(string(text)), nil
	}
	u, err := url.Parse(f.to)
	if err != nil {
		return "", "", errors.New("the URL of the cache is malformed")
	}
	files := []string{f.netrcFile}
	if f.netrcFile == "" {
		home, _ := os.UserHomeDir()
		files = []string{os.Getenv("NETRC"), filepath.Join(home, ".netrc"), "/etc/nix/netrc"}
	}
	for _, file := range files {
		if file == "" {
			continue
		}
		n, err := netrc.Parse(file)
		if f.netrcFile == "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			continue
		}
		if err != nil {
			return "", "", fmt.Errorf("read %s: %w", file, err)
		}
		if m := n.Machine(u.Hostname()); m != nil {
			return m.Get("login"), m.Get("password"), nil
		}
	}
	return "", "", nil
}

// A pushProgress shows how far a push is: on a terminal in one line that changes, else in
// a line for each path.
type pushProgress struct {
	push.Progress
	w        io.Writer
	terminal bool
	mu       sync.Mutex // guards w
}

// start shows progress until the function that it returns is called.
func (p *pushProgress) start() (stop func()) {
	if !p.terminal {
		return func() {}
	}
	done := make(chan struct{})
	var shown sync.WaitGroup
	begin := time.Now()
	shown.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.show(time.Since(begin))
			case <-done:
				p.line("")
				return
			}
		}
	})
	return func() {
		close(done)
		shown.Wait()
	}
}

func (p *pushProgress) show(since time.Duration) {
	sent := p.Sent.Load()
	p.line(fmt.Sprintf("%d of %d paths, %.1f of %.1f MB, %.1f MB sent, %.1f MB/s", p.PathsDone.Load(), p.Paths.Load(),
		float64(p.BytesDone.Load())/1e6, float64(p.Bytes.Load())/1e6, float64(sent)/1e6, float64(sent)/1e6/since.Seconds()))
}

// line replaces what the terminal's line shows.
func (p *pushProgress) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "\r\x1b[K%s", text)
}

// say prints a line that stays.
func (p *pushProgress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *pushProgress) uploaded(info *narinfo.NarInfo, sent int64) {
	if !p.terminal {
		p.say("uploaded %s, %.1f MB in %.1f MB", info.StorePath, float64(info.NarSize)/1e6, float64(sent)/1e6)
	}
}

func (p *pushProgress) retried(err error, wait time.Duration) {
	p.say("%v; again in %v", err, wait.Round(100*time.Millisecond))
}
