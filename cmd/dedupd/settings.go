package main

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/prices"
)

// Settings are everything that can be set. A field's tag is its name: in the TOML file
// as it stands, as a flag with two dashes before it, and as a variable in upper case,
// with DEDUPD_ before it and underscores for dashes. Flags go before variables, those
// before the file, and that before the defaults. Lists of tables are in the file only.
type Settings struct {
	Bucket         string   `toml:"bucket" help:"URL of the bucket, which holds everything: file:///directory or s3://name/prefix"`
	State          string   `toml:"state" help:"directory for the index, and for what is not in the bucket yet; on a disk that is synced, for one server only"`
	Follow         bool     `toml:"follow" help:"only read: serve what another server writes to the same bucket"`
	FollowInterval Duration `toml:"follow-interval" help:"how often to look for what was written, with follow; a path that is missed is looked for after a tenth of that"`
	LeaseTTL       Duration `toml:"lease-ttl" help:"how long this server, once it is gone without notice, keeps another one with another state directory from writing to the bucket"`
	WriterURL      string   `toml:"writer-url" help:"where clients are told to upload, with follow"`

	Listen List `toml:"listen" help:"addresses to serve on: host:port, unix:/path, unix:/path?mode=0660, or systemd for the sockets that it passes"`

	TLSCert      string        `toml:"tls-cert" help:"file with the certificate, and those between it and the root, in PEM; encrypts all that is not a Unix socket; read again when it changes"`
	TLSKey       string        `toml:"tls-key" help:"file with the key of the certificate, in PEM"`
	ClientCA     string        `toml:"client-ca" help:"file with the certificates, in PEM, of whom clients may have certificates from"`
	ClientRights access.Rights `toml:"client-rights" help:"what clients with such a certificate may do: read, write, admin"`

	Tokens        string `toml:"tokens" help:"file with the tokens that dedupd token makes; default tokens.json in the state directory"`
	PublicRead    bool   `toml:"public-read" help:"let everyone read; otherwise that needs a token or a certificate, on this machine, too"`
	LoopbackWrite bool   `toml:"loopback-write" help:"let this machine upload without a token; turn it off behind a proxy that runs here"`

	KeyFiles    List `toml:"key-files" help:"files with secret keys, as nix-store --generate-binary-cache-key makes them, that sign uploads; the default is created if it is not there; none for none"`
	VerifyKeys  List `toml:"verify-keys" help:"public keys with which this cache has signed before: what one of them has signed gets signatures of the present keys when it is served"`
	TrustedKeys List `toml:"trusted-keys" help:"public keys of which one must have signed what is uploaded; none for taking all that those upload who may"`

	StoreDir string `toml:"store-dir" help:"store directory of a new repository, or what an existing one must have; default /nix/store"`
	Splitter string `toml:"splitter" values:"rabin fastcdc" help:"how a new repository splits files, or what an existing one must have: rabin or fastcdc; default rabin"`

	Priority  int  `toml:"priority" help:"what clients sort caches by, lowest first; cache.nixos.org has 40"`
	MassQuery bool `toml:"mass-query" help:"tell clients that they may ask for many paths at once"`

	NarInfoMaxAge Duration `toml:"narinfo-max-age" help:"how long proxies and CDNs may keep a narinfo, where everyone may read; a path that was damaged and is not there any more is seen that late"`

	PackSize         Bytes    `toml:"pack-size" help:"size at which a pack is sent to the bucket"`
	FlushInterval    Duration `toml:"flush-interval" help:"age at which a pack is sent to the bucket, however small"`
	Ack              string   `toml:"ack" values:"spool bucket" help:"where a path must be before its upload is acknowledged: spool, on this server's disk, or bucket"`
	AckTimeout       Duration `toml:"ack-timeout" help:"time that an upload waits for the bucket, with ack = bucket, before it is refused; clients of Nix wait for 5m"`
	MaxFragments     int      `toml:"max-fragments" help:"packs that are not in the spool any more and that 8MiB of a NAR may be scattered over before what is in more of them is stored again; 0 for any number"`
	ParallelPuts     int      `toml:"parallel-puts" help:"packs that are sent to the bucket at a time"`
	Memory           Bytes    `toml:"memory" help:"memory to stay within, 256MiB at least; a soft limit"`
	XZ               string   `toml:"xz" values:"auto go process" help:"what decodes xz: process, for processes of the program xz, of XZ Utils; go, for this one, which takes half as long again; or auto, for the former if it is installed"`
	ScrubRate        Bytes    `toml:"scrub-rate" help:"bytes to read each second from the bucket, once a day all of it, to find what is damaged; 0 for not at all"`
	SnapshotInterval Duration `toml:"snapshot-interval" help:"time from one snapshot of the index in the bucket to the next, for machines that start without an index; 0 for none"`
	MaxFile          Bytes    `toml:"max-file" help:"size of the largest log, listing or other small file that can be uploaded"`
	MaxNAR           Bytes    `toml:"max-nar" help:"size of the largest NAR, and of the largest file with one, that can be uploaded"`
	MaxUploads       int      `toml:"max-uploads" help:"NARs that are taken in at a time; others wait"`
	SpoolSize        Bytes    `toml:"spool-size" help:"packs that may wait for the bucket before uploads do"`
	CacheSize        Bytes    `toml:"cache-size" help:"room in the state directory for what is read from a bucket that is not a directory; 0 for none"`
	OldNamesCache    Bytes    `toml:"old-names-cache" help:"room in the state directory for NARs in the compressions that they were uploaded or imported in, of those that are asked for often under these names; 0 for none"`
	MinFree          Bytes    `toml:"min-free" help:"room that the disk of the state directory must have for an upload to begin"`
	MaxConnections   int      `toml:"max-connections" help:"connections that clients may have open; beyond that, those that are idle for longest are closed"`
	IdleTimeout      Duration `toml:"idle-timeout" help:"time after which a client that stalls is dropped"`
	ShutdownTimeout  Duration `toml:"shutdown-timeout" help:"time that running requests have to finish, and then uploads to the bucket, when the server is stopped"`

	Upstreams []Upstream `toml:"upstream" help:"places to look for what the store lacks: tables in the file, see Upstream"`
	MaxPulls  int        `toml:"max-pulls" help:"NARs that are fetched from upstreams at a time; others wait"`
	PullCache Bytes      `toml:"pull-cache" help:"room in the state directory for NARs as upstreams have sent them, so that interrupted downloads can go on"`

	PublicURL string `toml:"public-url" help:"where clients find the cache, for the page that tells how to use it; by default what the browser has asked for"`
	Prices    string `toml:"prices" help:"file with prices of object storage, in the format of contrib/prices.toml; default: that one, which is built in"`
	Provider  string `toml:"provider" help:"table of prices to say by what requests and storage cost"`

	MetricsRight access.Rights `toml:"metrics-right" values:"read admin" help:"right that it takes to get /metrics: read or admin"`

	AccessLog bool       `toml:"access-log" help:"log every request"`
	LogLevel  slog.Level `toml:"log-level" values:"debug info warn error" help:"least important messages to log: debug, info, warn or error"`
	LogFormat string     `toml:"log-format" values:"text json" help:"format of the log: text or json"`
}

