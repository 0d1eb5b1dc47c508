package narinfo

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// missing skips the test for want of a part, except in CI, where all are there.
func missing(t *testing.T, part string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", part)
	}
	t.Skipf("%s is missing", part)
}

func TestRealNarInfos(t *testing.T) {
	files, _ := filepath.Glob("../../shared/corpus/real/*/*.narinfo")
	if len(files) == 0 {
		missing(t, "../../shared/corpus/real")
	}
	key, err := ParsePublicKey("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")
	if err != nil {
		t.Fatal(err)
	}
	verified := 0
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := Parse(data, "/nix/store")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if info.DroppedSigs > 0 {
			t.Errorf("%s: %d signatures dropped", name, info.DroppedSigs)
		}
		if want := info.StorePath.HashPart() + ".narinfo"; filepath.Base(name) != want {
			t.Errorf("%s is about %s", name, want)
		}
		// These were written by Nix, whose order is ours.
		if got := info.Text("/nix/store"); got != string(data) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, data)
		}
		signed := slices.ContainsFunc(info.Sigs, func(s Signature) bool { return s.Name == key.Name })
		if _, ok := info.Verify("/nix/store", []PublicKey{key}); ok != signed {
			t.Errorf("%s: signed by %s: %v, verified: %v", name, key.Name, signed, ok)
		} else if ok {
			verified++
		}
	}
	if len(files) != 63 || verified != 47 {
		t.Errorf("%d narinfos, %d verified, want 63 and 47", len(files), verified)
	}
}

// TestTwentyThousand round-trips the metadata of 20,905 real narinfos. 49 of them, all
// from one cache, have References of full paths. Nix
// refuses those as well.
func TestTwentyThousand(t *testing.T) {
	f, err := os.Open("../../shared/corpus/narinfo-20k.jsonl.zst")
	if err != nil {
		missing(t, "../../shared/corpus/narinfo-20k.jsonl.zst")
	}
	defer f.Close()
	decoder, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()

	good, malformed := 0, 0
	for lines := json.NewDecoder(decoder); lines.More(); {
		var r record
		if err := lines.Decode(&r); err != nil {
			t.Fatal(err)
		}
		text := r.text()
		info, err := Parse([]byte(text), "/nix/store")
		if slices.ContainsFunc(r.Refs, func(ref string) bool { return strings.HasPrefix(ref, "/nix/store/") }) {
			if err == nil {
				t.Errorf("accepted\n%s", text)
			}
			malformed++
			continue
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, text)
			continue
		}
		good++
		if got := info.Text("/nix/store"); got != text {
			t.Errorf("got\n%s\nwant\n%s", got, text)
		}
		again, err := Parse([]byte(info.Text("/nix/store")), "/nix/store")
		if err != nil || !reflect.DeepEqual(again, info) {
			t.Errorf("got %+v, %v, want %+v", again, err, info)
		}
	}
	if good != 20_856 || malformed != 49 {
		t.Errorf("%d are good and %d malformed", good, malformed)
	}
}

// record is one line of the corpus.
type record struct {
	Path, URL, Comp, Deriver, NarHash, Sig string
	FSize, NSize                           json.Number
	Refs                                   []string
}

// text writes r as Nix would, independently of this package. The corpus has the
// signing keys' names, but not the signatures.
func (r *record) text() string {
	var b strings.Builder
	b.WriteString("StorePath: /nix/store/" + r.Path + "\nURL: " + r.URL + "\nCompression: " + r.Comp + "\n")
	if r.FSize != "0" {
		b.WriteString("FileSize: " + r.FSize.String() + "\n")
	}
	slices.Sort(r.Refs)
	b.WriteString("NarHash: " + r.NarHash + "\nNarSize: " + r.NSize.String() + "\nReferences: " + strings.Join(r.Refs, " ") + "\n")
	if r.Deriver != "" {
		b.WriteString("Deriver: " + r.Deriver + "\n")
	}
	if r.Sig != "" {
		b.WriteString("Sig: " + r.Sig + ":" + testSig + "\n")
	}
	return b.String()
}

// nix runs a command of Nix without the machine's configuration.
func nix(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("nix")
	if err != nil {
		missing(t, "nix")
	}
	cmd := exec.Command(path, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+home, "NIX_CONF_DIR="+home, "NIX_CONFIG=experimental-features = nix-command",
		"NIX_STATE_DIR="+home)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	return string(out)
}

// TestNixKeys has Nix make a key for us, and use one of ours.
func TestNixKeys(t *testing.T) {
	theirs, err := ParsePrivateKey(nix(t, "", "key", "generate-secret", "--key-name", "theirs-1"))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := GenerateKey("ours-1")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []PrivateKey{theirs, ours} {
		got := nix(t, key.Secret(), "key", "convert-secret-to-public")
		if want := key.Public().String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestNixVerify has Nix read a narinfo and verify our signature of it.
func TestNixVerify(t *testing.T) {
	key := testKey(t, "ours-1", 1)
	info := full()
	info.CA = ""
	info.Sign("/nix/store", key)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"nix-cache-info":                       "StoreDir: /nix/store\n",
		info.StorePath.HashPart() + ".narinfo": info.Text("/nix/store"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := info.StorePath.Path("/nix/store")
	nix(t, "", "store", "verify", "--store", "file://"+dir, "--no-contents", "--sigs-needed", "1",
		"--option", "trusted-public-keys", key.Public().String(), path)

	var got []struct {
		NarHash, Deriver string
		NarSize          uint64
		References       []string
		Signatures       []string
	}
	if err := json.Unmarshal([]byte(nix(t, "", "path-info", "--json", "--store", "file://"+dir, path)), &got); err != nil {
		t.Fatal(err)
	}
	var refs, sigs []string
	for _, ref := range sortedSet(info.References, StorePath.Compare) {
		refs = append(refs, ref.Path("/nix/store"))
	}
	for _, sig := range info.Sigs {
		sigs = append(sigs, sig.String())
	}
	if g := got[0]; g.NarHash != NewHash(SHA256, info.NarHash[:]).SRI() || g.NarSize != info.NarSize || g.Deriver != info.Deriver.Path("/nix/store") ||
		!slices.Equal(g.References, refs) || !slices.Equal(g.Signatures, sigs) {
		t.Errorf("Nix read %+v", g)
	}
}
