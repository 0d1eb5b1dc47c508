package gateway_test

import (
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
)

// testNixFollows uploads to a writer, and downloads from a follower, which refuses uploads.
func testNixFollows(t *testing.T) {
	forEachNix(t, func(t *testing.T, nix *client) {
		s := start(t)
		b, err := bucket.Open(t.Context(), "file://"+filepath.Join(s.dir, "bucket"))
		if err != nil {
			t.Fatal(err)
		}
		log := slog.New(slog.NewTextHandler(s.log, nil))
		store, err := chunkstore.Open(t.Context(), chunkstore.Options{
			State: t.TempDir(), Bucket: b, Follow: true, FollowInterval: 10 * time.Millisecond, Log: log,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close(t.Context())
		h := httptest.NewServer(gateway.New(store, gateway.Config{Log: log, WriterURL: s.url}))
		defer h.Close()

		source := nix.realStore()
		nix.run("writer", append([]string{"nix", "copy", "--from", source, "--to", s.url + "?compression=zstd"}, realPaths...)...)
		if err := s.store.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		nix.run("reader", append([]string{"nix-store", "--store", nix.store("reader"), "--option", "substitute", "true", "--option", "substituters", h.URL, "-r"}, realPaths...)...)
		nix.run("reader", append([]string{"nix", "store", "verify", "-r", "--sigs-needed", "1", "--store", nix.store("reader")}, realPaths...)...)

		small := strings.TrimSpace(nix.run("source", "nix-store", "--store", source, "--add", "nix_test.go"))
		if out, err := nix.try("writer", "nix", "copy", "--from", source, "--to", h.URL, small); err == nil || !strings.Contains(out, "405") {
			t.Errorf("nix copy to a follower: got error %v, want 405\n%s", err, out)
		}
	})
}
