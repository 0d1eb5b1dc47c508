package gateway_test

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
)

// testNixOnFaultyS3 uploads and downloads through a gateway of whose requests to S3 one in
// five goes wrong. Nothing is read from the spool or a cache.
func testNixOnFaultyS3(t *testing.T) {
	server := s3test.Start(t, "versitygw")
	forEachNix(t, func(t *testing.T, nix *client) {
		name := "bucket-" + t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]
		server.NewBucket(t, name)
		proxy := s3test.NewProxy(t, server.Endpoint)
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rnd, faults := rand.New(rand.NewPCG(seed, 0)), 0
		proxy.Set(func(int64, *http.Request) *s3test.Fault {
			if rnd.IntN(5) > 0 {
				return nil
			}
			faults++
			return s3test.Transient[rnd.IntN(len(s3test.Transient))]
		})
		b, err := bucket.Open(t.Context(), server.URL(name, proxy.URL)+"&timeout=1s")
		if err != nil {
			t.Fatal(err)
		}
		log := &logBuffer{}
		store, err := chunkstore.Open(t.Context(), chunkstore.Options{
			State: t.TempDir(), Bucket: b, Repository: chunkstore.DefaultRepository(storeDir, chunkstore.FastCDC), PackSize: 1 << 20,
			RetryInterval: 10 * time.Millisecond, Log: slog.New(slog.NewTextHandler(log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close(t.Context())
		h := httptest.NewServer(gateway.New(store, gateway.Config{Log: slog.New(slog.NewTextHandler(log, nil))}))
		defer h.Close()
		source := nix.realStore()
		nix.run("writer", append([]string{"nix", "copy", "--from", source, "--to", h.URL + "?compression=zstd"}, realPaths...)...)
		if err := store.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		nix.run("reader", append([]string{"nix", "copy", "--from", h.URL, "--to", nix.store("reader")}, realPaths...)...)
		nix.run("reader", append([]string{"nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", nix.store("reader")}, realPaths...)...)
		if n := store.Counters().DamagedChunks; n > 0 {
			t.Errorf("%d chunks were marked as damaged\nlog:\n%s", n, log)
		}
		report, err := store.Check(t.Context(), chunkstore.CheckOptions{ReadData: true})
		if err != nil || !report.OK() {
			t.Errorf("check: %v, %+v", err, report)
		}
		got, _ := bucket.RequestsOf(b)
		t.Logf("%d faults; %+v", faults, got)
	})
}
