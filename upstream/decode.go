package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dedupd/dedupd/compression"
)

// decodeMemory is what decoding one file may take, in bytes. Nix writes logs and listings
// as xz -6, zstd up to a window of 8 MiB, and brotli's default.
const decodeMemory = 24 << 20

// decode returns body without its Content-Encoding. Where none is said the first bytes
// tell: caches in buckets and directories lose the header. The caller closes what it
// returns, and body if that is an error.
func decode(coding string, body io.ReadCloser) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(body, max(compression.HeaderSize, sniffSize))
	typ := compression.Type(strings.ToLower(coding))
	switch typ {
	case "", "identity":
		head, err := buf.Peek(max(compression.HeaderSize, sniffSize))
		if err != nil && err != io.EOF {
			return nil, err
		}
		typ, err = compression.Detect("", head)
		if err != nil && !errors.Is(err, compression.ErrUnsupported) {
			typ = compression.None
			if isBrotli(head) {
				typ = compression.Brotli
			}
		}
	case "x-gzip":
		typ = compression.Gzip
	}
	plain, err := compression.NewReader(typ, buf, compression.Limits{MaxMemory: decodeMemory})
	if err != nil {
		return nil, fmt.Errorf("decode Content-Encoding %q: %w", coding, err)
	}
	return &decoded{plain, body}, nil
}

// sniffSize is how many bytes at the start of a file are looked at.
const sniffSize = 4 << 10

// isBrotli says whether a file that begins with head, and is not longer if that is less than
// sniffSize, is text in brotli, which has no magic number: whether it is no text itself, and
// becomes some. (NixOS/nix#2333: listings in brotli without a header.)
func isBrotli(head []byte) bool {
	if isText(head) {
		return false
	}
	r, err := compression.NewReader(compression.Brotli, bytes.NewReader(head), compression.Limits{MaxMemory: decodeMemory})
	if err != nil {
		return false
	}
	defer r.Close()
	plain, err := io.ReadAll(io.LimitReader(r, sniffSize))
	return len(plain) > 0 && isText(plain) && (err == nil || len(head) >= sniffSize)
}

// isText says whether b is the start of a text in UTF-8, with the control characters that
// occur in logs.
func isText(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			return !utf8.FullRune(b) // which is cut off
		}
		if unicode.IsControl(r) && !strings.ContainsRune("\t\n\v\f\r\b\a\x1b", r) {
			return false
		}
		b = b[n:]
	}
	return true
}

// A decoded body closes what it is decoded from.
type decoded struct {
	io.ReadCloser
	body io.ReadCloser
}

func (d *decoded) Close() error { return errors.Join(d.ReadCloser.Close(), d.body.Close()) }
