package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/chunkstore"
)

func indexCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "index", Short: "Work on the index", Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.Help()
		return errors.New("no command was given")
	}
	cmd.AddCommand(indexRebuildCommand(), indexSnapshotCommand())
	return cmd
}

func indexRebuildCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "Make the index anew from the packs",
		Long: "Make the index anew from the packs in the bucket, and in the state directory if it is\n" +
			"there. No server may be running. When it is interrupted, run it again, or start the\n" +
			"server: either goes on where it was.\n\n" +
			"With --from-snapshot it begins with the newest snapshot of an index in the bucket,\n" +
			"and reads the packs since, as a start on a new machine does.",
		Args: cobra.NoArgs,
	}
	settings := addFlags(cmd, "bucket", "state", "memory", "log-level", "log-format")
	asJSON := cmd.Flags().Bool("json", false, "write JSON")
	fromSnapshot := cmd.Flags().Bool("from-snapshot", false, "begin with the newest snapshot in the bucket")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		opts, err := s.storeOptions(cmd.Context(), s.logger(cmd.ErrOrStderr()))
		if err != nil {
			return err
		}
		report, err := chunkstore.RebuildIndex(cmd.Context(), opts, chunkstore.RebuildOptions{
			Memory: int64(s.Memory) / 2, FromSnapshot: *fromSnapshot, Progress: rebuildProgress(cmd.ErrOrStderr()),
		})
		if errors.Is(err, chunkstore.ErrLocked) {
			return fmt.Errorf("%w: stop the server first", err)
		}
		if err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), report, *asJSON)
	}
	return cmd
}

func indexSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Write a snapshot of the index into the bucket",
		Long: "Write a snapshot of the index into the bucket, so that a machine without an index need\n" +
			"not read the tails of all packs. The last one stays beside it, older ones are removed.\n" +
			"A running server does it by itself, too: see snapshot-interval.",
		Args: cobra.NoArgs,
	}
	settings := addInspectFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "write JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		report := new(chunkstore.SnapshotReport)
		err = s.inspect(cmd, "POST /snapshot", report, func(ctx context.Context, store *chunkstore.Store) (err error) {
			report, err = store.WriteSnapshot(ctx)
			return err
		})
		if err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), report, *asJSON)
	}
	return cmd
}

// rebuildProgress returns a function that shows, a few times a second, how far rebuilding
// is; nil if w is no terminal.
func rebuildProgress(w io.Writer) func(chunkstore.RebuildProgress) {
	if !isTerminal(w) {
		return nil
	}
	shown := time.Time{}
	return func(p chunkstore.RebuildProgress) {
		last := p.Packs == p.Total
		if time.Since(shown) < 200*time.Millisecond && !last {
			return
		}
		shown = time.Now()
		writeProgress(w, &p)
		if last {
			fmt.Fprintln(w)
		}
	}
}

// writeProgress writes one line over the one before.
func writeProgress(w io.Writer, p *chunkstore.RebuildProgress) {
	fmt.Fprintf(w, "\r%d of %d packs, %.0f chunks a second, %v left \x1b[K", p.Packs, p.Total, p.Rate(), p.Left().Round(time.Second))
}
