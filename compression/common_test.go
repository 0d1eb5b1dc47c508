package compression

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"testing"
)

// cliNames maps types to the programs that decode them with -dc.
var cliNames = map[Type]string{
	XZ: "xz", Gzip: "gzip", Zstd: "zstd", Brotli: "brotli", LZ4: "lz4", Bzip2: "bzip2",
}

// missing skips a test for want of something that CI must have.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing, and this is CI", what)
	}
	t.Skipf("%s is missing", what)
}

// runCLI returns what typ's program makes of input. A failure, or a word on stderr, is fatal.
func runCLI(t testing.TB, typ Type, input []byte, args ...string) []byte {
	t.Helper()
	program, err := exec.LookPath(cliNames[typ])
	if err != nil {
		missing(t, cliNames[typ])
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil || stderr.Len() > 0 {
		t.Fatalf("%s %q: %v: %s", program, args, err, stderr.Bytes())
	}
	return stdout.Bytes()
}

// decode decodes b with as much memory as Memory says, within reason.
func decode(typ Type, b []byte) ([]byte, error) {
	need, err := Memory(typ, b[:min(len(b), HeaderSize)])
	if err != nil {
		return nil, err
	}
	r, err := NewReader(typ, bytes.NewReader(b), Limits{MaxMemory: min(need, DefaultMaxMemory)})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
