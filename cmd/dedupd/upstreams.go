package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jdx/go-netrc"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/metrics"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixstore"
	"github.com/dedupd/dedupd/pull"
	"github.com/dedupd/dedupd/upstream"
)

// An Upstream is one [[upstream]] of the settings file: a place to look for what the
// store lacks. It has either a URL or a Store.
type Upstream struct {
	URL   string `toml:"url" help:"a binary cache: http://…, https://…, s3://bucket or file:///directory"`
	Store string `toml:"store" help:"the store directory of a Nix store on this machine: /nix/store"`
	Root  string `toml:"root" help:"of a store: the directory that has its directories, if that is not /"`
	State string `toml:"state" help:"of a store: the state directory of Nix; default /nix/var/nix, below the root"`
	Sign  bool   `toml:"sign" help:"sign what comes from there with key-files; for a store, whose paths often have no signature"`

	Priority        int      `toml:"priority" help:"what upstreams are asked by, lowest first; those with the same in the order of the file"`
	PublicKeys      List     `toml:"public-keys" help:"keys of which one must have signed a path, as in trusted-public-keys"`
	Trust           bool     `toml:"trust" help:"take paths without looking at signatures"`
	Keep            *bool    `toml:"keep" help:"store what is pulled; default true for a cache, false for a store"`
	Timeout         Duration `toml:"timeout" help:"time that the upstream has for the first byte of an answer; default 10s"`
	IdleTimeout     Duration `toml:"idle-timeout" help:"time that the upstream has between bytes; default 60s"`
	NegativeCache   Duration `toml:"negative-cache" help:"time for which a path that the upstream does not have is not asked for again; default 10m"`
	WhenUnreachable string   `toml:"when-unreachable" help:"what clients are told of paths that nobody else has while the upstream cannot be reached: error, so that they try again or fail, or absent, so that they build them; default error"`

	User         string `toml:"user" help:"user name that the cache asks for"`
	PasswordFile string `toml:"password-file" help:"file with the password, or token, that belongs to it"`
	NetrcFile    string `toml:"netrc-file" help:"file with user name and password, as Nix has it in netrc-file"`
}

// name says which upstream it is, without a password that does not belong in its URL.
func (u *Upstream) name() string {
	if parsed, err := url.Parse(u.URL); u.Store == "" && err == nil {
		return parsed.Redacted()
	}
	return u.Store
}

// keep says whether what comes from the upstream is stored.
func (u *Upstream) keep() bool {
	if u.Keep != nil {
		return *u.Keep
	}
	return u.Store == ""
}

// validate reports everything that cannot be right.
func (u *Upstream) validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need((u.URL == "") != (u.Store == ""), "needs either a url or a store")
	if u.URL != "" {
		errs = append(errs, validateURL(u.URL))
		need(len(u.PublicKeys) > 0 || u.Trust, "needs public-keys, of which one must have signed a path, or trust = true, to take all that comes from there")
	}
	need(u.Store == "" || filepath.IsAbs(u.Store), "store %q is not an absolute path", u.Store)
	need(u.Store != "" || u.Root == "" && u.State == "" && !u.Sign, "has root, state or sign, which are for stores")
	need(u.Store == "" || u.Timeout == 0 && u.IdleTimeout == 0 && u.NegativeCache == 0, "has timeout, idle-timeout or negative-cache, which are for caches")
	for _, key := range u.PublicKeys {
		_, err := narinfo.ParsePublicKey(key)
		need(err == nil, "public-keys: %q: %w", key, err)
	}
	need(len(u.PublicKeys) == 0 || !u.Trust, "has public-keys, which trust = true would make no use of")
	need(u.Timeout >= 0 && u.IdleTimeout >= 0 && u.NegativeCache >= 0, "has a negative time")
	need(u.WhenUnreachable == "" || u.WhenUnreachable == "error" || u.WhenUnreachable == "absent", "when-unreachable is %q, not error or absent", u.WhenUnreachable)
	need((u.User == "") == (u.PasswordFile == ""), "needs user and password-file, or neither")
	need(u.NetrcFile == "" || u.User == "", "has both a user and a netrc-file")
	need(u.NetrcFile == "" && u.User == "" || strings.HasPrefix(u.URL, "http"), "has a password, which only a cache at http:// or https:// can ask for")
	return errors.Join(errs...)
}

func validateURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("url is malformed")
	case u.User != nil:
		return errors.New("url has a user name in it; use user and password-file, or netrc-file")
	case u.Scheme == "s3" && u.Host != "":
		return nil // its parameters are settings
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("url %q has parameters; they are settings here", text)
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path), (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		return nil
	}
	return fmt.Errorf("url %q is not http://…, https://…, s3://bucket or file:///directory", text)
}

// openPuller returns what gets from the upstreams what the store lacks, or nil if there are
// none. The caller closes it.
func (s *Settings) openPuller(ctx context.Context, store *chunkstore.Store, keys []narinfo.PrivateKey, counts *metrics.Metrics, log *slog.Logger) (_ *pull.Puller, err error) {
	if len(s.Upstreams) == 0 {
		return nil, nil
	}
	cfg := pull.Config{
		Dir: filepath.Join(s.State, "pulled"), MaxPulls: s.MaxPulls, Cache: int64(s.PullCache), Via: pull.NewVia(), Log: log,
	}
	defer func() {
		for _, u := range cfg.Upstreams {
			if c, ok := u.Source.(io.Closer); ok && err != nil {
				c.Close()
			}
		}
	}()
	upstreams := slices.Clone(s.Upstreams)
	slices.SortStableFunc(upstreams, func(a, b Upstream) int { return cmp.Compare(a.Priority, b.Priority) })
	for _, u := range upstreams {
		source, err := u.source(ctx, store.Repository().StoreDir, cfg.Via, log)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", u.name(), err)
		}
		up := pull.Upstream{
			Source: counts.Source(source), Keep: u.keep() && !s.Follow, Local: u.Store != "", NegativeCache: time.Duration(u.NegativeCache), AbsentWhenUnreachable: u.WhenUnreachable == "absent",
		}
		if u.Sign {
			up.Sign = keys
		}
		for _, text := range u.PublicKeys {
			key, err := narinfo.ParsePublicKey(text)
			if err != nil {
				return nil, err
			}
			up.Keys = append(up.Keys, key)
		}
		cfg.Upstreams = append(cfg.Upstreams, up)
	}
	return pull.New(store, cfg)
}

// source returns what the upstream is read through.
func (u *Upstream) source(ctx context.Context, storeDir, via string, log *slog.Logger) (upstream.Source, error) {
	if u.Store != "" {
		if u.Store != storeDir {
			return nil, fmt.Errorf("this cache is for the store directory %s", storeDir)
		}
		return nixstore.Open(ctx, nixstore.Options{Dir: u.Store, Root: u.Root, State: u.State, Log: log})
	}
	parsed, err := url.Parse(u.URL)
	if err != nil {
		return nil, err
	}
	switch parsed.Scheme {
	case "file":
		return upstream.NewDir(parsed.Path, storeDir), nil
	case "s3":
		return upstream.NewS3(u.URL, storeDir)
	}
	user, password, err := u.credentials(parsed.Hostname())
	if err != nil {
		return nil, err
	}
	return upstream.NewHTTP(upstream.HTTPConfig{
		URL: u.URL, StoreDir: storeDir, User: user, Password: password,
		Timeout: time.Duration(u.Timeout), IdleTimeout: time.Duration(u.IdleTimeout), Via: via,
	})
}

// credentials returns the user name and password for host, "" for none.
func (u *Upstream) credentials(host string) (user, password string, err error) {
	switch {
	case u.PasswordFile != "":
		text, err := os.ReadFile(u.PasswordFile)
		return u.User, strings.TrimRight(string(text), "\r\n"), err
	case u.NetrcFile != "":
		file, err := netrc.Parse(u.NetrcFile)
		if err != nil {
			return "", "", fmt.Errorf("read %s: %w", u.NetrcFile, err)
		}
		machine := file.Machine(host)
		if machine == nil {
			return "", "", fmt.Errorf("%s has nothing for %s", u.NetrcFile, host)
		}
		return machine.Get("login"), machine.Get("password"), nil
	}
	return "", "", nil
}