// defaultSettings returns the defaults. Without a home directory, those that are in it
// are empty.
func defaultSettings() *Settings {
	s := &Settings{
		Listen: List{"127.0.0.1:8080"}, ClientRights: access.Read, PublicRead: true, LoopbackWrite: true, Priority: 30, MassQuery: true,
		NarInfoMaxAge: Duration(60e9),
		PackSize:      32 << 20, FlushInterval: Duration(30e9), Ack: "spool", AckTimeout: Duration(4 * 60e9), MaxFragments: 16, ParallelPuts: 4, Memory: 512 << 20, XZ: "auto", ScrubRate: 10 << 20, SnapshotInterval: Duration(24 * 3600e9), MaxFile: 64 << 20,
		FollowInterval: Duration(10e9), LeaseTTL: Duration(3 * 60e9),
		MaxNAR: 64 << 30, MaxUploads: 32, SpoolSize: 8 << 30, CacheSize: 4 << 30, MinFree: 512 << 20, MaxConnections: 4096,
		IdleTimeout: Duration(60e9), ShutdownTimeout: Duration(30e9), MaxPulls: 32, PullCache: 2 << 30, OldNamesCache: 2 << 30,
		Provider: prices.Default, MetricsRight: access.Read, AccessLog: true, LogFormat: "text",
	}
	if dir := dataDir(); dir != "" {
		s.Bucket = (&url.URL{Scheme: "file", Path: filepath.Join(dir, "bucket")}).String()
		s.State = filepath.Join(dir, "state")
		s.KeyFiles = List{filepath.Join(dir, "key")}
	}
	return s
}

// dataDir is the directory of the defaults, by the rules of the XDG base directories,
// or "".
func dataDir() string {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "dedupd")
	}
	if dir, err := os.UserHomeDir(); err == nil && filepath.IsAbs(dir) {
		return filepath.Join(dir, ".local", "share", "dedupd")
	}
	return ""
}

