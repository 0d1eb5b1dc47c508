package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/faultfs"
	"github.com/dedupd/dedupd/nar"
	"github.com/dedupd/dedupd/narinfo"
)

// asCommand in the environment makes the test binary be dedupd, so that there is a
// process to kill.
const asCommand = "DEDUPD_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	faultfs.Child()
	if os.Getenv(asCommand) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestKill kills the server again and again while clients upload. Whatever was
// acknowledged must be there afterwards, and a check must find nothing.
func TestKill(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 2
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	k := &killer{t: t, dir: t.TempDir(), acked: map[string][32]byte{}}
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		k.start()
		var clients sync.WaitGroup
		for range 6 {
			r := rand.New(rand.NewPCG(seed, rnd.Uint64()))
			clients.Go(func() { k.upload(r) })
		}
		time.Sleep(time.Duration(20+rnd.IntN(700)) * time.Millisecond)
		k.kill()
		clients.Wait()

		k.start()
		k.verify(round)
		k.kill()
	}
	if len(k.acked) < rounds {
		t.Errorf("only %d paths were acknowledged: the test did nothing", len(k.acked))
	}
	t.Logf("%d paths were acknowledged in %d lives of the server", len(k.acked), 2*rounds)
}

// A killer is the clients of a server that is killed, and what they remember.
type killer struct {
	t   *testing.T
	dir string
	*child

	mu    sync.Mutex
	acked map[string][32]byte // hash parts of paths, and the hashes of their NARs
}

func (k *killer) start() {
	k.t.Helper()
	var err error
	if k.child, err = startChild(k.dir); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(k.child.kill)
	if err := k.child.ready(); err != nil {
		k.t.Fatal(err)
	}
}

// A child is a server in a process of its own, that can be killed.
type child struct {
	cmd    *exec.Cmd
	stdout io.Reader
	stderr *buffer
	url    string // when it is ready
}

// startChild starts a server with bucket and state below dir, and settings that go before
// those of all tests.
func startChild(dir string, settings ...string) (*child, error) {
	c := &child{stderr: new(buffer)}
	c.cmd = childCommand(dir, "serve", append([]string{"--listen", "127.0.0.1:0", "--access-log=false", "--key-files=none",
		"--pack-size", "1MiB", "--flush-interval", "200ms", "--min-free", "32MiB"}, settings...)...)
	c.cmd.Stderr = c.stderr
	var err error
	if c.stdout, err = c.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return c, c.cmd.Start()
}

// childCommand is a command of dedupd on the store below dir.
func childCommand(dir, name string, args ...string) *exec.Cmd {
	args = append([]string{name, "--bucket", "file://" + filepath.Join(dir, "bucket"), "--state", filepath.Join(dir, "state")}, args...)
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	return cmd
}

// ready waits until the server serves.
func (c *child) ready() error {
	lines := bufio.NewScanner(c.stdout)
	for lines.Scan() {
		if m := advice.FindStringSubmatch(lines.Text() + "\n"); m != nil {
			c.url = m[1]
			return nil
		}
	}
	c.cmd.Wait()
	return fmt.Errorf("the server did not start:\n%s", c.stderr)
}

// kill ends the server without warning; again without effect.
func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// upload puts paths until the server is gone.
func (k *killer) upload(rnd *rand.Rand) {
	for {
		part, hash, ok := k.uploadOne(rnd)
		if !ok {
			return
		}
		k.mu.Lock()
		k.acked[part] = hash
		k.mu.Unlock()
	}
}

// uploadOne puts a path, and returns its hash part and the hash of its NAR.
func (k *killer) uploadOne(rnd *rand.Rand) (part string, hash [32]byte, ok bool) {
	b, err := killNAR(rnd, 1+rnd.IntN(300_000))
	if err != nil {
		k.t.Error(err)
		return "", hash, false
	}
	hash = sha256.Sum256(b)
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(hash[:20]) + "-killed")
	if err != nil {
		k.t.Error(err)
		return "", hash, false
	}
	info := &narinfo.NarInfo{
		StorePath: path, URL: "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar", Compression: "none",
		NarHash: hash, NarSize: uint64(len(b)),
	}
	ok = k.put("/"+info.URL, b) && k.put("/"+path.HashPart()+".narinfo", info.Append(nil, "/nix/store"))
	return path.HashPart(), hash, ok
}

// put says whether an upload was acknowledged.
func (k *killer) put(path string, b []byte) bool {
	req, err := http.NewRequest("PUT", k.url+path, bytes.NewReader(b))
	if err != nil {
		k.t.Error(err)
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false // killed
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		k.t.Errorf("PUT %s: %s", path, resp.Status)
	}
	return resp.StatusCode == 200
}

// killNAR makes a NAR of a file of size bytes, new in parts, with a store path in it.
func killNAR(rnd *rand.Rand, size int) ([]byte, error) {
	data := make([]byte, size)
	common := rand.New(rand.NewPCG(rnd.Uint64N(8), 0)) // eight files, of which these are the heads
	fresh := rnd.IntN(len(data))
	for i := range data {
		if i < len(data)-fresh {
			data[i] = byte(common.Uint32())
		} else {
			data[i] = byte(rnd.Uint32())
		}
	}
	var hash [20]byte
	for i := range hash {
		hash[i] = byte(rnd.Uint32())
	}
	copy(data[rnd.IntN(len(data)):], "/nix/store/"+narinfo.EncodeNix32(hash[:])+"-dependency")
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	if err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(data))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// verify gets everything that was ever acknowledged, and has the store checked.
func (k *killer) verify(round int) {
	k.t.Helper()
	for part, hash := range k.acked {
		if status, _ := k.get("/" + part + ".narinfo"); status != 200 {
			k.t.Fatalf("round %d: narinfo of %s: status %d", round, part, status)
		}
		status, body := k.get("/nar/" + narinfo.EncodeNix32(hash[:]) + ".nar")
		if status != 200 || sha256.Sum256(body) != hash {
			k.t.Fatalf("round %d: NAR of %s: status %d, %d bytes with another hash", round, part, status, len(body))
		}
	}
	out, err := dedupd(k.t, "", "check", "--read-data", "--bucket", "file://"+filepath.Join(k.dir, "bucket"), "--state", filepath.Join(k.dir, "state"))
	if err != nil {
		k.t.Fatalf("round %d: check: %v\n%s", round, err, out)
	}
}

func (k *killer) get(path string) (int, []byte) {
	k.t.Helper()
	resp, err := http.Get(k.url + path)
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		k.t.Fatal(err)
	}
	return resp.StatusCode, b
}
