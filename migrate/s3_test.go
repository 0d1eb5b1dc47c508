package migrate

import (
	"bytes"
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// upload puts the cache into a bucket, its listings with a Content-Encoding.
func (c *cache) upload(s *s3test.Server, name string) {
	c.t.Helper()
	client := s.Client(c.t)
	err := filepath.WalkDir(c.dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		key, err := filepath.Rel(c.dir, file)
		if err != nil {
			return err
		}
		opts := minio.PutObjectOptions{ContentType: "application/octet-stream"}
		if strings.HasSuffix(key, ".ls") {
			text, opts.ContentEncoding = encode(c.t, compression.Brotli, text), "br"
		}
		_, err = client.PutObject(c.t.Context(), name, s3test.Prefix+"/"+key, bytes.NewReader(text), int64(len(text)), opts)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestImportS3 imports from real object stores, of which requests fail now and then.
func TestImportS3(t *testing.T) {
	for _, kind := range []string{"versitygw", "minio"} {
		t.Run(kind, func(t *testing.T) {
			server := s3test.Start(t, kind)
			server.NewBucket(t, "cache")
			c := newCache(t)
			var all []*narinfo.NarInfo
			for range 20 {
				all = append(all, c.add(compression.XZ))
			}
			gone := c.add(compression.XZ)
			if err := os.Remove(filepath.Join(c.dir, gone.URL)); err != nil {
				t.Fatal(err)
			}
			listing := `{"version":1}`
			c.write(all[0].StorePath.HashPart()+".ls", []byte(listing))
			c.write("log/a+b=c?.drv", []byte("built\n"))
			c.upload(server, "cache")

			proxy := s3test.NewProxy(t, server.Endpoint)
			proxy.Set(func(n int64, r *http.Request) *s3test.Fault {
				if faults := []*s3test.Fault{s3test.ResetBefore, s3test.ResetAfter, s3test.Error500, s3test.SlowDown, s3test.Truncated}; n%4 == 0 {
					return faults[n/4%int64(len(faults))]
				}
				return nil
			})
			source, err := upstream.NewS3(server.URL("cache", proxy.URL), chunkstore.DefaultStoreDir)
			if err != nil {
				t.Fatal(err)
			}
			s := openStore(t)
			report, skipped := run(t, s, source, Options{Jobs: 4})
			if report.Imported != int64(len(all)) || report.Files != 2 || len(skipped) != 1 || skipped[0].Reason != NoNAR || skipped[0].Name != gone.StorePath.String() {
				t.Errorf("got %+v, %v", report, skipped)
			}
			for _, info := range all {
				c.check(s, info)
			}
			f, err := s.File(t.Context(), all[0].StorePath.HashPart()+".ls")
			if err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			if err := s.WriteFile(t.Context(), &text, f, 0, f.Size); err != nil || text.String() != listing {
				t.Errorf("listing: got %q, %v", &text, err)
			}

			// Credentials that are refused say nothing about what is there.
			proxy.Set(func(int64, *http.Request) *s3test.Fault { return s3test.Revoked })
			_, skipped = run(t, s, source, Options{NoFiles: true, Paths: func(_ context.Context, fn func(string) error) error {
				return fn(gone.StorePath.HashPart())
			}})
			if len(skipped) != 1 || skipped[0].Reason != Unreachable {
				t.Errorf("without rights: got %v", skipped)
			}
		})
	}
}
