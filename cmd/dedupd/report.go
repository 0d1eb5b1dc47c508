package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/report"
	"github.com/dedupd/dedupd/site"
)

// reportFlags are the flags of report.
type reportFlags struct {
	closures                     []string
	top                          int
	csv, parquet, packages, html string
	asJSON                       bool
}

func reportCommand() *cobra.Command {
	var f reportFlags
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Say what is stored for what: for packages, paths and closures",
		Long: "Say what is stored for each package and each closure, what deduplication saved over\n" +
			"time, and what the requests cost, against a plain cache.\n\n" +
			"What several packages use counts for each of them in equal shares, so that packages add\n" +
			"up to what is stored. A closure's own bytes would be free without it. If the store has more\n" +
			"chunks than find room in an eighth of --memory, the numbers are estimated from a sample,\n" +
			"and the report says how far off they may be.\n\n" +
			"A server that runs on the same state directory is asked to do it. Uploads go on.",
		Example: "  dedupd report\n" +
			"  dedupd report --closure /nix/store/…-nixos-system --html report.html\n" +
			"  dedupd report --parquet paths.parquet && duckdb -c \"SELECT pname, sum(stored_own) FROM 'paths.parquet' GROUP BY pname\"",
		Args: cobra.NoArgs,
	}
	settings := addInspectFlags(cmd, "memory", "prices", "provider")
	flags := cmd.Flags()
	flags.StringArrayVar(&f.closures, "closure", nil, "store path, whose closure is reported on; may be repeated")
	flags.IntVar(&f.top, "top", 20, fmt.Sprintf("packages in each list, %d at most", report.MaxTop))
	flags.StringVar(&f.csv, "csv", "", "file to write every store path to, as CSV")
	flags.StringVar(&f.parquet, "parquet", "", "file to write every store path to, as Parquet")
	flags.StringVar(&f.packages, "packages", "", "file to write every package to, as CSV")
	flags.StringVar(&f.html, "html", "", "file to write the report to, as a page with charts")
	flags.BoolVar(&f.asJSON, "json", false, "write JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		return f.run(cmd, s)
	}
	return cmd
}

func (f *reportFlags) run(cmd *cobra.Command, s *Settings) error {
	if f.top < 1 || f.top > report.MaxTop {
		return fmt.Errorf("top is %d, not from 1 to %d", f.top, report.MaxTop)
	}
	opts := s.reportOptions()
	opts.Top = f.top
	for _, text := range f.closures {
		h, err := hashPart(text)
		if err != nil {
			return fmt.Errorf("closure: %w", err)
		}
		opts.Closures = append(opts.Closures, h)
	}
	price, err := s.priceTable()
	if err != nil {
		return err
	}
	var files outputs
	defer files.discard()
	if err := f.openTables(&files, &opts); err != nil {
		return err
	}
	made, err := makeReport(cmd, s, opts)
	if err != nil {
		return err
	}
	made.Cost = report.CostOf(made.Store, s.Provider, price)
	if made.History, err = site.ReadHistory(s.State); err != nil {
		s.logger(cmd.ErrOrStderr()).Warn("what there was at other times is not known", "err", err)
	}
	if f.html != "" {
		page, err := files.create(f.html)
		if err == nil {
			err = made.WriteHTML(page)
		}
		if err != nil {
			return fmt.Errorf("html: %w", err)
		}
	}
	if err := files.keep(); err != nil {
		return err
	}
	return write(cmd.OutOrStdout(), made, f.asJSON)
}

// reportOptions are what a report may take of the machine.
func (s *Settings) reportOptions() report.Options {
	return report.Options{Memory: int64(s.Memory) / 8, TempDir: s.State}
}

// openTables has opts write the files that the flags name.
func (f *reportFlags) openTables(files *outputs, opts *report.Options) error {
	var tables []report.Table
	for _, t := range []struct {
		file string
		open func(io.Writer) report.Table
	}{{f.csv, report.NewCSV}, {f.parquet, report.NewParquet}} {
		if t.file == "" {
			continue
		}
		w, err := files.create(t.file)
		if err != nil {
			return err
		}
		table := t.open(w)
		tables = append(tables, table)
		files.finish = append(files.finish, table.Close)
	}
	if len(tables) > 0 {
		opts.Path = func(p *report.Path) (err error) {
			for _, t := range tables {
				err = cmp.Or(err, t.Write(p))
			}
			return err
		}
	}
	if f.packages == "" {
		return nil
	}
	w, err := files.create(f.packages)
	if err != nil {
		return err
	}
	packages := report.NewPackageCSV(w)
	opts.Package = packages.Write
	files.finish = append(files.finish, packages.Close)
	return nil
}

// makeReport makes the report, or has the server do it that has the store.
func makeReport(cmd *cobra.Command, s *Settings, opts report.Options) (made *report.Report, err error) {
	var last atomic.Pointer[report.Progress]
	opts.Progress = func(p report.Progress) { last.Store(&p) }
	defer showProgress(cmd.ErrOrStderr(), func() string {
		switch p := last.Load(); {
		case p == nil:
			return "report: asking"
		case p.Total > 0:
			return fmt.Sprintf("report: %s: %d of %d", p.Step, p.Done, p.Total)
		default:
			return fmt.Sprintf("report: %s", p.Step)
		}
	})()
	ctx, log := cmd.Context(), s.logger(cmd.ErrOrStderr())
	store, err := s.openExisting(ctx, log)
	if errors.Is(err, chunkstore.ErrLocked) {
		made, err = report.Ask(ctx, serverClient(s.State), serverURL+"/report", opts)
		if err != nil {
			err = fmt.Errorf("ask the server that uses %s: %w", s.State, err)
		}
		return made, err
	}
	if err != nil {
		return nil, err
	}
	made, err = report.Make(ctx, store, opts)
	return made, errors.Join(err, s.closeStore(ctx, store))
}

// reportHandler has the server report to those who may use its socket.
func (s *Settings) reportHandler(store *chunkstore.Store, log *slog.Logger) http.Handler {
	return report.Handler(store, s.reportOptions(), log)
}

// outputs are files that appear under their names when all of them are complete.
type outputs struct {
	files  []*os.File
	names  []string
	finish []func() error
}

func (o *outputs) create(name string) (*os.File, error) {
	f, err := os.Create(name + ".new")
	if err == nil {
		o.files, o.names = append(o.files, f), append(o.names, name)
	}
	return f, err
}

func (o *outputs) keep() error {
	for _, fn := range o.finish {
		if err := fn(); err != nil {
			return err
		}
	}
	for i, f := range o.files {
		if err := f.Close(); err != nil {
			return err
		}
		if err := os.Rename(f.Name(), o.names[i]); err != nil {
			return err
		}
	}
	o.files = nil
	return nil
}

// discard removes what was not kept.
func (o *outputs) discard() {
	for _, f := range o.files {
		f.Close()
		os.Remove(f.Name())
	}
}
