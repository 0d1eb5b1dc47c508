package narinfo

import (
	"errors"
	"reflect"
	"slices"
	"testing"
)

// full returns a narinfo with all fields, lists not in order.
func full() *NarInfo {
	n := minimal()
	n.Compression = "zstd"
	n.FileHash = NewHash(SHA256, sum256("abc"))
	n.FileSize = 3
	n.References = []StorePath{{testRefB}, n.StorePath, {testRefA}, {testRefB}}
	n.Deriver = StorePath{testRefA + ".drv"}
	n.Sigs = []Signature{{Name: "k-2"}, {Name: "k-1"}, {Name: "k-2"}}
	n.CA = "fixed:r:sha256:" + emptyNix32
	return n
}

func TestAppend(t *testing.T) {
	const self = testHashPart + "-x"
	for _, test := range []struct {
		name string
		info *NarInfo
		want string
	}{
		{"minimal", minimal(), "StorePath: /nix/store/" + self + "\nURL: nar/x.nar.xz\nCompression: bzip2\nNarHash: sha256:" + emptyNix32 +
			"\nNarSize: 5\nReferences: \n"},
		{"full", full(), "StorePath: /nix/store/" + self + "\nURL: nar/x.nar.xz\nCompression: zstd\n" +
			"FileHash: sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\nFileSize: 3\nNarHash: sha256:" + emptyNix32 +
			"\nNarSize: 5\nReferences: " + testRefA + " " + self + " " + testRefB + "\nDeriver: " + testRefA + ".drv\n" +
			"Sig: k-1:" + testSig + "\nSig: k-2:" + testSig + "\nCA: fixed:r:sha256:" + emptyNix32 + "\n"},
	} {
		before := *test.info
		before.References = slices.Clone(before.References)
		before.Sigs = slices.Clone(before.Sigs)
		if got := string(test.info.Append([]byte("before"), "/nix/store")); got != "before"+test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, got, test.want)
		}
		if !reflect.DeepEqual(*test.info, before) {
			t.Errorf("%s: writing changed it", test.name)
		}
		if _, err := Parse([]byte(test.want), "/nix/store"); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestFingerprint(t *testing.T) {
	for _, test := range []struct {
		info *NarInfo
		want string
	}{
		{minimal(), "1;/s/" + testHashPart + "-x;sha256:" + emptyNix32 + ";5;"},
		{full(), "1;/s/" + testHashPart + "-x;sha256:" + emptyNix32 + ";5;/s/" + testRefA + ",/s/" + testHashPart + "-x,/s/" + testRefB},
	} {
		if got := test.info.Fingerprint("/s"); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

func TestSignVerify(t *testing.T) {
	k1, k2 := testKey(t, "k-1", 1), testKey(t, "k-2", 2)
	k1b := testKey(t, "k-1", 3) // another key of the same name
	keys := []PublicKey{k1b.Public(), k2.Public(), k1.Public()}

	n := minimal()
	if key, ok := n.Verify("/nix/store", keys); ok {
		t.Errorf("unsigned, but verified by %v", key)
	}
	n.Sigs = []Signature{{Name: "k-1"}, {Name: "k-2"}} // both wrong
	if key, ok := n.Verify("/nix/store", keys); ok {
		t.Errorf("signed wrongly, but verified by %v", key)
	}
	n.Sign("/nix/store", k1)
	n.Sign("/nix/store", k1)
	if len(n.Sigs) != 3 {
		t.Errorf("signed twice: %d signatures, want 3", len(n.Sigs))
	}
	if key, ok := n.Verify("/nix/store", keys); !ok || key != k1.Public() {
		t.Errorf("verified by %v, %v, want %v", key, ok, k1.Public())
	}
	if _, ok := n.Verify("/nix/store", keys[:2]); ok {
		t.Error("verified without the key")
	}
	if _, ok := n.Verify("/gnu/store", keys); ok {
		t.Error("verified for another store directory")
	}
	// A signature is worth nothing under another key's name.
	for i := range n.Sigs {
		n.Sigs[i].Name = "k-2"
	}
	if _, ok := n.Verify("/nix/store", keys); ok {
		t.Error("verified under another name")
	}

	for name, edit := range map[string]func(*NarInfo){
		"StorePath":  func(n *NarInfo) { n.StorePath = StorePath{testRefA} },
		"NarHash":    func(n *NarInfo) { n.NarHash[31]++ },
		"NarSize":    func(n *NarInfo) { n.NarSize++ },
		"References": func(n *NarInfo) { n.References = append(n.References, n.StorePath) },
	} {
		n := minimal()
		n.Sign("/nix/store", k1)
		edit(n)
		if _, ok := n.Verify("/nix/store", keys); ok {
			t.Errorf("verified with another %s", name)
		}
	}
	n = full()
	n.Sign("/nix/store", k1)
	n.URL, n.Compression, n.FileHash, n.FileSize, n.Deriver, n.CA = "x", "none", Hash{}, 0, StorePath{}, ""
	slices.Reverse(n.References)
	if _, ok := n.Verify("/nix/store", keys); !ok {
		t.Error("fields that are not signed matter")
	}
}

func TestMergeSigs(t *testing.T) {
	sigs := func(names ...string) *NarInfo {
		n := minimal()
		for _, name := range names {
			n.Sigs = append(n.Sigs, Signature{Name: name})
		}
		return n
	}
	ab, ba := sigs("c", "a"), sigs("b", "a")
	ab.URL = "one"
	if err := ab.MergeSigs("/nix/store", ba); err != nil {
		t.Fatal(err)
	}
	if err := ba.MergeSigs("/nix/store", sigs("a", "c")); err != nil {
		t.Fatal(err)
	}
	want := sigs("a", "b", "c").Sigs
	if !slices.Equal(ab.Sigs, want) || !slices.Equal(ba.Sigs, want) {
		t.Errorf("got %v and %v, want %v", ab.Sigs, ba.Sigs, want)
	}
	if ab.URL != "one" {
		t.Errorf("URL changed to %q", ab.URL)
	}
	other := sigs("x")
	other.NarSize++
	if err := ab.MergeSigs("/nix/store", other); !errors.Is(err, ErrFingerprint) || !slices.Equal(ab.Sigs, want) {
		t.Errorf("got %v, %v, want ErrFingerprint", err, ab.Sigs)
	}
}

func BenchmarkParse(b *testing.B) {
	text := full().Append(nil, "/nix/store")
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(text, "/nix/store"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	info := full()
	var text []byte
	b.ReportAllocs()
	for b.Loop() {
		text = info.Append(text[:0], "/nix/store")
	}
}
