package compression_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"strings"

	"github.com/dedupd/dedupd/compression"
)

var nar = []byte("\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1\x00\x00\x00 and so on")

// An upload is recognised, its memory reserved, and decoded.
func ExampleNewReader() {
	upload := func(name string, body io.Reader) error {
		br := bufio.NewReaderSize(body, compression.HeaderSize)
		prefix, err := br.Peek(compression.HeaderSize)
		if err != nil && err != io.EOF {
			return err
		}
		t, err := compression.Detect(name, prefix)
		if err != nil {
			return err // errors.Is(err, compression.ErrUnsupported): say which, with 415
		}
		need, err := compression.Memory(t, prefix)
		if err != nil {
			return err
		}
		// Reserve need bytes of the budget here, and give them back in the end.
		r, err := compression.NewReader(t, br, compression.Limits{MaxMemory: need})
		if err != nil {
			return err
		}
		defer r.Close()
		n, err := io.Copy(io.Discard, r)
		fmt.Printf("%s: %d bytes of NAR\n", t, n)
		return err
	}

	// Make an upload without a compressor.
	s, err := compression.NewStored(compression.Zstd, int64(len(nar)), 0)
	if err != nil {
		log.Fatal(err)
	}
	var body bytes.Buffer
	if err := s.WriteRange(&body, 0, s.Size(), plain); err != nil {
		log.Fatal(err)
	}

	fmt.Println(upload("nar/1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s.nar.zst", &body))
	err = upload("nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.bz2", strings.NewReader("BZh9"))
	fmt.Println(err, errors.Is(err, compression.ErrUnsupported))
	// Output:
	// zstd: 34 bytes of NAR
	// <nil>
	// unsupported compression: bzip2 true
}

// A range of a file that was once uploaded as gzip is answered from its plain bytes.
func ExampleStored_WriteRange() {
	s, err := compression.NewStored(compression.Gzip, int64(len(nar)), crc32.ChecksumIEEE(nar))
	if err != nil {
		log.Fatal(err)
	}
	var part bytes.Buffer
	if err := s.WriteRange(&part, 15, 21, plain); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes, these of which are %q\n", s.Size(), part.Bytes())
	// Output:
	// 62 bytes, these of which are "\r\x00\x00\x00\x00\x00\x00\x00nix-archive-1"
}

// plain stands for whatever reads NARs.
func plain(w io.Writer, off, n int64) error {
	_, err := w.Write(nar[off : off+n])
	return err
}
