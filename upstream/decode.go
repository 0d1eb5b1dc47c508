package upstream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/dedupd/dedupd/compression"
)

// decodeMemory is what decoding one file may take, in bytes. Nix writes logs and listings
// as xz -6, zstd up to a window of 8 MiB, and brotli's default.
const decodeMemory = 24 << 20

// decode returns body without its Content-Encoding. Where none is said the first bytes
// tell: caches in buckets and directories lose the header. The caller closes what it
// returns, and body if that is an error.
func decode(coding string, body io.ReadCloser) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(body, compression.HeaderSize)
	typ := compression.Type(strings.ToLower(coding))
	switch typ {
	case "", "identity":
		head, err := buf.Peek(compression.HeaderSize)
		if err != nil && err != io.EOF {
			return nil, err
		}
		typ, err = compression.Detect("", head)
		if err != nil && !errors.Is(err, compression.ErrUnsupported) {
			typ = compression.None
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

// A decoded body closes what it is decoded from.
type decoded struct {
	io.ReadCloser
	body io.ReadCloser
}

func (d *decoded) Close() error { return errors.Join(d.ReadCloser.Close(), d.body.Close()) }
