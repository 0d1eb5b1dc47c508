package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/narinfo"
)

func keyCommand() *cobra.Command {
	key := &cobra.Command{Use: "key", Short: "Make signing keys, and show their public halves"}
	generate := &cobra.Command{
		Use:   "generate",
		Short: "Write a new secret key to the standard output",
		Long: "Write a new secret key to the standard output, in the format of\n" +
			"nix-store --generate-binary-cache-key. Whoever has it can sign for this cache.",
		Args: cobra.NoArgs,
	}
	name := generate.Flags().String("name", "", "name of the key (default: that of the host and -1)")
	generate.RunE = func(cmd *cobra.Command, _ []string) error {
		k, err := narinfo.GenerateKey(cmp.Or(*name, defaultKeyName()))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), k.Secret())
		return err
	}
	public := &cobra.Command{
		Use:   "public [file]",
		Short: "Write the public half of the secret key in a file, or the standard input",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var text []byte
			var err error
			if len(args) > 0 {
				text, err = os.ReadFile(args[0])
			} else {
				text, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxKeyFile))
			}
			if err != nil {
				return fmt.Errorf("read key: %w", err)
			}
			k, err := parseKey(text)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), k.Public())
			return err
		},
	}
	key.AddCommand(generate, public, listKeysCommand())
	return key
}

func listKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the public keys that clients of the cache trust, and those it trusts",
		Args:  cobra.NoArgs,
	}
	settings := addFlags(cmd, "key-files", "verify-keys", "trusted-keys")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		keys, err := readKeys(s.KeyFiles, false)
		if err != nil {
			return err
		}
		w := cmd.OutOrStdout()
		for _, k := range keys {
			fmt.Fprintf(w, "signs      %s\n", k.Public())
		}
		for _, k := range s.VerifyKeys {
			fmt.Fprintf(w, "has signed %s\n", k)
		}
		for _, k := range s.TrustedKeys {
			fmt.Fprintf(w, "may upload %s\n", k)
		}
		return nil
	}
	return cmd
}

// publicKeys parses keys that validate has seen.
func publicKeys(texts List) []narinfo.PublicKey {
	var keys []narinfo.PublicKey
	for _, text := range texts {
		if k, err := narinfo.ParsePublicKey(text); err == nil {
			keys = append(keys, k)
		}
	}
	return keys
}

// publicTexts returns what clients are to trust: the keys that sign, and those that have.
func publicTexts(keys []narinfo.PrivateKey, former List) []string {
	var texts []string
	for _, k := range keys {
		texts = append(texts, k.Public().String())
	}
	return append(texts, former...)
}

// maxKeyFile is more than any key file has, in bytes.
const maxKeyFile = 4 << 10

func parseKey(text []byte) (narinfo.PrivateKey, error) {
	return narinfo.ParsePrivateKey(strings.TrimSpace(string(text)))
}

// defaultKeyName is what Nix's manual recommends: the name of the host and a number.
func defaultKeyName() string {
	host, err := os.Hostname()
	if err != nil || host == "" || strings.ContainsAny(host, ": \t\r\n") {
		host = "dedupd"
	}
	return host + "-1"
}

// readKeys reads the keys in files. The one at the default place is made if it is not
// there, and may be.
func readKeys(files List, create bool) ([]narinfo.PrivateKey, error) {
	var keys []narinfo.PrivateKey
	for _, file := range files {
		text, err := os.ReadFile(file)
		if create && errors.Is(err, fs.ErrNotExist) && dataDir() != "" && file == filepath.Join(dataDir(), "key") {
			text, err = createKey(file)
		}
		if err != nil {
			return nil, fmt.Errorf("key file: %w", err)
		}
		k, err := parseKey(text)
		if err != nil {
			return nil, fmt.Errorf("key file %s: %w", file, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// createKey makes a key file, whole or not at all.
func createKey(file string) ([]byte, error) {
	k, err := narinfo.GenerateKey(defaultKeyName())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".key-*") // of mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(k.Secret())
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	// A link, not a rename: a key that another process has made meanwhile must stay.
	if err := os.Link(tmp.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.ReadFile(file)
}
