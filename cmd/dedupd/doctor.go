package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
)

func doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Test a bucket and print what works",
		Long: "Test a bucket: whether it can be reached, who this machine is to it, what it may do, and whether\n" +
			"the server keeps the promises that dedupd relies on. Each check is a line that says ok, warn or\n" +
			"FAIL, and what to do. What it writes lies beside the repository and is removed again; about\n" +
			"65 MB go over the network. The exit status is 1 if anything has failed.",
		Args: cobra.NoArgs,
	}
	settings := addFlags(cmd, "bucket")
	asJSON := cmd.Flags().Bool("json", false, "write JSON, a line for each check")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		report := textFindings(cmd.OutOrStdout())
		if *asJSON {
			e := json.NewEncoder(cmd.OutOrStdout())
			report = func(f bucket.Finding) { e.Encode(f) }
		}
		b, ok := bucket.Examine(cmd.Context(), s.Bucket, report)
		if dir, is := b.(*bucket.Dir); is {
			report(freeSpace(dir.Path()))
		}
		if b != nil {
			ok = examineRepository(cmd.Context(), b, report) && ok
		}
		if !ok {
			return errors.New("the bucket cannot be used as it is")
		}
		return nil
	}
	return cmd
}

func textFindings(w io.Writer) func(bucket.Finding) {
	return func(f bucket.Finding) {
		fmt.Fprintf(w, "%-4s  %-20s %s\n", f.Status, f.Check, f.Found)
		if f.Advice != "" {
			fmt.Fprintf(w, "%28s%s\n", "", f.Advice)
		}
	}
}

// examineRepository says what is in a bucket.
func examineRepository(ctx context.Context, b bucket.Bucket, report func(bucket.Finding)) bool {
	f := bucket.Finding{Check: "repository", Status: bucket.StatusOK}
	repo, err := chunkstore.ReadRepository(ctx, b)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		f.Found = "there is none yet: the server makes it"
	case err != nil:
		f.Status, f.Found, f.Advice = bucket.StatusFail, err.Error(), "it is damaged, or of a newer dedupd"
	default:
		f.Found = fmt.Sprintf("%s for %s, format %d, splitter %s", repo.ID, repo.StoreDir, repo.Version, repo.Splitter)
	}
	report(f)
	return err == nil || errors.Is(err, bucket.ErrNotFound)
}

// freeSpace says how much room a directory has.
func freeSpace(dir string) bucket.Finding {
	f := bucket.Finding{Check: "space", Status: bucket.StatusOK}
	free, err := chunkstore.FreeSpace(dir)
	switch {
	case err != nil:
		f.Status, f.Found, f.Advice = bucket.StatusWarn, err.Error(), "how much room there is cannot be told"
	case free == math.MaxInt64:
		f.Found = "is not known on this system"
	case free < lowSpace:
		f.Status, f.Found, f.Advice = bucket.StatusWarn, fmt.Sprintf("%d MB are free", free/1e6), "a bucket that is full takes no packs, and uploads wait"
	default:
		f.Found = fmt.Sprintf("%d MB are free", free/1e6)
	}
	return f
}

// lowSpace is what a bucket should have free, in bytes.
const lowSpace = 5e9
