package gateway_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/narinfo"
)

// sent returns the bytes of the bodies that the log says were sent for a URL's path.
func (s *server) sent(path string) (n []int) {
	s.t.Helper()
	line := regexp.MustCompile(`method=GET path=` + regexp.QuoteMeta(path) + ` .* bytes=(\d+)`)
	for _, m := range line.FindAllStringSubmatch(s.log.String(), -1) {
		bytes, err := strconv.Atoi(m[1])
		if err != nil {
			s.t.Fatal(err)
		}
		n = append(n, bytes)
	}
	return n
}

// testNixCodings has Nix get what it can have with a Content-Encoding: a NAR that it
// remembers to have uploaded without compression, and a large narinfo. 2.8 asks for none.
func testNixCodings(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		s := start(t)
		var refs []narinfo.StorePath
		for i := range 30 {
			f := treeNAR(t, [2]string{"", fmt.Sprint("reference ", i)})
			s.upload(f)
			refs = append(refs, f.path)
		}
		f := treeNAR(t, [2]string{"/"}, [2]string{"text", strings.Repeat("to be compressed\n", 10_000)})
		name := fileName(f.nar, "")
		s.want(200, "PUT", "/"+name, f.nar)
		info := f.info(name, "none")
		info.References = append(info.References, refs...)
		s.want(200, "PUT", f.narInfoURL(), []byte(info.Text(storeDir)))
		path := f.path.Path(storeDir)
		whole := len(s.want(200, "GET", f.narInfoURL(), nil).body)

		nix.run("reader", "nix", "copy", "--no-check-sigs", "--from", s.url, "--to", nix.store("reader"), path)
		got := s.sent(f.narInfoURL())
		if last := got[len(got)-1]; (last < whole) != (nix.command != nil) {
			t.Errorf("of a narinfo of %d bytes %v were sent", whole, got)
		}

		second := start(t)
		nix.run("writer", "nix", "copy", "--no-check-sigs", "--from", nix.store("reader"), "--to", second.url+"?compression=none", path)
		nix.run("writer", "nix", "copy", "--no-check-sigs", "--from", second.url, "--to", nix.store("writer"), path)
		got = second.sent("/" + name)
		if len(got) != 1 || (got[0] < len(f.nar)) != (nix.command != nil) {
			t.Errorf("of a NAR of %d bytes %v were sent", len(f.nar), got)
		}
		for _, store := range []string{"reader", "writer"} {
			nix.run("reader", "nix", "store", "verify", "-r", "--no-trust", "--store", nix.store(store), path)
		}
	})
}

// decodeListing decodes a listing as Nix or the gateway makes it. Older versions of Nix
// leave out what is false.
func decodeListing(t *testing.T, b []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("listing %.300q: %v", b, err)
	}
	var fill func(v any)
	fill = func(v any) {
		m, _ := v.(map[string]any)
		if m["type"] == "regular" && m["executable"] == nil {
			m["executable"] = false
		}
		for _, v := range m {
			fill(v)
		}
	}
	fill(v)
	return v
}

// testNixReads has Nix look at files in the cache, and compares the listings that it makes
// with those of the gateway.
func testNixReads(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		s := start(t)
		source, path := nix.realStore(), realPaths[0]
		nix.run("writer", "nix", "copy", "--from", source, "--to", s.url+"?write-nar-listing=1", path)
		hash := strings.TrimPrefix(path, storeDir+"/")[:narinfo.HashPartLen]
		info, err := narinfo.Parse(s.want(200, "GET", "/"+hash+".narinfo", nil).body, storeDir)
		if err != nil {
			t.Fatal(err)
		}
		uploaded := s.want(200, "GET", "/"+hash+".ls", nil).body
		own := s.want(200, "GET", "/nar/"+narinfo.EncodeNix32(info.NarHash[:])+"/ls", nil).body
		if got, want := decodeListing(t, own), decodeListing(t, uploaded); !reflect.DeepEqual(got, want) {
			t.Errorf("the gateway lists %s, Nix %s", own, uploaded)
		}
		shown := nix.run("reader", "nix", "store", "ls", "--json", "-R", "--store", s.url, path)
		want := decodeListing(t, own).(map[string]any)["root"]
		if got := decodeListing(t, []byte(shown)); !reflect.DeepEqual(got, want) {
			t.Errorf("nix store ls prints %s, want %s", shown, own)
		}

		const file = "/lib/libidn2.la"
		got := nix.run("reader", "nix", "store", "cat", "--store", s.url, path+file)
		if want := s.want(200, "GET", "/serve/"+strings.TrimPrefix(path, storeDir+"/")+file, nil).body; !bytes.Equal([]byte(got), want) || len(want) == 0 {
			t.Errorf("nix store cat prints %d bytes, the gateway serves %d", len(got), len(want))
		}
	})
}