// validate reports everything that cannot be right.
func (s *Settings) validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(s.Bucket != "", "bucket is not set, and there is no home directory for the default")
	need(s.State != "", "state is not set, and there is no home directory for the default")
	need(s.FollowInterval >= Duration(1e8), "follow-interval is below 100ms")
	need(s.LeaseTTL >= Duration(1e9) && s.LeaseTTL <= Duration(3600e9), "lease-ttl is not 1s to 1h")
	need(s.WriterURL == "" || isURL(s.WriterURL), "writer-url is %q, not http://… or https://…", s.WriterURL)
	need(len(s.Listen) > 0, "listen is empty")
	for _, addr := range s.Listen {
		_, _, err := socketAddr(addr)
		need(err == nil, "listen: %w", err)
	}
	need((s.TLSCert == "") == (s.TLSKey == ""), "needs tls-cert and tls-key, or neither")
	need(s.ClientCA == "" || s.TLSCert != "", "client-ca is of no use without tls-cert")
	need(s.ClientRights != 0, "client-rights is none; leave client-ca out instead")
	for _, key := range slices.Concat(s.VerifyKeys, s.TrustedKeys) {
		_, err := narinfo.ParsePublicKey(key)
		need(err == nil, "verify-keys or trusted-keys: %q: %w", key, err)
	}
	need(s.Splitter == "" || s.Splitter == "rabin" || s.Splitter == "fastcdc", "splitter is %q, not rabin or fastcdc", s.Splitter)
	need(s.Priority > 0, "priority is %d, not above 0", s.Priority)
	need(s.NarInfoMaxAge >= Duration(1e9), "narinfo-max-age is below 1s")
	need(s.PackSize >= 1<<20 && s.PackSize <= 1<<30, "pack-size is %v, not 1MiB to 1GiB", s.PackSize)
	need(s.FlushInterval > 0, "flush-interval is not above 0")
	need(s.SnapshotInterval == 0 || s.SnapshotInterval >= Duration(60e9), "snapshot-interval is %v, neither 0 nor 1m or more", s.SnapshotInterval)
	need(s.Ack == "spool" || s.Ack == "bucket", "ack is %q, not spool or bucket", s.Ack)
	need(s.AckTimeout > 0, "ack-timeout is not above 0")
	need(s.MaxFragments >= 0, "max-fragments is %d, below 0", s.MaxFragments)
	need(s.ParallelPuts >= 1 && s.ParallelPuts <= 64, "parallel-puts is %d, not 1 to 64", s.ParallelPuts)
	need(s.Memory >= 256<<20, "memory is %v, below 256MiB", s.Memory)
	need(s.XZ == "auto" || s.XZ == "go" || s.XZ == "process", "xz is %q, not auto, go or process", s.XZ)
	need(s.MaxFile >= 1<<20, "max-file is %v, below 1MiB", s.MaxFile)
	need(s.MaxNAR >= 1<<20, "max-nar is %v, below 1MiB", s.MaxNAR)
	need(s.MaxUploads > 0, "max-uploads is %d, not above 0", s.MaxUploads)
	need(s.SpoolSize >= s.PackSize, "spool-size is %v, below pack-size", s.SpoolSize)
	need(s.CacheSize == 0 || s.CacheSize >= 64<<20, "cache-size is %v, neither 0 nor 64MiB or more", s.CacheSize)
	need(s.MinFree > 0, "min-free is not above 0")
	need(s.MaxConnections >= 64, "max-connections is %d, below 64", s.MaxConnections)
	need(s.IdleTimeout > 0, "idle-timeout is not above 0")
	need(s.ShutdownTimeout > 0, "shutdown-timeout is not above 0")
	for i, u := range s.Upstreams {
		if err := u.validate(); err != nil {
			errs = append(errs, fmt.Errorf("upstream %d (%s): %w", i+1, u.name(), err))
		}
	}
	need(s.MaxPulls > 0, "max-pulls is %d, not above 0", s.MaxPulls)
	need(s.PublicURL == "" || isURL(s.PublicURL), "public-url is %q, not http://… or https://…", s.PublicURL)
	_, err := s.priceTable()
	need(err == nil, "prices or provider: %w", err)
	need(s.MetricsRight == access.Read || s.MetricsRight == access.Admin, "metrics-right is %v, not read or admin", s.MetricsRight)
	need(s.LogFormat == "text" || s.LogFormat == "json", "log-format is %q, not text or json", s.LogFormat)
	return errors.Join(errs...)
}

