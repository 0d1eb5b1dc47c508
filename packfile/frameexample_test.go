package packfile_test

import (
	"fmt"
	"log"

	"github.com/dedupd/dedupd/packfile"
)

// A chunk holds a store path. It is masked and encoded, and served with the hash of
// another build of the same package.
func Example() {
	const before, after = "exec /nix/store/", "-bash-5.2/bin/bash -e run\n"
	masked := append([]byte(before), make([]byte, packfile.SpanHash)...)
	for range 40 {
		masked = append(masked, after...)
	}
	spans := []packfile.Span{{Off: uint32(len(before)), Len: packfile.SpanHash}}

	enc, err := packfile.NewEncoder(packfile.LevelDefault)
	if err != nil {
		log.Fatal(err)
	}
	f, err := enc.Encode(packfile.ChunkID(masked, spans), masked, spans)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(masked), "bytes stored as", f.Kind, "in fewer:", len(f.Stored) < len(masked))

	v, err := packfile.ParseFrame(f.Kind, len(f.Chunks), f.Stored, f.PrefixLen, f.CRC)
	if err != nil {
		log.Fatal(err)
	}
	dec, err := packfile.NewDecoder()
	if err != nil {
		log.Fatal(err)
	}
	plain, err := dec.Decode(nil, &v, len(masked))
	if err != nil {
		log.Fatal(err)
	}
	hash := func(int) []byte { return []byte("0c0a8r4k6fz9v1n2m3x5y7w8q0d4b6h1") }
	if err := packfile.Unmask(plain, v.Spans(0), hash); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", plain[:66])
	// Output:
	// 1088 bytes stored as decode in fewer: true
	// exec /nix/store/0c0a8r4k6fz9v1n2m3x5y7w8q0d4b6h1-bash-5.2/bin/bash
}
