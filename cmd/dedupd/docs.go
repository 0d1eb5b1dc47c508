package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// docsCommand writes what is made from the commands and the Settings, for packagers.
func docsCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "docs directory",
		Short:  "Write the manual pages, and a settings file with every default, into a directory",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error {
			dir := args[0]
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := writeManPages(dir); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			var example bytes.Buffer
			writeExample(&example, defaultSettings())
			return os.WriteFile(filepath.Join(dir, "dedupd.toml"), example.Bytes(), 0o644)
		},
	}
}

// writeManPages writes a page for each command, in section 1, and dedupd.toml(5). Their
// date is that of SOURCE_DATE_EPOCH, or today.
func writeManPages(dir string) error {
	root := rootCommand()
	root.InitDefaultCompletionCmd()
	forAnybody(root)
	// The library knows commands only; a file with an odd name does as well.
	settings := &cobra.Command{
		Use: "dedupd.toml", Short: "settings of dedupd", Long: settingsPage(defaultSettings()), DisableFlagsInUseLine: true,
	}
	return errors.Join(writeManPage(dir, settings, "5"), writeCommandPages(dir, root))
}

func writeCommandPages(dir string, cmd *cobra.Command) error {
	if err := writeManPage(dir, cmd, "1"); err != nil {
		return err
	}
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		if err := writeCommandPages(dir, c); err != nil {
			return err
		}
	}
	return nil
}

// flagLine is where the library has a flag and its help in one paragraph.
var flagLine = regexp.MustCompile(`(?m)^(?:\.PP\n)?(\\fB-.*)\n\t`)

func writeManPage(dir string, cmd *cobra.Command, section string) error {
	cmd.DisableAutoGenTag = true
	var page bytes.Buffer
	header := &doc.GenManHeader{Section: section, Source: "dedupd", Manual: "dedupd"}
	if err := doc.GenMan(cmd, header, &page); err != nil {
		return err
	}
	text := flagLine.ReplaceAll(page.Bytes(), []byte(".TP\n$1\n"))
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + "." + section
	return os.WriteFile(filepath.Join(dir, name), text, 0o644)
}

// forAnybody replaces the home of whoever generates this by what it stands for.
func forAnybody(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { f.DefValue = withoutHome(f.DefValue) })
	for _, c := range cmd.Commands() {
		forAnybody(c)
	}
}

func withoutHome(text string) string {
	if dataDir() == "" {
		return text
	}
	return strings.ReplaceAll(text, dataDir(), "$XDG_DATA_HOME/dedupd")
}

// settingsPage is dedupd.toml(5), from its DESCRIPTION on, in Markdown.
func settingsPage(s *Settings) string {
	var b strings.Builder
	b.WriteString(`The file that **--config** or **DEDUPD_CONFIG** names, in TOML (https://toml.io). Each setting
is a flag of **dedupd serve**, too, and a variable of the environment: flags go before variables,
those before the file, and that before the defaults. A name that is no setting is an error.

Sizes are numbers of bytes, or have a unit: "64MiB", "8GB". Durations have one: "30s", "5m".
Lists are arrays of strings.

# SETTINGS

`)
	for _, f := range s.fields() {
		fmt.Fprintf(&b, "**%s** = %s\n:   %s. Variable: **%s**\n\n", f.name, withoutHome(f.toml()), sentence(f.help), f.variable())
	}
	b.WriteString("# UPSTREAMS\nEach table **[[upstream]]** of the file is a place to look for what the store lacks. It has\n" +
		"either a url or a store; there are no flags and no variables for it.\n\n")
	for _, f := range fieldsOf(new(Upstream)) {
		fmt.Fprintf(&b, "**%s**\n:   %s.\n\n", f.name, sentence(f.help))
	}
	b.WriteString("# SEE ALSO\n**dedupd-serve(1)**\n")
	return b.String()
}

// writeExample writes a settings file in which every default is a comment.
func writeExample(w io.Writer, s *Settings) {
	fmt.Fprint(w, "# Settings of dedupd, each with its default: see dedupd.toml(5), or dedupd serve --help.\n"+
		"# What begins with $XDG_DATA_HOME is for users without that variable below ~/.local/share; in this\n"+
		"# file no variable counts. Made by \"make docs\".\n")
	for _, f := range s.fields() {
		fmt.Fprintf(w, "\n# %s.\n#%s = %s\n", sentence(f.help), f.name, withoutHome(f.toml()))
	}
	fmt.Fprint(w, "\n# A place to look for what the store lacks; there can be several tables like this.\n#[[upstream]]\n")
	for _, f := range fieldsOf(new(Upstream)) {
		fmt.Fprintf(w, "#%s: %s\n", f.name, f.help)
	}
}

// sentence begins text with a capital.
func sentence(text string) string { return strings.ToUpper(text[:1]) + text[1:] }
