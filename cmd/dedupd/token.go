package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/access"
)

// tokenFile is where tokens are.
func (s *Settings) tokenFile() string {
	return cmp.Or(s.Tokens, filepath.Join(s.State, "tokens.json"))
}

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke tokens, which give rights to clients",
		Long: "Make, list and revoke tokens, which give rights to clients. A server that runs notices\n" +
			"within two seconds.",
		Args: cobra.NoArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.Help()
		return errors.New("no command was given")
	}
	cmd.AddCommand(createTokenCommand(), listTokensCommand(), revokeTokenCommand())
	return cmd
}

func addTokenFlags(cmd *cobra.Command) func() (*Settings, error) {
	return addFlags(cmd, "state", "tokens")
}

func createTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token, and write it to the standard output",
		Long: "Make a token, and write it to the standard output, this once: only a hash of it is kept.\n" +
			"Clients send it as a password, of whatever user, or as a bearer token.",
		Example: "  dedupd token create --name ci --rights read,write --expires 90d\n" +
			"  dedupd token create --name docs --rights read,write --match 'docs-*' --max-nar 1GiB",
		Args: cobra.NoArgs,
	}
	settings := addTokenFlags(cmd)
	var t access.Token
	cmd.Flags().StringVar(&t.Name, "name", "", "name for the log and for revoking")
	rights := cmd.Flags().String("rights", "read", "rights, with commas: read, write, admin; to upload, Nix needs read and write")
	expires := cmd.Flags().String("expires", "", "time for which it is good, such as 90d or 12h, or the day, such as 2030-01-31; default for ever")
	cmd.Flags().StringArrayVar(&t.Match, "match", nil, "pattern that the names of store paths must match, without the hash, such as 'linux-*'; can be given several times")
	cmd.Flags().IntVar(&t.MaxUploads, "max-uploads", 0, "NARs that are taken in at a time; others wait")
	var maxNAR, rate Bytes
	cmd.Flags().TextVar(&maxNAR, "max-nar", Bytes(0), "size of the largest NAR")
	cmd.Flags().TextVar(&rate, "rate", Bytes(0), "bytes per second that all its uploads come to")
	machine := cmd.Flags().String("machine", "", "host name of the cache, for the line of the netrc file; default that of this machine")
	cmd.MarkFlagRequired("name")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		s, err := settings()
		if err != nil {
			return err
		}
		if err := t.Rights.UnmarshalText([]byte(*rights)); err != nil {
			return fmt.Errorf("flag --rights: %w", err)
		}
		if t.Expires, err = parseExpiry(*expires, time.Now()); err != nil {
			return fmt.Errorf("flag --expires: %w", err)
		}
		t.MaxNAR, t.Rate = int64(maxNAR), int64(rate)
		text, err := access.Create(s.tokenFile(), &t)
		if err != nil {
			return err
		}
		host, _ := os.Hostname()
		fmt.Fprintf(cmd.ErrOrStderr(), "Token %s (%s): %s. For the netrc-file of Nix:\n\n  machine %s login dedupd password %s\n\n",
			t.Name, t.ID, describeToken(&t), cmp.Or(*machine, host, "cache.example.org"), text)
		_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
		return err
	}
	return cmd
}

// parseExpiry parses a time from now on, or a day, at the end of which (in UTC) it is.
func parseExpiry(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return day.AddDate(0, 0, 1), nil
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		if n > 100*365 {
			err = errors.New("too long")
		}
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d <= 0 {
		return time.Time{}, fmt.Errorf("%q is not a time like 90d or 12h, nor a day like 2030-01-31", text)
	}
	return now.Add(d).UTC().Truncate(time.Second), nil
}

// describeToken says in words what a token is good for.
func describeToken(t *access.Token) string {
	text := "may " + strings.ReplaceAll(t.Rights.String(), ",", " and ")
	if len(t.Match) > 0 {
		text += " store paths called " + strings.Join(t.Match, " or ")
	}
	if t.MaxUploads > 0 {
		text += fmt.Sprintf(", %d NARs at a time", t.MaxUploads)
	}
	if t.MaxNAR > 0 {
		text += fmt.Sprintf(", of %v at most", Bytes(t.MaxNAR))
	}
	if t.Rate > 0 {
		text += fmt.Sprintf(", %v per second", Bytes(t.Rate))
	}
	if t.Expires.IsZero() {
		return text + ", for ever"
	}
	return text + ", until " + t.Expires.Format(time.RFC3339)
}

// A tokenList is what "token list" writes.
type tokenList []access.Token

// WriteText writes the tokens for people.
func (l tokenList) WriteText(w io.Writer) error {
	if len(l) == 0 {
		_, err := fmt.Fprintln(w, "there are no tokens")
		return err
	}
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tab, "ID\tNAME\tCREATED\tWHAT FOR")
	for i := range l {
		t := &l[i]
		expired := ""
		if t.Expired(time.Now()) {
			expired = " (expired)"
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s%s\n", t.ID, t.Name, t.Created.Format(time.DateOnly), describeToken(t), expired)
	}
	return tab.Flush()
}

func (l tokenList) MarshalJSON() ([]byte, error) { return json.Marshal(append([]access.Token{}, l...)) }

func listTokensCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the tokens", Args: cobra.NoArgs}
	settings := addTokenFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "write JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		tokens, err := access.List(s.tokenFile())
		if err != nil {
			return err
		}
		return write(cmd.OutOrStdout(), tokenList(tokens), *asJSON)
	}
	return cmd
}

func revokeTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke ID|NAME",
		Short: "Revoke a token",
		Long:  "Revoke a token. Requests that run already are not cut off.",
		Args:  cobra.ExactArgs(1),
	}
	settings := addTokenFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		t, err := access.Revoke(s.tokenFile(), args[0])
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "revoked: token %s (%s) of %s, which %s\n", t.Name, t.ID, t.Created.Format(time.DateOnly), describeToken(&t))
		return err
	}
	return cmd
}
