package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/prices"
	"github.com/dedupd/dedupd/report"
)

func statsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Say what the store holds, what deduplication won, and what the bucket costs",
		Args:  cobra.NoArgs,
	}
	settings := addInspectFlags(cmd, "prices", "provider")
	asJSON := cmd.Flags().Bool("json", false, "write JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		var stats statsReport
		err = s.inspect(cmd, "GET /stats", &stats.Stats, func(ctx context.Context, store *chunkstore.Store) (err error) {
			stats.Store, err = store.Stats(ctx)
			return err
		})
		if err != nil {
			return err
		}
		p, err := s.priceTable()
		if err != nil {
			return err
		}
		stats.Cost = report.CostOf(stats.Store, s.Provider, p)
		return write(cmd.OutOrStdout(), &stats, *asJSON)
	}
	return cmd
}

// A statsReport is what dedupd stats says.
type statsReport struct {
	gateway.Stats
	Cost *report.Cost `json:"cost,omitempty"` // of a bucket whose requests are counted
}

// WriteText writes the report for people.
func (r *statsReport) WriteText(w io.Writer) error {
	if err := r.Stats.WriteText(w); err != nil || r.Cost == nil {
		return err
	}
	return r.Cost.WriteText(w)
}

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that the store is whole",
		Long: "Check that every reference leads to something, that every byte of every pack is\n" +
			"accounted for, and that index and packs agree. The exit status is 1 if not.\n\n" +
			"With --repair, what is damaged is written down, so that the store does without it\n" +
			"and the next upload brings it back; see first with --repair --dry-run which store\n" +
			"paths that makes absent.",
		Args: cobra.NoArgs,
	}
	settings := addInspectFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "write JSON")
	readData := cmd.Flags().Bool("read-data", false, "read and decode all data, too")
	repair := cmd.Flags().Bool("repair", false, "read all data, and mark what is damaged, so that the next upload brings it back")
	dryRun := cmd.Flags().Bool("dry-run", false, "with --repair: only say what cannot be served then")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		if *dryRun && !*repair {
			return errors.New("--dry-run is for --repair")
		}
		opts := chunkstore.CheckOptions{ReadData: *readData || *repair, Repair: *repair && !*dryRun, Progress: packProgress(cmd.ErrOrStderr())}
		request := "GET /check"
		switch {
		case opts.Repair:
			request = "POST /check"
		case opts.ReadData:
			request += "?read-data=1"
		}
		found := new(chunkstore.CheckReport)
		err = s.inspect(cmd, request, found, func(ctx context.Context, store *chunkstore.Store) (err error) {
			found, err = store.Check(ctx, opts)
			return err
		}, func(o *chunkstore.Options) { o.AllowMissingPacks = *repair })
		if err != nil {
			return err
		}
		if err := write(cmd.OutOrStdout(), found, *asJSON); err != nil {
			return err
		}
		if !found.OK() {
			return fmt.Errorf("check found %d problems", found.ProblemCount-found.Repaired)
		}
		return nil
	}
	return cmd
}

func readyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ready",
		Short: "Ask a running server whether it can serve",
		Long: "Ask the server that has the state directory whether it can serve. The exit status is 1\n" +
			"if not, or if there is none. This is for containers; others ask for /readyz.",
		Args: cobra.NoArgs,
	}
	settings := addInspectFlags(cmd)
	writable := cmd.Flags().Bool("write", false, "whether it takes uploads, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		request := "GET /readyz"
		if *writable {
			request += "?write=1"
		}
		var answer gateway.Readiness
		if err := askServer(cmd.Context(), s.State, request, &answer); err != nil {
			return err
		}
		if !answer.Ready {
			return fmt.Errorf("not ready: %s", strings.Join(answer.Reasons, "; "))
		}
		return nil
	}
	return cmd
}

// priceTable returns the prices of the provider that is set.
func (s *Settings) priceTable() (*prices.Provider, error) {
	table, err := prices.Load(s.Prices)
	if err != nil {
		return nil, err
	}
	return table.Provider(s.Provider)
}

// packProgress returns a function that shows how many packs are done, nil if w is no
// terminal.
func packProgress(w io.Writer) func(done, total int) {
	if !isTerminal(w) {
		return nil
	}
	return func(done, total int) {
		end := "\r"
		if done == total {
			end = "\n"
		}
		fmt.Fprintf(w, "\r%d of %d packs%s", done, total, end)
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// addInspectFlags adds the flags of commands that look at a store, and those for more
// settings.
func addInspectFlags(cmd *cobra.Command, more ...string) func() (*Settings, error) {
	return addFlags(cmd, append(more, "bucket", "state", "log-level", "log-format")...)
}

// inspect calls fn with the store. If a server has it, that one gets the request instead,
// a method and a path, and the answer goes into v.
func (s *Settings) inspect(cmd *cobra.Command, request string, v any, fn func(context.Context, *chunkstore.Store) error, change ...func(*chunkstore.Options)) error {
	ctx := cmd.Context()
	store, err := s.openExisting(ctx, s.logger(cmd.ErrOrStderr()), change...)
	if errors.Is(err, chunkstore.ErrLocked) {
		return askServer(ctx, s.State, request, v)
	}
	if err != nil {
		return err
	}
	return errors.Join(fn(ctx, store), s.closeStore(ctx, store))
}

// openExisting opens the store that s names, if there is one.
func (s *Settings) openExisting(ctx context.Context, log *slog.Logger, change ...func(*chunkstore.Options)) (*chunkstore.Store, error) {
	if _, err := os.Stat(filepath.Join(s.State, "lock")); err != nil {
		return nil, fmt.Errorf("there is no store: %w", err)
	}
	return s.openStore(ctx, log, change...)
}

// serverURL is where the client that serverClient returns finds the server.
const serverURL = "http://dedupd"

// serverClient returns a client of the server that has the state directory.
func serverClient(state string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socketPath(state))
		},
		DisableKeepAlives: true,
	}}
}

// askServer asks the server that has the state directory.
func askServer(ctx context.Context, state, request string, v any) error {
	method, path, _ := strings.Cut(request, " ")
	req, err := http.NewRequestWithContext(ctx, method, serverURL+path, nil)
	if err != nil {
		return err
	}
	resp, err := serverClient(state).Do(req)
	if err != nil {
		return fmt.Errorf("ask the process that uses %s: %w", state, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("ask the server: %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("ask the server: %w", err)
	}
	return nil
}

// write writes a report for people or for programs.
func write(w io.Writer, v interface{ WriteText(io.Writer) error }, asJSON bool) error {
	if !asJSON {
		return v.WriteText(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
