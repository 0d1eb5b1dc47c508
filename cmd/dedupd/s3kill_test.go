package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/narinfo"
)

// TestKillS3 kills the server and MinIO at random points while clients upload. With ack =
// "spool" nothing that was acknowledged is missing while the state directory is kept; with ack =
// "bucket" nothing is when it is deleted. DEDUPD_KILLS=10m does so for that long, with each.
func TestKillS3(t *testing.T) {
	duration := 6 * time.Second
	if text := os.Getenv("DEDUPD_KILLS"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	} else if testing.Short() {
		duration = time.Second
	}
	// Who was killed has not given its lease back, and another state directory waits for it.
	t.Setenv("DEDUPD_LEASE_TTL", "1s")
	for _, ack := range []string{"spool", "bucket"} {
		t.Run(ack, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			var sum s3Kills
			for end, n := time.Now().Add(duration), 1; time.Now().Before(end) && !t.Failed(); n++ {
				t.Run(fmt.Sprint("bucket ", n), func(t *testing.T) {
					k := newS3Killer(t, ack, rnd.Uint64())
					for round := 0; round < 12 && (round < 2 || time.Now().Before(end)); round++ {
						k.round(round)
					}
					k.checkAll()
					sum.add(k.s3Kills)
				})
			}
			if sum.acked == 0 {
				t.Error("nothing was acknowledged")
			}
			if t.Failed() {
				return
			}
			t.Logf("ack = %s: the server was killed %d times, MinIO %d times, the state directory deleted %d times; of %d uploads %d were acknowledged; none is missing",
				ack, sum.server, sum.minio, sum.deleted, sum.uploads, sum.acked)
		})
	}
}

// s3Kills are what happened.
type s3Kills struct{ server, minio, deleted, uploads, acked int }

func (s *s3Kills) add(o s3Kills) {
	*s = s3Kills{s.server + o.server, s.minio + o.minio, s.deleted + o.deleted, s.uploads + o.uploads, s.acked + o.acked}
}

// An s3Killer has a server, a MinIO with its bucket, clients, and what they remember.
type s3Killer struct {
	t        *testing.T
	ack      string
	dir, url string
	minio    *s3test.Server
	server   *child
	rnd      *rand.Rand

	mu sync.Mutex
	s3Kills
	paths map[string][32]byte // hash parts of what was acknowledged, and the hashes of their NARs
}

func newS3Killer(t *testing.T, ack string, seed uint64) *s3Killer {
	k := &s3Killer{t: t, ack: ack, dir: t.TempDir(), minio: s3test.Start(t, "minio"), rnd: rand.New(rand.NewPCG(seed, 0)), paths: map[string][32]byte{}}
	k.url = k.minio.NewBucket(t, "bucket") + "&timeout=5s"
	return k
}

func (k *s3Killer) start() {
	k.t.Helper()
	var err error
	if k.server, err = startChild(k.dir, "--bucket", k.url, "--ack", k.ack, "--ack-timeout", "2s"); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(k.server.kill)
	if err := k.server.ready(); err != nil {
		k.t.Fatal(err)
	}
}

func (k *s3Killer) wait(ms int) { time.Sleep(time.Duration(1+k.rnd.IntN(ms)) * time.Millisecond) }

// round uploads until the server is killed, and looks at what is left.
func (k *s3Killer) round(n int) {
	k.start()
	before := len(k.paths)
	var clients sync.WaitGroup
	for range 12 { // most of which wait for the bucket, with ack = "bucket"
		rnd := rand.New(rand.NewPCG(k.rnd.Uint64(), 0))
		clients.Go(func() { k.upload(rnd) })
	}
	k.wait(2000)
	down := n%3 != 0
	if down {
		k.minio.Kill()
		k.s3Kills.minio++
		k.wait(500)
		if n%3 == 1 { // and it comes back first
			k.minio.Run(k.t)
			down = false
			k.wait(500)
		}
	}
	k.server.kill()
	k.s3Kills.server++
	clients.Wait()
	if down {
		k.minio.Run(k.t)
	}
	if k.ack == "bucket" && k.rnd.IntN(2) == 0 {
		if err := os.RemoveAll(filepath.Join(k.dir, "state")); err != nil {
			k.t.Fatal(err)
		}
		k.deleted++
	}
	k.start()
	k.verify(n)
	k.server.kill()
	k.s3Kills.server++
	k.t.Logf("round %d: %d paths more", n, len(k.paths)-before)
}

// upload puts paths until the server is gone. That it refuses some while the bucket is away
// is all right.
func (k *s3Killer) upload(rnd *rand.Rand) {
	for {
		b, err := killNAR(rnd, 1+rnd.IntN(200_000))
		if err != nil {
			k.t.Error(err)
			return
		}
		hash := sha256.Sum256(b)
		path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(hash[:20]) + "-killed")
		if err != nil {
			k.t.Error(err)
			return
		}
		info := &narinfo.NarInfo{
			StorePath: path, URL: "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar", Compression: "none", NarHash: hash, NarSize: uint64(len(b)),
		}
		ok, err := k.put("/"+info.URL, b)
		if ok {
			ok, err = k.put("/"+path.HashPart()+".narinfo", info.Append(nil, "/nix/store"))
		}
		if err != nil {
			return
		}
		k.mu.Lock()
		k.uploads++
		if ok {
			k.acked++
			k.paths[path.HashPart()] = hash
		}
		k.mu.Unlock()
	}
}

// put says whether an upload was acknowledged. The error is for a server that is gone.
func (k *s3Killer) put(path string, b []byte) (bool, error) {
	req, err := http.NewRequest("PUT", k.server.url+path, bytes.NewReader(b))
	if err != nil {
		return false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 && resp.StatusCode != http.StatusFailedDependency && resp.StatusCode < 500 { // 424: not in the bucket in time
		k.t.Errorf("PUT %s: %s", path, resp.Status)
	}
	return resp.StatusCode == 200, nil
}

// verify gets everything that was acknowledged.
func (k *s3Killer) verify(round int) {
	k.t.Helper()
	for part, hash := range k.paths {
		for url, sum := range map[string]*[32]byte{"/" + part + ".narinfo": nil, "/nar/" + narinfo.EncodeNix32(hash[:]) + ".nar": &hash} {
			resp, err := http.Get(k.server.url + url)
			if err != nil {
				k.t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || sum != nil && sha256.Sum256(body) != *sum {
				k.t.Fatalf("round %d: GET %s: %s, %d bytes, %v\n%s", round, url, resp.Status, len(body), err, k.server.stderr)
			}
		}
	}
}

// checkAll has the store checked, all of it.
func (k *s3Killer) checkAll() {
	k.t.Helper()
	if out, err := dedupd(k.t, "", "check", "--read-data", "--bucket", k.url, "--state", filepath.Join(k.dir, "state")); err != nil {
		k.t.Fatalf("check: %v\n%s", err, out)
	}
}
