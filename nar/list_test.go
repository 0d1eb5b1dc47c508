package nar_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/dedupd/dedupd/nar"
)

// listed has a listing: all names and targets are UTF-8.
var listed = tree{
	directory(""),
	directory("bin"),
	executable("bin/sh", "#!"),
	directory("empty"),
	regular("none", ""),
	regular("odd \x01\b\f\n\r\t\x7f\"\\<&>é\u2028", "x"),
	symlink("sh", "bin/sh\n"),
}

const listedJSON = `{"root":{"entries":{` +
	`"bin":{"entries":{"sh":{"executable":true,"narOffset":400,"size":2,"type":"regular"}},"type":"directory"},` +
	`"empty":{"entries":{},"type":"directory"},` +
	`"none":{"executable":false,"narOffset":792,"size":0,"type":"regular"},` +
	`"odd \u0001\b\f\n\r\t` + "\x7f" + `\"\\<&>é` + "\u2028" + `":{"executable":false,"narOffset":992,"size":1,"type":"regular"},` +
	`"sh":{"target":"bin/sh\n","type":"symlink"}},"type":"directory"},"version":1}`

func TestList(t *testing.T) {
	for _, test := range []struct {
		name string
		tree tree
		want string
	}{
		{"tree", listed, listedJSON},
		{"file", tree{regular("", "abc")}, `{"root":{"executable":false,"narOffset":96,"size":3,"type":"regular"},"version":1}`},
		{"symlink", tree{symlink("", "t")}, `{"root":{"target":"t","type":"symlink"},"version":1}`},
		{"directory", tree{directory("")}, `{"root":{"entries":{},"type":"directory"},"version":1}`},
		{"siblings", tree{directory(""), directory("a"), directory("a/b"), regular("a/c", ""), directory("b"), symlink("b/a", "t")},
			`{"root":{"entries":{"a":{"entries":{"b":{"entries":{},"type":"directory"},` +
				`"c":{"executable":false,"narOffset":536,"size":0,"type":"regular"}},"type":"directory"},` +
				`"b":{"entries":{"a":{"target":"t","type":"symlink"}},"type":"directory"}},"type":"directory"},"version":1}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			listing, err := nar.List(bytes.NewReader(test.tree.bytes(t)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := listing.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if !json.Valid(got) {
				t.Error("not valid JSON")
			}
		})
	}
}

func TestListNotUTF8(t *testing.T) {
	for _, tree := range []tree{
		{directory(""), regular("\xff", "")},
		{directory(""), directory("a"), symlink("a/b", "\x80")},
	} {
		listing, err := nar.List(bytes.NewReader(tree.bytes(t)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(listing); !errors.Is(err, nar.ErrNotUTF8) {
			t.Errorf("got error %v, want ErrNotUTF8", err)
		}
	}
}

func TestListTruncated(t *testing.T) {
	data := listed.bytes(t)
	_, err := nar.List(bytes.NewReader(data[:len(data)-1]))
	wantError(t, err, io.ErrUnexpectedEOF)
}

func TestListMax(t *testing.T) {
	data := listed.bytes(t)
	whole, err := nar.List(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	size := whole.Root.Memory()
	if _, err := nar.ListMax(bytes.NewReader(data), size); err != nil {
		t.Errorf("list in %d bytes: %v", size, err)
	}
	if _, err := nar.ListMax(bytes.NewReader(data), size-1); !errors.Is(err, nar.ErrTooLarge) {
		t.Errorf("list in %d bytes: got error %v, want ErrTooLarge", size-1, err)
	}
}

func TestLookup(t *testing.T) {
	listing, err := nar.List(bytes.NewReader(listed.bytes(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range listing.Root.Entries {
		if got := listing.Root.Lookup(e.Name); got != e.Node {
			t.Errorf("look up %q: got %+v", e.Name, got)
		}
		if got := listing.Root.Lookup(e.Name + "\x00"); got != nil {
			t.Errorf("look up what is not there: got %+v", got)
		}
	}
}
