//go:build unix

package compression

import (
	"bytes"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

// benchNAR returns the NAR that benchmarks use: the file that BENCH_NAR names, or one of the test
// program itself, which is real machine code too.
func benchNAR(b *testing.B) []byte {
	b.Helper()
	if name := os.Getenv("BENCH_NAR"); name != "" {
		nar, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		return nar
	}
	program, err := os.ReadFile(must(os.Executable()))
	if err != nil {
		b.Fatal(err)
	}
	return narOf(program)
}

// cpuTime returns the CPU time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReader measures decoding in bytes of NAR. On a busy machine cpu-MB/s is the figure to
// look at; MB/s is wall time and varies severalfold.
func BenchmarkReader(b *testing.B) {
	nar := benchNAR(b)
	for _, bench := range []struct {
		t     Type
		level string
	}{{XZ, "-6"}, {Zstd, "-3"}, {Zstd, "-19"}, {Gzip, "-6"}, {Brotli, "-5"}, {LZ4, "-1"}, {Bzip2, "-9"}} {
		b.Run(string(bench.t)+bench.level, func(b *testing.B) {
			benchmarkReader(b, bench.t, compressed(b, bench.t, nar, bench.level), len(nar))
		})
	}
	for _, typ := range storedTypes {
		b.Run(string(typ)+"-stored", func(b *testing.B) {
			benchmarkReader(b, typ, store(b, typ, nar), len(nar))
		})
	}
}

// BenchmarkReaderSmall shows what a decoder costs, as opposed to decoding.
func BenchmarkReaderSmall(b *testing.B) {
	for _, typ := range decodable {
		b.Run(string(typ), func(b *testing.B) {
			benchmarkReader(b, typ, compressed(b, typ, sample(1000)), 1000)
		})
	}
}

func benchmarkReader(b *testing.B, typ Type, file []byte, size int) {
	need, err := Memory(typ, file[:min(len(file), HeaderSize)])
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	start := cpuTime(b)
	for b.Loop() {
		r, err := NewReader(typ, bytes.NewReader(file), Limits{MaxMemory: need})
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf)
		if err != nil || n != int64(size) {
			b.Fatalf("got %d bytes, %v, want %d", n, err, size)
		}
		r.Close()
	}
	b.ReportMetric(float64(size)*float64(b.N)/1e6/(cpuTime(b)-start).Seconds(), "cpu-MB/s")
}

func BenchmarkStored(b *testing.B) {
	plain := noise(16 << 20)
	for _, typ := range storedTypes {
		s := newStored(b, typ, plain)
		b.Run(string(typ), func(b *testing.B) {
			b.SetBytes(s.Size())
			b.ReportAllocs()
			for b.Loop() {
				if err := s.WriteRange(io.Discard, 0, s.Size(), from(plain, 64<<10)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
