package nar_test

import (
	"bytes"
	"fmt"
	"io"
	"log"

	"github.com/dedupd/dedupd/nar"
)

func Example() {
	var archive bytes.Buffer
	w := nar.NewWriter(&archive)
	script := "#!/bin/sh\n"
	for _, h := range []nar.Header{
		{Type: nar.Directory},
		{Path: "bin", Type: nar.Directory},
		{Path: "bin/hello", Type: nar.Regular, Executable: true, Size: int64(len(script))},
		{Path: "bin/hi", Type: nar.Symlink, Target: "hello"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			log.Fatal(err)
		}
		if h.Type == nar.Regular {
			if _, err := io.WriteString(w, script); err != nil {
				log.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}

	r := nar.NewReader(&archive)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%-9v %q %d bytes at %d\n", h.Type, h.Path, h.Size, h.Offset)
	}
	// Output:
	// directory "" 0 bytes at 0
	// directory "bin" 0 bytes at 0
	// regular   "bin/hello" 10 bytes at 400
	// symlink   "bin/hi" 0 bytes at 600
}

func ExampleList() {
	var archive bytes.Buffer
	w := nar.NewWriter(&archive)
	w.WriteHeader(&nar.Header{Type: nar.Regular, Size: 5})
	io.WriteString(w, "hello")
	w.Close()

	listing, err := nar.List(&archive)
	if err != nil {
		log.Fatal(err)
	}
	b, err := listing.MarshalJSON()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(b))
	// Output: {"root":{"executable":false,"narOffset":96,"size":5,"type":"regular"},"version":1}
}
