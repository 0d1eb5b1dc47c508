package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/narinfo"
)

// followSlack is what a machine that does other things, too, may add to the documented time.
const followSlack = 30 * time.Second

// TestFollow has one writer and two followers on a real S3 server. What the writer has
// acknowledged both serve, byte for byte. Another writer is refused; when the first is killed
// and its disk is gone, one that has nothing but the bucket goes on in its place.
func TestFollow(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	url := s3test.Start(t, "versitygw").NewBucket(t, "bucket")
	begin := func(name string, args ...string) *child {
		t.Helper()
		c, err := startChild(filepath.Join(dir, name), append([]string{"--bucket", url, "--lease-ttl", "3s"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.kill)
		return c
	}
	start := func(name string, args ...string) *child {
		t.Helper()
		c := begin(name, args...)
		if err := c.ready(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	writer := start("writer")
	followers := []*child{}
	for _, name := range []string{"one", "two"} {
		followers = append(followers, start(name, "--follow", "--follow-interval", "1s", "--writer-url", writer.url))
	}
	paths := map[string][32]byte{}
	upload := func(n int) {
		t.Helper()
		k := &killer{t: t, child: writer}
		for range n {
			part, hash, ok := k.uploadOne(rnd)
			if !ok {
				t.Fatal("an upload was not taken")
			}
			paths[part] = hash
		}
		deadline := time.Now().Add(time.Second + 200*time.Millisecond + followSlack) // interval and flush-interval
		for _, f := range followers {
			for part, hash := range paths {
				follows(t, f, part, hash, deadline)
			}
		}
	}
	upload(20)

	if err := begin("other").ready(); err == nil || !strings.Contains(err.Error(), "another server writes to this bucket") {
		t.Errorf("a second writer: got error %v", err)
	}
	req, err := http.NewRequest("PUT", followers[0].url+"/log/x", strings.NewReader("log"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 405 || !strings.Contains(string(text), writer.url) {
		t.Errorf("PUT to a follower: got %s %q, want 405 and where to go", resp.Status, text)
	}

	writer.kill() // all of it was in the bucket: the followers have it
	if err := os.RemoveAll(filepath.Join(dir, "writer")); err != nil {
		t.Fatal(err)
	}
	writer = start("replacement")
	for part, hash := range paths {
		follows(t, writer, part, hash, time.Now())
	}
	upload(20)
	for _, c := range append(followers, writer) {
		if resp, err := http.Get(c.url + "/readyz"); err != nil || resp.StatusCode != 200 {
			t.Errorf("readyz: %v, %v", resp, err)
		} else {
			resp.Body.Close()
		}
	}
}

// follows checks that a server has a path, whole, until a deadline.
func follows(t *testing.T, c *child, part string, hash [32]byte, deadline time.Time) {
	t.Helper()
	k := &killer{t: t, child: c}
	for {
		status, text := k.get("/" + part + ".narinfo")
		if status == 200 {
			if !bytes.Contains(text, []byte(narinfo.EncodeNix32(hash[:]))) {
				t.Errorf("narinfo of %s: got %q", part, text)
			}
			break
		}
		if status != 404 || time.Now().After(deadline) {
			t.Fatalf("narinfo of %s: status %d\nlog of the server:\n%s", part, status, c.stderr)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if status, body := k.get("/nar/" + narinfo.EncodeNix32(hash[:]) + ".nar"); status != 200 || sha256.Sum256(body) != hash {
		t.Fatalf("NAR of %s: status %d, %d bytes with another hash", part, status, len(body))
	}
}