// isURL says whether clients can be sent to an address.
func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// A field is one of the Settings.
type field struct {
	name, help string
	values     []string // what to offer on a command line, if it can have a few values only
	value      reflect.Value
}

func (s *Settings) fields() []field { return fieldsOf(s) }

// fieldsOf returns the settings in a pointer to a struct that are no lists of tables.
func fieldsOf(table any) []field {
	v := reflect.ValueOf(table).Elem()
	var fields []field
	for i := range v.NumField() {
		if typ := v.Field(i).Type(); typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct {
			continue
		}
		tag := v.Type().Field(i).Tag
		fields = append(fields, field{tag.Get("toml"), tag.Get("help"), strings.Fields(tag.Get("values")), v.Field(i)})
	}
	return fields
}

func (f *field) variable() string {
	return "DEDUPD_" + strings.ToUpper(strings.ReplaceAll(f.name, "-", "_"))
}

// toml is the field's value as the settings file has it.
func (f *field) toml() string {
	switch v := f.value.Interface().(type) {
	case int, bool:
		return fmt.Sprint(v)
	case List:
		return strings.ReplaceAll(fmt.Sprintf("%q", []string(v)), `" "`, `", "`)
	default:
		return strconv.Quote(fmt.Sprint(v))
	}
}

// set sets the field to what text means.
func (f *field) set(text string) (err error) {
	switch p := f.value.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(text))
	case *string:
		*p = text
	case *int:
		*p, err = strconv.Atoi(text)
	case *bool:
		*p, err = strconv.ParseBool(text)
	default:
		panic("settings: no way to set a " + f.value.Type().String())
	}
	return err
}

// A flagValue is a flag whose text is looked at when everything else is known.
type flagValue struct {
	text string
	typ  string
}

func (v *flagValue) String() string { return v.text }

func (v *flagValue) Set(s string) error {
	v.text = s
	return nil
}

func (v *flagValue) Type() string { return v.typ }

// addFlags gives cmd flags for the settings with these names, all of them for none, and
// returns a function that says what is set.
func addFlags(cmd *cobra.Command, names ...string) func() (*Settings, error) {
	defaults := defaultSettings()
	flags := cmd.Flags()
	config := flags.String("config", "", "file with settings, in TOML (DEDUPD_CONFIG)")
	for _, f := range defaults.fields() {
		if len(names) > 0 && !slices.Contains(names, f.name) {
			continue
		}
		typ := strings.ToLower(f.value.Type().Name())
		flag := flags.VarPF(&flagValue{fmt.Sprint(f.value.Interface()), typ}, f.name, "", f.help+" ("+f.variable()+")")
		if typ == "bool" {
			flag.NoOptDefVal = "true"
		}
		if f.values != nil {
			cmd.RegisterFlagCompletionFunc(f.name, cobra.FixedCompletions(f.values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	return func() (*Settings, error) {
		s := defaultSettings()
		if err := s.readFile(cmp.Or(*config, os.Getenv("DEDUPD_CONFIG"))); err != nil {
			return nil, err
		}
		for _, f := range s.fields() {
			if text, ok := os.LookupEnv(f.variable()); ok {
				if err := f.set(text); err != nil {
					return nil, fmt.Errorf("variable %s: %w", f.variable(), err)
				}
			}
			if flag := flags.Lookup(f.name); flag != nil && flag.Changed {
				if err := f.set(flag.Value.String()); err != nil {
					return nil, fmt.Errorf("flag --%s: %w", f.name, err)
				}
			}
		}
		if err := s.validate(); err != nil {
			return nil, fmt.Errorf("settings: %w", err)
		}
		return s, nil
	}
}

// readFile sets what the TOML file at path sets; "" is no file. Keys that mean nothing
// are errors.
func (s *Settings) readFile(path string) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	md, err := toml.Decode(string(text), s)
	if err != nil {
		return fmt.Errorf("settings in %s: %w", path, err)
	}
	var errs []error
	for _, key := range md.Undecoded() {
		errs = append(errs, fmt.Errorf("settings in %s: line %d: there is no setting %q", path, lineOf(string(text), key), key))
	}
	return errors.Join(errs...)
}

// lineOf returns the number of the line that a key, or the table that it is in, is on.
// The library does not say; where the text is out of the ordinary this is a guess.
func lineOf(text string, key toml.Key) int {
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimLeft(line, " \t[\"'")
		if rest, ok := strings.CutPrefix(line, key[0]); ok && strings.TrimLeft(rest, "\"' \t") != rest || ok && strings.IndexAny(rest, "=.]") == 0 {
			return n + 1
		}
	}
	return 0
}
