package compression

import (
	"errors"
	"strings"
	"testing"
)

func TestDetect(t *testing.T) {
	const (
		skip    = "\x52\x2a\x4d\x18\x02\x00\x00\x00ab"
		bigSkip = "\x52\x2a\x4d\x18\x00\x00\x10\x00"
		lzma    = "\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff"
	)
	plain := sample(5000)
	for _, test := range []struct {
		name   string
		prefix string
		want   Type
		err    error
	}{
		{"nar/x.nar", string(narOf(plain)), None, nil},
		{"nar/x.nar.xz", string(compressed(t, XZ, plain)), XZ, nil},
		{"nar/x.nar.zst", string(compressed(t, Zstd, plain)), Zstd, nil},
		{"nar/x.nar", string(compressed(t, Gzip, plain)), Gzip, nil},
		{"nar/x.nar.gz", string(compressed(t, Gzip, plain)), Gzip, nil},
		{"nar/x.nar.lz4", string(compressed(t, LZ4, plain)), LZ4, nil},
		{"nar/x.nar.lz4", string(compressed(t, LZ4, plain, "-l")), LZ4, nil},
		{"nar/x.nar.br", string(compressed(t, Brotli, plain)), Brotli, nil},
		{"nar/x.nar.br", lzma, Brotli, nil}, // brotli may look like anything weak
		{"x.nar", string(compressed(t, XZ, plain)), XZ, nil},
		{"x", string(compressed(t, Zstd, plain)), Zstd, nil},

		{"x.nar.zst", skip + "\x28\xb5\x2f\xfd", Zstd, nil},
		{"x.nar.lz4", skip + skip + "\x04\x22\x4d\x18", LZ4, nil},
		{"x.nar", skip + "\x04\x22\x4d\x18", LZ4, nil},
		{"x.nar.zst", skip + "\x04\x22\x4d\x18", "", ErrMismatch},
		{"x.nar.zst", bigSkip, Zstd, nil},
		{"x.nar.lz4", bigSkip, LZ4, nil},
		{"x.nar", bigSkip, Zstd, nil},
		{"x.nar.xz", bigSkip, "", ErrMismatch},
		{"x.nar", skip + "\x1f\x8b\x08", "", ErrUnknown},

		{"x.nar.bz2", string(compressed(t, Bzip2, plain)), Bzip2, ErrUnsupported},
		{"x.nar.lzip", "LZIP\x01", Lzip, ErrUnsupported},
		{"x.nar", lzma, LZMA, ErrUnsupported},
		{"x.nar.lzma", lzma, LZMA, ErrUnsupported},
		{"x.nar", "\x89LZO\x00\x0d\x0a\x1a\x0a", LZOP, ErrUnsupported},
		{"x.nar", "LRZI", LRZip, ErrUnsupported},
		{"x.nar", "GRZipII\x00", GRZip, ErrUnsupported},
		{"x.nar", "\x1f\x9d\x90", Compress, ErrUnsupported},

		{"x.nar.xz", string(narOf(plain)), "", ErrMismatch},
		{"x.nar.xz", string(compressed(t, Zstd, plain)), "", ErrMismatch},
		{"x.nar.br", string(compressed(t, XZ, plain)), "", ErrMismatch},
		{"x.nar.br", string(narOf(plain)), "", ErrMismatch},
		{"x.nar.xz", "garbage", "", ErrMismatch},
		{"x.nar.zst", "", "", ErrMismatch},
		{"x.nar.xz", "\xfd7zX", "", ErrMismatch},
		{"x.nar", "", "", ErrUnknown},
		{"x.nar", "garbage, and more of it", "", ErrUnknown},
		{"x.nar", "<html><head></head></html>", "", ErrUnknown},
		{"x.nar", strings.Repeat("\x00", 100), "", ErrUnknown},
	} {
		got, err := Detect(test.name, []byte(test.prefix))
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("Detect(%q, %.12q): got %q, %v, want %q, %v", test.name, test.prefix, got, err, test.want, test.err)
		}
		var u *UnsupportedError
		if errors.As(err, &u) && u.Type != test.want {
			t.Errorf("Detect(%q, %.12q): error names %s", test.name, test.prefix, u.Type)
		}
	}
}

func TestIsLZMA(t *testing.T) {
	// The headers of what xz --format=lzma makes, and of what only looks like it.
	for header, want := range map[string]bool{
		"\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff": true,
		"\x5d\x00\x00\xc0\x00\x00\x10\x00\x00\x00\x00\x00\x00": true, // 12 MiB, size known
		"\x5d\x00\x00\x40\x01\xff\xff\xff\xff\xff\xff\xff\xff": false,
		"\xe1\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff": false,
		"\x5d\x00\x00\x80\x00\x00\x00\x00\x00\x40\x00\x00\x00": false,
		"\x5d\x00\x00\x80\x00":                                 false,
	} {
		if got := isLZMA([]byte(header)); got != want {
			t.Errorf("isLZMA(%x): got %v, want %v", header, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for field, want := range map[string]Type{"": Bzip2, "none": None, "xz": XZ, "br": Brotli, "zstd": Zstd, "lrzip": LRZip} {
		if got, err := Parse(field); got != want || err != nil {
			t.Errorf("Parse(%q): got %q, %v, want %q", field, got, err, want)
		}
	}
	for _, field := range []string{"XZ", "brotli", "zst", " xz", "skippable"} {
		if got, err := Parse(field); !errors.Is(err, ErrUnknown) {
			t.Errorf("Parse(%q): got %q, %v, want ErrUnknown", field, got, err)
		}
	}
}

func TestExtension(t *testing.T) {
	for typ, want := range map[Type]string{
		None: "", XZ: ".xz", Bzip2: ".bz2", Gzip: "", Zstd: ".zst", Brotli: ".br", LZ4: ".lz4", Lzip: ".lzip", LZMA: "",
	} {
		if got := typ.Extension(); got != want {
			t.Errorf("%s: got %q, want %q", typ, got, want)
		}
	}
}
