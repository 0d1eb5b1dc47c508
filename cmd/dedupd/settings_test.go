package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/dedupd/dedupd/access"
)

// load returns what the settings are with a file, variables as "NAME=value", and flags.
func load(t *testing.T, file string, variables []string, flags ...string) (*Settings, error) {
	t.Helper()
	t.Setenv("XDG_DATA_HOME", "/data")
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	if file != "" {
		path := filepath.Join(t.TempDir(), "dedupd.toml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		flags = append(flags, "--config", path)
	}
	cmd := &cobra.Command{}
	get := addFlags(cmd)
	if err := cmd.ParseFlags(flags); err != nil {
		return nil, err
	}
	return get()
}

func TestDefaultsAreValid(t *testing.T) {
	s, err := load(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := defaultSettings(); !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, want %+v", s, want)
	}
	if s.Bucket != "file:///data/dedupd/bucket" || s.State != "/data/dedupd/state" {
		t.Errorf("got defaults %+v", s)
	}
}

// TestPrecedence sets every setting in every way.
func TestPrecedence(t *testing.T) {
	file := `
bucket = "file:///toml"
state = "/toml"
follow = true
follow-interval = "3s"
lease-ttl = "6s"
writer-url = "https://writer.example"
listen = ["127.0.0.1:1", "[::1]:1"]
tls-cert = "/cert"
tls-key = "/key"
client-ca = "/ca"
client-rights = "read,write"
tokens = "/tokens"
public-read = false
loopback-write = false
key-files = "none"
verify-keys = ["old-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
trusted-keys = ["example-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
store-dir = "/toml/store"
splitter = "fastcdc"
priority = 1
mass-query = false
narinfo-max-age = "5m"
pack-size = 1048576
flush-interval = "1s"
ack = "bucket"
ack-timeout = "1s"
max-fragments = 0
parallel-puts = 2
memory = "1GiB"
xz = "go"
scrub-rate = 0
snapshot-interval = "1h"
max-file = "1MiB"
max-nar = "2MiB"
max-uploads = 3
spool-size = "4MiB"
min-free = "5MiB"
max-connections = 100
idle-timeout = "1s"
shutdown-timeout = "1s"
max-pulls = 4
pull-cache = "6MiB"
old-names-cache = "7MiB"
cache-size = "100MiB"
public-url = "https://cache.example"
prices = "../../contrib/prices.toml"
provider = "wasabi"
metrics-right = "admin"
access-log = false
log-level = "warn"
log-format = "json"

[[upstream]]
url = "https://cache.example"
public-keys = ["example-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
priority = 5
keep = false
timeout = "1s"
idle-timeout = "2s"
negative-cache = "3s"
when-unreachable = "absent"
user = "me"
password-file = "/password"

[[upstream]]
store = "/nix/store"
root = "/chroot"
state = "/state"
sign = true
`
	no := false
	want := &Settings{
		Bucket: "file:///toml", State: "/toml", Follow: true, FollowInterval: Duration(3 * time.Second), LeaseTTL: Duration(6 * time.Second), WriterURL: "https://writer.example",
		Listen: List{"127.0.0.1:1", "[::1]:1"}, StoreDir: "/toml/store", Splitter: "fastcdc",
		TLSCert: "/cert", TLSKey: "/key", ClientCA: "/ca", ClientRights: access.Read | access.Write, Tokens: "/tokens",
		VerifyKeys:  List{"old-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
		TrustedKeys: List{"example-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
		Priority:    1, NarInfoMaxAge: Duration(5 * time.Minute), PackSize: 1 << 20, FlushInterval: Duration(time.Second), Ack: "bucket", AckTimeout: Duration(time.Second), ParallelPuts: 2, Memory: 1 << 30, XZ: "go", SnapshotInterval: Duration(time.Hour), MaxFile: 1 << 20,
		MaxNAR: 2 << 20, MaxUploads: 3, SpoolSize: 4 << 20, MinFree: 5 << 20, MaxConnections: 100,
		IdleTimeout: Duration(time.Second), ShutdownTimeout: Duration(time.Second), LogLevel: slog.LevelWarn, LogFormat: "json",
		MaxPulls: 4, PullCache: 6 << 20, OldNamesCache: 7 << 20, CacheSize: 100 << 20, PublicURL: "https://cache.example", MetricsRight: access.Admin,
		Prices: "../../contrib/prices.toml", Provider: "wasabi",
		Upstreams: []Upstream{{
			URL: "https://cache.example", PublicKeys: List{"example-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}, Priority: 5, Keep: &no,
			Timeout: Duration(time.Second), IdleTimeout: Duration(2 * time.Second), NegativeCache: Duration(3 * time.Second),
			WhenUnreachable: "absent", User: "me", PasswordFile: "/password",
		}, {Store: "/nix/store", Root: "/chroot", State: "/state", Sign: true}},
	}
	for _, f := range want.fields() {
		if !strings.Contains(file, "\n"+f.name+" = ") {
			t.Errorf("the test does not set %s", f.name)
		}
	}
	s, err := load(t, file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("file: got %+v, want %+v", s, want)
	}
	s, err = load(t, file, []string{"DEDUPD_PRIORITY=2", "DEDUPD_MEMORY=2 GiB", "DEDUPD_KEY_FILES=a, b"}, "--priority", "3", "--access-log")
	if err != nil {
		t.Fatal(err)
	}
	want.Priority, want.Memory, want.KeyFiles, want.AccessLog = 3, 2<<30, List{"a", "b"}, true
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, want %+v", s, want)
	}
}

func TestBadSettings(t *testing.T) {
	for _, tt := range []struct {
		file, variable, flag string
		says                 string
	}{
		{file: "\nbuckt = \"x\"\n", says: `line 2: there is no setting "buckt"`},
		{file: "state = \"/x\"\n[bucket]\nurl = \"x\"\n", says: "bucket"},
		{file: "\n\n[gateway]\nport = 1\n", says: `line 3: there is no setting "gateway.port"`},
		{file: "State = \"/x\"\nBUCKETS = 1", says: `line 2: there is no setting "BUCKETS"`},
		{file: "priority = \"x\"\n", says: "priority"},
		{file: "priority = 1\npriority = 2\n", says: "line 2"},
		{file: "listen = [1]\n", says: "list of strings"},
		{file: "flush-interval = 30\n", says: "duration"},
		{file: "snapshot-interval = \"1s\"\n", says: "snapshot-interval"},
		{file: "= 1", says: "line 1"},
		{file: "[[upstream]]\nurl = \"http://x\"\ntrust = true\ntrusted = true\n", says: `there is no setting "upstream.trusted"`},
		{file: "[[upstream]]\nurl = \"http://x\"\n", says: "upstream 1 (http://x): needs public-keys"},
		{file: "[[upstream]]\nurl = \"http://x\"\npublic-keys = \"x:AA\"\n", says: `public-keys: "x:AA": public key`},
		{file: "[[upstream]]\nurl = \"http://me:secret@x\"\ntrust = true\n", says: "url has a user name"},
		{file: "[[upstream]]\nurl = \"ftp://x\"\ntrust = true\n", says: "is not http"},
		{file: "[[upstream]]\ntrust = true\n", says: "either a url or a store"},
		{file: "[[upstream]]\nstore = \"nix\"\n", says: "not an absolute path"},
		{file: "[[upstream]]\nstore = \"/nix/store\"\ntimeout = \"1s\"\n", says: "for caches"},
		{file: "[[upstream]]\nurl = \"http://x\"\ntrust = true\nsign = true\n", says: "for stores"},
		{file: "[[upstream]]\nurl = \"http://x\"\ntrust = true\nuser = \"me\"\n", says: "user and password-file"},
		{file: "[[upstream]]\nurl = \"http://x\"\ntrust = true\nwhen-unreachable = \"x\"\n", says: "when-unreachable"},
		{flag: "--max-pulls=0", says: "max-pulls"},
		{variable: "DEDUPD_PRIORITY=high", says: "DEDUPD_PRIORITY"},
		{variable: "DEDUPD_CONFIG=/does/not/exist", says: "/does/not/exist"},
		{flag: "--priority=0", says: "priority"},
		{flag: "--memory=1MiB", says: "memory"},
		{flag: "--memory=99999999999GiB", says: "not a size"},
		{flag: "--memory=-1", says: "not a size"},
		{flag: "--splitter=x", says: "splitter"},
		{flag: "--log-level=loud", says: "--log-level"},
		{flag: "--log-format=xml", says: "log-format"},
		{flag: "--listen=none", says: "listen"},
		{flag: "--listen=unix:relative", says: "unix:/path"},
		{flag: "--listen=unix:/x?mode=999", says: "octal"},
		{flag: "--listen=unix:/x?owner=me", says: "only mode"},
		{flag: "--tls-cert=/x", says: "tls-key"},
		{flag: "--client-ca=/x", says: "client-ca"},
		{flag: "--client-rights=fly", says: "client-rights"},
		{flag: "--trusted-keys=x", says: "trusted-keys"},
		{flag: "--buckets=x", says: "buckets"},
		{flag: "--prices=/does/not/exist", says: "prices or provider"},
		{flag: "--provider=nobody", says: "cloudflare-r2"},
		{flag: "--bucket=", says: "bucket is not set"},
	} {
		t.Run(tt.says, func(t *testing.T) {
			var variables, flags []string
			if tt.variable != "" {
				variables = []string{tt.variable}
			}
			if tt.flag != "" {
				flags = []string{tt.flag}
			}
			s, err := load(t, tt.file, variables, flags...)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %+v, error %v, want one about %q", s, err, tt.says)
			}
		})
	}
}

// TestEverySettingHasHelp holds the struct to being the reference.
func TestEverySettingHasHelp(t *testing.T) {
	cmd := &cobra.Command{}
	addFlags(cmd)
	for _, f := range defaultSettings().fields() {
		flag := cmd.Flags().Lookup(f.name)
		if f.name == "" || f.help == "" || flag == nil || !strings.Contains(flag.Usage, f.help) || !strings.Contains(flag.Usage, f.variable()) {
			t.Errorf("setting %q has help %q and flag %+v", f.name, f.help, flag)
		}
	}
}

func TestBytesText(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "17": 17, "17B": 17, "3KiB": 3072, "2 MiB": 2 << 20, "1GB": 1e9, "32MiB": 32 << 20} {
		var b, again Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q: got %d (%v), want %d", text, b, err, want)
		}
		if err := again.UnmarshalText([]byte(b.String())); err != nil || again != b {
			t.Errorf("%v is written %q, which is read as %v (%v)", want, b.String(), again, err)
		}
	}
}
