package main

import (
	"bytes"
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/plan"
	"github.com/dedupd/dedupd/prices"
)

// planFlags are the flags of plan.
type planFlags struct {
	importFlags
	opts   plan.Options
	share  percent
	growth percent
	bytes  Bytes
	egress float64
	html   string
}

func planCommand() *cobra.Command {
	f := planFlags{share: 0.2, bytes: 20e9}
	cmd := &cobra.Command{
		Use:   "plan SOURCE",
		Short: "Say what moving a binary cache here would bring, and cost",
		Long: "Estimate what a binary cache would take here: read its narinfos, take in a sample of its\n" +
			"NARs as an import would, into a store that is thrown away, and say what all of it would\n" +
			"store, what clients would download, and what that costs: left where it is, copied as it is,\n" +
			"with an object for each chunk, and in dedupd. SOURCE is what it is for dedupd import, but no\n" +
			"stream.\n\n" +
			"Between the bounds that stand with an estimate the truth is to lie for nine samples of ten; a\n" +
			"larger sample brings them together. Nothing is written but in a temporary directory (TMPDIR),\n" +
			"which needs room for some packs. The prices are those of --prices, which anybody can edit;\n" +
			"--provider says where the cache is now.",
		Example: "  dedupd plan 's3://cache?region=eu-central-1' --egress 3.5 --growth 40% --html plan.html\n" +
			"  dedupd plan https://cache.example --closure-of /nix/store/…-system --sample 5%",
		Args: cobra.ExactArgs(1),
	}
	settings := addFlags(cmd, "memory", "max-nar", "store-dir", "splitter", "pack-size", "xz", "prices", "provider", "log-level", "log-format")
	flags := cmd.Flags()
	f.addSource(flags)
	flags.IntVar(&f.opts.Narinfos, "narinfos", 1_000_000, "narinfos to read at most, at random, but for closures")
	flags.Var(&f.share, "sample", "part of the files' bytes to fetch")
	flags.TextVar(&f.bytes, "sample-bytes", f.bytes, "bytes of files to fetch at most, about")
	flags.Uint64Var(&f.opts.Seed, "seed", 1, "number that the sample is drawn with; another one draws another sample")
	flags.Float64Var(&f.egress, "egress", 0, "TB that clients download in a month; without it, as much as the cache has")
	flags.Var(&f.growth, "growth", "what the cache grows by in a year, as a part of what it is today")
	flags.StringVar(&f.html, "html", "", "file to write the plan to as a page with charts")
	flags.BoolVar(&f.asJSON, "json", false, "write the plan in JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		return f.run(cmd, s, args[0])
	}
	return cmd
}

func (f *planFlags) run(cmd *cobra.Command, s *Settings, from string) error {
	table, err := prices.Load(s.Prices)
	if err != nil {
		return err
	}
	ctx, log := cmd.Context(), s.logger(cmd.ErrOrStderr())
	if f.opts.Import, err = f.options(from, cmd.InOrStdin()); err != nil {
		return err
	}
	f.opts.Import.Warn = log.Warn
	if f.opts.Store, err = s.engineOptions(ctx, slog.New(slog.DiscardHandler)); err != nil { // the store's log is of no interest
		return err
	}
	s.inBulk(&f.opts.Store) // as the import will
	f.opts.Share, f.opts.Bytes = float64(f.share), int64(f.bytes)
	f.opts.Money = plan.Money{Prices: table, Provider: s.Provider, Egress: f.egress * 1e12, Growth: float64(f.growth)}
	source, err := f.source.open(ctx, cmp.Or(s.StoreDir, chunkstore.DefaultStoreDir), log)
	if err != nil {
		return err
	}
	var progress plan.Progress
	begun := time.Now()
	stop := showProgress(cmd.ErrOrStderr(), func() string { return planLine(&progress, time.Since(begun)) })
	report, err := plan.Make(ctx, source, f.opts, &progress)
	stop()
	if err != nil {
		return err
	}
	if f.html != "" {
		var page bytes.Buffer
		if err := report.WriteHTML(&page); err != nil {
			return err
		}
		if err := os.WriteFile(f.html, page.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return write(cmd.OutOrStdout(), report, f.asJSON)
}

func planLine(p *plan.Progress, since time.Duration) string {
	read, got := p.Narinfos.Counts(), p.NARs.Counts()
	if got.Paths == 0 {
		return fmt.Sprintf("%d narinfos, %d left out; %.1f TB of NARs", read.Paths, read.Skipped, float64(read.NARBytes)/1e12)
	}
	return fmt.Sprintf("%d narinfos; sample: %d NARs, %d left out; %.1f MB from %.1f MB in %.0f s",
		read.Paths, got.Imported, got.Skipped, float64(got.NARBytes)/1e6, float64(got.Read)/1e6, since.Seconds())
}

// A percent is a part, as text with a sign for percent or without one.
type percent float64

// Set implements pflag.Value.
func (p *percent) Set(text string) error {
	digits, hundred := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if hundred {
		v /= 100
	}
	if err != nil || !(v >= 0 && v <= 1e6) {
		return fmt.Errorf("%q is not a part like 20%%", text)
	}
	*p = percent(v)
	return nil
}

// String implements pflag.Value.
func (p *percent) String() string { return strconv.FormatFloat(100*float64(*p), 'g', -1, 64) + "%" }

// Type implements pflag.Value.
func (p *percent) Type() string { return "percent" }
