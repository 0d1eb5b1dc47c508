package chunkstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

func testFiles() []*File {
	return []*File{
		{Name: "nar/x.nar.xz", Content: Hash{1}, Size: 1000, NAR: true, Compression: "xz", FileSize: 300, FileHash: Hash{2}},
		{Name: "nar/y.nar.gz", Content: Hash{3}, Size: 1<<63 - 1, NAR: true, Compression: "gzip", FileSize: 1<<63 - 1, FileHash: Hash{4}, CRC32: math.MaxUint32},
		{Name: "log/z.drv", Content: Hash{5}, Size: 5000, FileSize: 5000, FileHash: Hash{5}},
		{Name: "nix-cache-info", Content: Hash{6}, Size: 5, FileSize: 5, FileHash: Hash{6}, inline: []byte("small")},
		{Name: "empty", inline: []byte{}},
	}
}

func TestFileRecord(t *testing.T) {
	for _, want := range testFiles() {
		b := want.encode()
		got, err := decodeFile(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		if want.inline != nil {
			continue // it has no end of its own
		}
		for n := range b {
			if _, err := decodeFile(b[:n]); !errors.Is(err, packfile.ErrCorrupt) {
				t.Errorf("%s cut to %d of %d bytes: got %v", want.Name, n, len(b), err)
			}
		}
		if _, err := decodeFile(append(b, 0)); !errors.Is(err, packfile.ErrCorrupt) {
			t.Errorf("%s and a byte more: got %v", want.Name, err)
		}
	}
	for _, n := range []uint64{1, 1 << 32, math.MaxUint64} {
		if _, err := decodeFile([]byte(uvarint(n))); !errors.Is(err, packfile.ErrCorrupt) {
			t.Errorf("a name of %d bytes that are not there: got %v", n, err)
		}
	}
}

// TestFileRecordGolden pins the bytes of a name.
func TestFileRecordGolden(t *testing.T) {
	const zeros = "00000000000000000000000000000000000000000000000000000000000000"
	for i, want := range map[int]string{
		0: "0c" + hex.EncodeToString([]byte("nar/x.nar.xz")) + "01" + zeros + "e807" + "01" + "02" + "787a" + "ac02" + "02" + zeros + "00000000",
		3: "0e" + hex.EncodeToString([]byte("nix-cache-info")) + "06" + zeros + "05" + "02" + "00" + "05" + "06" + zeros + "00000000" + hex.EncodeToString([]byte("small")),
	} {
		if got := hex.EncodeToString(testFiles()[i].encode()); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// FuzzFileRecord decodes any bytes. What is a name comes back the same.
func FuzzFileRecord(f *testing.F) {
	for _, file := range testFiles() {
		f.Add(file.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := decodeFile(b)
		if err != nil {
			if !errors.Is(err, packfile.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if again, err := decodeFile(file.encode()); err != nil || !reflect.DeepEqual(again, file) || file.Size < 0 || file.FileSize < 0 {
			t.Fatalf("%+v comes back as %+v, %v", file, again, err)
		}
	})
}

// testVariant returns a narinfo of one path, with the content and the signatures.
func testVariant(t testing.TB, commit, content byte, sigs ...string) variant {
	t.Helper()
	info := testNarInfo(t, Hash{content}, 100)
	var err error
	if info.StorePath, err = narinfo.ParseBaseName(testHash + "-test"); err != nil {
		t.Fatal(err)
	}
	for _, s := range sigs {
		sig, err := narinfo.ParseSignature(s + ":" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==")
		if err != nil {
			t.Fatal(err)
		}
		info.Sigs = append(info.Sigs, sig)
	}
	return variant{newCommitID(packfile.Name{Writer: [10]byte{commit}}, int(commit)), info}
}

// clone returns a copy that merging signatures into does not change v.
func (v variant) clone() variant {
	info := *v.info
	info.Sigs = append([]narinfo.Signature{}, v.info.Sigs...)
	return variant{v.id, &info}
}

// permutations calls fn with every order of 0 to n-1.
func permutations(n int, fn func(order []int)) {
	order := make([]int, 0, n)
	var next func(used int)
	next = func(used int) {
		if len(order) == n {
			fn(order)
			return
		}
		for i := range n {
			if used&(1<<i) == 0 {
				order = append(order, i)
				next(used | 1<<i)
				order = order[:len(order)-1]
			}
		}
	}
	next(0)
}

// TestAddVariant adds narinfos in every order, some of them twice, and through the
// bytes of a row.
func TestAddVariant(t *testing.T) {
	for name, set := range map[string][]variant{
		"all the same":  {testVariant(t, 1, 1, "a"), testVariant(t, 2, 1, "a"), testVariant(t, 3, 1, "a"), testVariant(t, 4, 1, "a")},
		"signatures":    {testVariant(t, 4, 1, "d", "a"), testVariant(t, 3, 1), testVariant(t, 2, 1, "b"), testVariant(t, 1, 1, "c", "b")},
		"two contents":  {testVariant(t, 1, 2, "a"), testVariant(t, 2, 1, "b"), testVariant(t, 3, 2, "c"), testVariant(t, 4, 1, "a")},
		"four contents": {testVariant(t, 1, 4), testVariant(t, 2, 3), testVariant(t, 3, 2, "z"), testVariant(t, 4, 1)},
		"one and three": {testVariant(t, 9, 7, "k1"), testVariant(t, 2, 8, "k2"), testVariant(t, 5, 7, "k3", "k2"), testVariant(t, 7, 7, "k1")},
	} {
		var want []byte
		permutations(len(set), func(order []int) {
			var row []byte
			for _, i := range append(order[:len(order):len(order)], order[:2]...) {
				vs, err := decodeVariants(row, testStoreDir)
				if err != nil {
					t.Fatal(err)
				}
				row = encodeVariants(addVariant(vs, set[i].clone(), testStoreDir), testStoreDir)
			}
			if want == nil {
				want = row
			}
			if !bytes.Equal(row, want) {
				t.Errorf("%s: order %v gives\n%s, the first gave\n%s", name, order, row, want)
			}
		})
		checkVariants(t, name, want, set)
	}
}

// checkVariants checks that a row has the lowest commit first, one entry for each
// fingerprint, and every signature.
func checkVariants(t *testing.T, name string, row []byte, set []variant) {
	t.Helper()
	vs, err := decodeVariants(row, testStoreDir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]variant{}
	for i, v := range vs {
		if i > 0 && !vs[i-1].id.less(v.id) && vs[i-1].id != v.id {
			t.Errorf("%s: commits are not in order", name)
		}
		seen[v.info.Fingerprint(testStoreDir)] = v
	}
	if len(seen) != len(vs) {
		t.Errorf("%s: %d variants with %d fingerprints", name, len(vs), len(seen))
	}
	for _, v := range set {
		got, ok := seen[v.info.Fingerprint(testStoreDir)]
		if !ok || v.id.less(got.id) || !hasSigs(got.info, v.info.Sigs) {
			t.Errorf("%s: of %s there is %s", name, v.info.Text(testStoreDir), got.info.Text(testStoreDir))
		}
	}
}

func TestVariantsRejects(t *testing.T) {
	good := encodeVariants([]variant{testVariant(t, 1, 1, "a")}, testStoreDir)
	for n := range good {
		if vs, err := decodeVariants(good[:n], testStoreDir); err == nil && n > 0 {
			t.Errorf("cut to %d of %d bytes: got %v", n, len(good), vs)
		}
	}
	for _, b := range []string{"\x00", uvarint(math.MaxUint64), "\x1a" + string(make([]byte, 26)), "\x03abc"} {
		if vs, err := decodeVariants([]byte(b), testStoreDir); err == nil {
			t.Errorf("%q: got %v", b, vs)
		}
	}
}

// FuzzVariants decodes any bytes. What is a row of a path comes back the same.
func FuzzVariants(f *testing.F) {
	f.Add(encodeVariants([]variant{testVariant(f, 1, 1, "a"), testVariant(f, 2, 2)}, testStoreDir))
	f.Fuzz(func(t *testing.T, b []byte) {
		vs, err := decodeVariants(b, testStoreDir)
		if err != nil {
			return
		}
		row := encodeVariants(vs, testStoreDir)
		again, err := decodeVariants(row, testStoreDir)
		if err != nil || len(again) != len(vs) || !bytes.Equal(encodeVariants(again, testStoreDir), row) {
			t.Fatalf("%d variants come back as %d, %v", len(vs), len(again), err)
		}
	})
}

func TestCommitID(t *testing.T) {
	name := packfile.Name{Writer: [10]byte{1}, Seq: 2, Rand: 3}
	ids := []commitID{newCommitID(packfile.Name{}, 5), newCommitID(name, 0), newCommitID(name, 1), newCommitID(name, 256)}
	for i, id := range ids {
		for j, other := range ids {
			if id.less(other) != (i < j) {
				t.Errorf("%x < %x is %v", id, other, id.less(other))
			}
		}
	}
	if got := ids[1].pack(); got != name {
		t.Errorf("pack is %v, want %v", got, name)
	}
	id, body := splitRow(makeRow(ids[1], []byte("body")))
	if id != ids[1] || string(body) != "body" {
		t.Errorf("row comes back as %x, %q", id, body)
	}
}
