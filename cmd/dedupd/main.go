// Command dedupd is a Nix binary cache that stores each byte once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// workers is how many processors there are for uploads.
var workers = runtime.GOMAXPROCS(0)

func main() {
	// One more for everybody else, the garbage collector included: Go's scheduler has who
	// wakes up wait for all that compute, the kernel's lets him go first.
	runtime.GOMAXPROCS(workers + 1)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "dedupd:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends when ctx does.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "dedupd",
		Short:         "A Nix binary cache that stores each byte once",
		SilenceErrors: true, // main prints them
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.Help()
			return errors.New("no command was given")
		},
	}
	root.AddCommand(serveCommand(), planCommand(), importCommand(), exportCommand(), pushCommand(), statsCommand(), reportCommand(), checkCommand(), doctorCommand(), readyCommand(), indexCommand(), keyCommand(), tokenCommand(), versionCommand(), docsCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "dedupd %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// release is the version of a packaged build, set by the linker.
var release string

// version is what the packager says, or else what Go knows of the source that this was
// built from.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}
