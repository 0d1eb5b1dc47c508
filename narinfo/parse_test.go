package narinfo

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

const (
	testRefA = "0" + "6xbg1ndr7hbcncrlf9nhx5is2b25d13" + "-a"
	testRefB = "z" + "6xbg1ndr7hbcncrlf9nhx5is2b25d13" + "-b"

	emptyNix32 = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"

	// needed has the fields without which there is no narinfo.
	needed = "StorePath: /nix/store/" + testHashPart + "-x\n" +
		"URL: nar/x.nar.xz\n" +
		"NarHash: sha256:" + emptyNix32 + "\n" +
		"NarSize: 5\n"
)

// testSig is a well-formed signature of nothing.
var testSig = strings.Repeat("A", 86) + "=="

// minimal returns what needed parses to.
func minimal() *NarInfo {
	return &NarInfo{
		StorePath:   StorePath{testHashPart + "-x"},
		URL:         "nar/x.nar.xz",
		Compression: "bzip2",
		NarHash:     [32]byte(sum256("")),
		NarSize:     5,
	}
}

func TestParse(t *testing.T) {
	sig := func(names ...string) (sigs []Signature) {
		for _, name := range names {
			sigs = append(sigs, Signature{Name: name})
		}
		return sigs
	}
	empty := NewHash(SHA256, sum256(""))
	for _, test := range []struct {
		name string
		text string
		edit func(n *NarInfo) // what differs from minimal
	}{
		{"needed fields only", needed, func(n *NarInfo) {}},
		{"all fields", "StorePath: /nix/store/" + testHashPart + "-x\nURL: u\nCompression: zstd\nFileHash: sha256:" + emptyNix32 +
			"\nFileSize: 3\nNarHash: sha256:" + emptyNix32 + "\nNarSize: 5\nReferences: " + testRefA + " " + testRefB +
			"\nDeriver: " + testRefA + ".drv\nSystem: x86_64-linux\nSig: k:" + testSig + "\nCA: fixed:r:sha256:" + emptyNix32 + "\n",
			func(n *NarInfo) {
				n.URL, n.Compression, n.FileHash, n.FileSize = "u", "zstd", empty, 3
				n.References = []StorePath{{testRefA}, {testRefB}}
				n.Deriver = StorePath{testRefA + ".drv"}
				n.Sigs = sig("k")
				n.CA = "fixed:r:sha256:" + emptyNix32
			}},
		{"any order", "NarSize: 5\nURL: nar/x.nar.xz\nNarHash: sha256:" + emptyNix32 + "\nStorePath: /nix/store/" + testHashPart + "-x\n", func(n *NarInfo) {}},
		{"unknown field", needed + "Foo: bar\n", func(n *NarInfo) {}},
		{"unknown field, odd value", needed + "Foo: a: b: c:\n", func(n *NarInfo) {}},
		{"field names have a case", needed + "narsize: x\nurl: y\n", func(n *NarInfo) {}},
		{"spaces belong to the name", needed + " URL: y\n", func(n *NarInfo) {}},
		{"colon in value", needed + "URL: https://a:80/: x\n", func(n *NarInfo) { n.URL = "https://a:80/: x" }},

		{"any character behind the colon", needed + "URL:_y\n", func(n *NarInfo) { n.URL = "y" }},
		{"only one character is skipped", needed + "URL:  y\n", func(n *NarInfo) { n.URL = " y" }},
		{"value on the next line", needed + "References:\n" + testRefA + "\n", func(n *NarInfo) { n.References = []StorePath{{testRefA}} }},
		{"unknown field without value swallows", needed + "Foo:\nURL: y\n", func(n *NarInfo) {}},
		{"blank line glues", needed + "\nURL: y\n", func(n *NarInfo) {}},
		{"blank line glues the first", "\nURL: y\n" + needed, func(n *NarInfo) {}},
		{"carriage return stays", needed + "URL: y\r\n", func(n *NarInfo) { n.URL = "y\r" }},

		{"last one counts", needed + "StorePath: /nix/store/" + testRefA + "\nURL: 2\nCompression: xz\nCompression: zstd\nFileSize: 1\nFileSize: 2\n" +
			"FileHash: md5:00000000000000000000000000000000\nFileHash: sha256:" + emptyNix32 + "\nNarSize: 6\nDeriver: " + testRefA + "\nDeriver: " + testRefB + "\n",
			func(n *NarInfo) {
				n.StorePath, n.URL, n.Compression, n.FileSize, n.FileHash, n.NarSize = StorePath{testRefA}, "2", "zstd", 2, empty, 6
				n.Deriver = StorePath{testRefB}
			}},
		{"zero, then a size", "NarSize: 0\n" + needed, func(n *NarInfo) {}},
		{"no Compression again", needed + "Compression: xz\nCompression: \n", func(n *NarInfo) {}},
		{"unknown Compression", needed + "Compression: zip\n", func(n *NarInfo) { n.Compression = "zip" }},

		{"no References", needed + "References: \n", func(n *NarInfo) {}},
		{"empty References, then some", needed + "References:  \nReferences: " + testRefA + "\n", func(n *NarInfo) { n.References = []StorePath{{testRefA}} }},
		{"References are a set", needed + "References:  " + testRefB + "  " + testRefA + " " + testRefB + " \n",
			func(n *NarInfo) { n.References = []StorePath{{testRefA}, {testRefB}} }},
		{"unknown-deriver", needed + "Deriver: unknown-deriver\n", func(n *NarInfo) {}},
		{"unknown-deriver undoes nothing", needed + "Deriver: " + testRefA + "\nDeriver: unknown-deriver\n", func(n *NarInfo) { n.Deriver = StorePath{testRefA} }},

		{"Sigs are a set", needed + "Sig: b:" + testSig + "\nSig: a b:" + testSig + "\nSig: b-1:" + testSig + "\nSig: b:" + testSig + "\n",
			func(n *NarInfo) { n.Sigs = sig("a b", "b", "b-1") }},
		{"bad Sigs", needed + "Sig: \nSig: abc\nSig: k:\nSig: :" + testSig + "\nSig: k:A*AA\nSig: k:AAAA\nSig: k:" + testSig[4:] + "\nSig: k:" + testSig[:86] + "AAAA\nSig: good:" + testSig + "\n",
			func(n *NarInfo) { n.Sigs, n.DroppedSigs = sig("good"), 8 }},
		{"careless Sigs", needed + "Sig: k:" + testSig[:86] + "\nSig: k:" + testSig + " x\nSig: k:" + testSig + "\r\n", func(n *NarInfo) { n.Sigs = sig("k") }},

		{"empty CA", needed + "CA: \n", func(n *NarInfo) {}},
		{"empty CA, then one", needed + "CA: \nCA: text:sha256:" + emptyNix32 + "\n", func(n *NarInfo) { n.CA = "text:sha256:" + emptyNix32 }},

		{"NarHash in hex", needed + "NarHash: sha256:E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n", func(n *NarInfo) {}},
		{"NarHash in base64", needed + "NarHash: sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n", func(n *NarInfo) {}},
		{"NarHash as SRI", needed + "NarHash: sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n", func(n *NarInfo) {}},
		{"NarSize with zeros", needed + "NarSize: 005\n", func(n *NarInfo) {}},
		{"NarSize with plus", needed + "NarSize: +5\n", func(n *NarInfo) {}},
		{"largest NarSize", needed + "NarSize: 18446744073709551615\n", func(n *NarInfo) { n.NarSize = 1<<64 - 1 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := minimal()
			test.edit(want)
			got, err := Parse([]byte(test.text), "/nix/store")
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestParseRefused(t *testing.T) {
	without := func(field string) string {
		var kept []string
		for line := range strings.Lines(needed) {
			if !strings.HasPrefix(line, field) {
				kept = append(kept, line)
			}
		}
		return strings.Join(kept, "")
	}
	const ca = "CA: text:sha256:" + emptyNix32 + "\n"
	for _, test := range []struct{ name, text, message string }{
		{"nothing", "", "no StorePath"},
		{"a web page", "<html></html>\n", "line 1"},
		{"no StorePath", without("StorePath"), "no StorePath"},
		{"no URL", without("URL"), "no URL"},
		{"empty URL", needed + "URL: \n", "no URL"},
		{"no NarHash", without("NarHash"), "no NarHash"},
		{"no NarSize", without("NarSize"), "no NarSize"},
		{"NarSize 0", needed + "NarSize: 0\n", "no NarSize"},

		{"no line feed at the end", strings.TrimSuffix(needed, "\n"), "line 4: no line feed"},
		{"trailing line without colon", needed + "x\n", "line 5: no colon"},
		{"trailing blank line", needed + "\n", "line 5: no colon"},
		{"trailing field without value", needed + "Foo:\n", "line 5: no line feed"},
		{"trailing colon", needed + "Foo:", "line 5: no line feed"},
		{"trailing space", needed + "Foo: ", "line 5: no line feed"},
		{"no space after References", needed + "References:\nSig: k:" + testSig + "\n", "References"},
		{"no space after Deriver", needed + "Deriver:\nSig: k:" + testSig + "\n", "Deriver"},
		{"blank line hides a field", "\n" + needed, "no StorePath"},
		{"CRLF", strings.ReplaceAll(needed, "\n", "\r\n"), "StorePath"},
		{"CR after NarSize", needed + "NarSize: 5\r\n", "NarSize"},

		{"StorePath elsewhere", needed + "StorePath: /gnu/store/" + testRefA + "\n", "StorePath"},
		{"StorePath without directory", needed + "StorePath: " + testRefA + "\n", "StorePath"},
		{"StorePath in a path", needed + "StorePath: /nix/store/" + testRefA + "/bin\n", "StorePath"},
		{"NarHash without algorithm", needed + "NarHash: " + emptyNix32 + "\n", "NarHash"},
		{"NarHash empty", needed + "NarHash: \n", "NarHash"},
		{"NarHash sha1", needed + "NarHash: sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709\n", "sha1 instead of sha256"},
		{"FileHash empty", needed + "FileHash: \n", "FileHash"},
		{"FileHash malformed", needed + "FileHash: sha256:zzz\n", "FileHash"},
		{"NarSize negative", needed + "NarSize: -5\n", "NarSize"},
		{"NarSize empty", needed + "NarSize: \n", "NarSize"},
		{"NarSize only a plus", needed + "NarSize: +\n", "NarSize"},
		{"NarSize two pluses", needed + "NarSize: ++5\n", "NarSize"},
		{"NarSize hex", needed + "NarSize: 0x5\n", "NarSize"},
		{"NarSize underscore", needed + "NarSize: 1_0\n", "NarSize"},
		{"NarSize space", needed + "NarSize:  5\n", "NarSize"},
		{"NarSize space behind", needed + "NarSize: 5 \n", "NarSize"},
		{"NarSize overflow", needed + "NarSize: 18446744073709551616\n", "NarSize"},
		{"FileSize malformed", needed + "FileSize: many\n", "FileSize"},

		{"References twice", needed + "References: " + testRefA + "\nReferences: " + testRefB + "\n", "References: given again"},
		{"References twice, then none", needed + "References: " + testRefA + "\nReferences: \n", "References: given again"},
		{"References full path", needed + "References: /nix/store/" + testRefA + "\n", "References"},
		{"References tab", needed + "References: " + testRefA + "\t" + testRefB + "\n", "References"},
		{"Deriver empty", needed + "Deriver: \n", "Deriver"},
		{"Deriver full path", needed + "Deriver: /nix/store/" + testRefA + "\n", "Deriver"},
		{"CA twice", needed + ca + ca, "a second CA"},
		{"CA twice, then none", needed + ca + "CA: \n", "a second CA"},
		{"CA malformed", needed + "CA: x\n", "CA"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse([]byte(test.text), "/nix/store")
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("got %+v, %v, want ErrCorrupt", got, err)
			}
			if !strings.Contains(err.Error(), test.message) {
				t.Errorf("error %q does not mention %q", err, test.message)
			}
		})
	}
}

func TestCheckCA(t *testing.T) {
	const hex = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
	for _, s := range []string{
		"", "text:sha256:" + emptyNix32, "fixed:sha256:" + emptyNix32, "fixed:r:sha256:" + emptyNix32,
		"fixed:sha1:" + hex, "fixed:r:sha1:" + hex, "fixed:git:sha1:" + hex, "fixed:md5:00000000000000000000000000000000",
		"fixed:sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
	} {
		if err := checkCA(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{
		" ", "text", "text:", "text:" + emptyNix32, "text:sha1:" + hex, "text:r:sha256:" + emptyNix32, "text:sha256:", "text:sha256:" + hex,
		"fixed", "fixed:", "fixed:r", "fixed:r:", "fixed:sha256", "fixed:sha256:", "fixed:" + emptyNix32, "fixed:x:sha256:" + emptyNix32,
		"fixed:r:git:sha1:" + hex, "fixed:sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
		"fixed:r:sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "source:sha256:" + emptyNix32, "fixed:sha256:" + emptyNix32 + " ",
	} {
		if err := checkCA(s); err == nil {
			t.Errorf("%q: no error", s)
		}
	}
}

// TestParseLinear holds that hostile texts take no more than linear time: squared,
// these would take minutes.
func TestParseLinear(t *testing.T) {
	for _, line := range []string{":", "a:\n", "\n", "a: b\n", "a", ":::\n", "Sig: k:" + testSig + "\n", "Sig: \n"} {
		Parse([]byte(strings.Repeat(line, 4<<20/len(line))), "/nix/store")
	}
	Parse([]byte(needed+"References: "+strings.Repeat(testRefA+" "+testRefB+" ", 50_000)+"\n"), "/nix/store")
}

// FuzzParse holds that what Parse accepts is stable: written and parsed again, it is
// the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(needed))
	f.Add([]byte(needed + "References: " + testRefB + " " + testRefA + "\nDeriver: " + testRefA + ".drv\nSig: k:" + testSig + "\n"))
	f.Add([]byte(needed + "Compression: xz\nFileHash: md5:00000000000000000000000000000000\nFileSize: 1\nCA: text:sha256:" + emptyNix32 + "\n"))
	f.Add([]byte(needed + "References:\nSig: k\n"))
	f.Add([]byte("\n" + needed + "\nx"))
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := Parse(data, "/nix/store")
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error %v is not ErrCorrupt", err)
			}
			return
		}
		text := first.Text("/nix/store")
		second, err := Parse([]byte(text), "/nix/store")
		if err != nil {
			t.Fatalf("%q was accepted, but not what it was written as, %q: %v", data, text, err)
		}
		first.DroppedSigs = 0
		if !reflect.DeepEqual(first, second) {
			t.Fatalf("got %+v, want %+v", second, first)
		}
		if again := second.Text("/nix/store"); again != text {
			t.Fatalf("got %q, want %q", again, text)
		}
	})
}
