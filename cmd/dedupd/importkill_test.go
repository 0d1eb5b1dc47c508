package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/index"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/packfile"
)

// killJobs is how many paths the imports that are killed work on at a time.
const killJobs = 8

// TestKillImport kills an import again and again, while one in ten requests to its source,
// and to its bucket on S3, goes wrong. What is there in the end is what an import makes
// that nothing disturbs, row by row, and no kill has more NARs fetched again than were on
// their way. DEDUPD_IMPORT_KILLS is the number of kills.
func TestKillImport(t *testing.T) {
	kills := 3
	if text := os.Getenv("DEDUPD_IMPORT_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	needs(t, "xz")
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	t.Setenv("DEDUPD_FLUSH_INTERVAL", "200ms")
	t.Setenv("DEDUPD_PACK_SIZE", "1MiB")
	t.Setenv("DEDUPD_LEASE_TTL", "1s")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	load, err := newKillLoad(seed, 40+16*kills)
	if err != nil {
		t.Fatal(err)
	}
	source := newKillSource(t, load)
	minio := s3test.Start(t, "minio")
	minio.NewBucket(t, "bucket")
	s3 := s3test.NewProxy(t, minio.Endpoint)
	dir, bucket := t.TempDir(), minio.URL("bucket", s3.URL)+"&timeout=5s"
	command := func(dir string, life int, more ...string) *exec.Cmd {
		// By its user the source knows which import asks.
		args := []string{source.proxy.URL, "--paths", source.paths, "--jobs", fmt.Sprint(killJobs), "--user", fmt.Sprint(life), "--password-file", source.password}
		return childCommand(dir, "import", append(args, more...)...)
	}

	decide := killFaults(rand.New(rand.NewPCG(seed, 1)))
	s3.Set(func(int64, *http.Request) *s3test.Fault { return decide() })
	source.fail(killFaults(rand.New(rand.NewPCG(seed, 2))))
	life, killed, runs := 0, 0, 0 // imports so far, those that were killed, and those to the end
	for killed < kills {
		if life++; life > 3*kills+10 {
			t.Fatalf("only %d imports of %d could be killed", killed, life)
		}
		if source.killImport(t, command(dir, life, "--bucket", bucket), rnd) {
			killed++
		}
	}
	for { // again for what was left out, since the source failed all the time
		life++
		out, err := command(dir, life, "--bucket", bucket).CombinedOutput()
		if runs++; err == nil {
			break
		}
		if runs == 10 {
			t.Fatalf("import: %v\n%s", err, out)
		}
	}
	source.checkAgain(t)
	t.Logf("%d kills, %d imports more to the end", kills, runs)

	s3.Set(nil)
	source.proxy.Set(nil)
	calm := t.TempDir()
	if err := os.Mkdir(filepath.Join(calm, "bucket"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := command(calm, 0).CombinedOutput(); err != nil {
		t.Fatalf("undisturbed import: %v\n%s", err, out)
	}
	if out, err := dedupd(t, "", "check", "--read-data", "--bucket", bucket, "--state", filepath.Join(dir, "state")); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	got, want := contentRows(t, dir), contentRows(t, calm)
	if len(want) < 2*len(load.paths) {
		t.Errorf("an undisturbed import has %d rows of %d paths", len(want), len(load.paths))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d rows, and not the %d of an undisturbed import", len(got), len(want))
	}
}

// killFaults returns a function that says what goes wrong with the next request.
func killFaults(rnd *rand.Rand) func() *s3test.Fault {
	// Not stalls, which only take time.
	faults := slices.DeleteFunc(slices.Clone(s3test.Transient), func(f *s3test.Fault) bool { return strings.HasPrefix(f.Name, "stall") })
	return func() *s3test.Fault {
		if rnd.IntN(10) > 0 {
			return nil
		}
		return faults[rnd.IntN(len(faults))]
	}
}

// A killSource is a cache that remembers who asks for what.
type killSource struct {
	proxy    *s3test.Proxy
	paths    string // file that names all paths
	password string // file with one, that nobody asks for

	mu      sync.Mutex
	asked   chan struct{}               // gets one for each NAR that is asked for
	fetched map[string]int              // in which life a NAR was last sent
	again   map[int]map[string]struct{} // by life, the NARs that had been sent in it and were asked for in a later one
}

// newKillSource serves a load, two thirds of its NARs in xz.
func newKillSource(t *testing.T, load *killLoad) *killSource {
	files := map[string][]byte{"nix-cache-info": []byte("StoreDir: /nix/store\n")}
	var list strings.Builder
	for i, p := range load.paths {
		if info := p.info; info.NarHash[0]%3 > 0 {
			cmd := exec.Command("xz", "-0")
			cmd.Stdin = bytes.NewReader(p.nar)
			file, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			hash := sha256.Sum256(file)
			info.URL, info.Compression = "nar/"+narinfo.EncodeNix32(hash[:])+".nar.xz", "xz"
			info.FileHash, info.FileSize = narinfo.NewHash(narinfo.SHA256, hash[:]), uint64(len(file))
			files[info.URL] = file
		} else {
			files[info.URL] = p.nar
		}
		files[p.url[1:]] = load.paths[i].info.Append(nil, "/nix/store")
		fmt.Fprintln(&list, strings.TrimSuffix(p.url[1:], ".narinfo"))
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, ok := files[r.URL.Path[1:]]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file))
	}))
	t.Cleanup(server.Close)
	s := &killSource{
		proxy: s3test.NewProxy(t, server.URL), paths: filepath.Join(t.TempDir(), "paths"), password: filepath.Join(t.TempDir(), "password"),
		asked: make(chan struct{}, 1e6), fetched: map[string]int{}, again: map[int]map[string]struct{}{},
	}
	for name, text := range map[string]string{s.paths: list.String(), s.password: "secret\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// fail has requests fail as decide says, and remembers the others.
func (s *killSource) fail(decide func() *s3test.Fault) {
	s.proxy.Set(func(_ int64, r *http.Request) *s3test.Fault {
		fault, name := decide(), r.URL.Path
		user, _, _ := r.BasicAuth()
		life, err := strconv.Atoi(user)
		if err != nil || !strings.HasPrefix(name, "/nar/") {
			return fault
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if before := s.fetched[name]; before > 0 && before < life {
			if s.again[before] == nil {
				s.again[before] = map[string]struct{}{}
			}
			s.again[before][name] = struct{}{}
		}
		if fault == nil {
			s.fetched[name] = life
		}
		s.asked <- struct{}{}
		return fault
	})
}

// checkAgain compares the NARs that were fetched again with those that were in flight.
func (s *killSource) checkAgain(t *testing.T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum, most := 0, 0
	for _, files := range s.again {
		sum, most = sum+len(files), max(most, len(files))
	}
	t.Logf("of %d NARs %d were fetched again, %d at most after a kill", len(s.fetched), sum, most)
	if most > killJobs {
		t.Errorf("after a kill %d NARs are fetched again, %d were in flight at most", most, killJobs)
	}
}

// killImport runs an import, and kills it when it has asked for some NARs. It says whether
// the import ran until then.
func (s *killSource) killImport(t *testing.T, cmd *exec.Cmd, rnd *rand.Rand) bool {
	t.Helper()
	var out buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for range 1 + rnd.IntN(10) {
		select {
		case <-s.asked:
		case err := <-ended:
			t.Logf("an import ended before it was killed: %v\n%s", err, &out)
			return false
		}
	}
	time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
	cmd.Process.Kill()
	<-ended
	for len(s.asked) > 0 {
		<-s.asked
	}
	return true
}

// contentRows returns the rows of the index of the store below dir, without what says in
// which pack and commit they are.
func contentRows(t *testing.T, dir string) (rows []string) {
	t.Helper()
	ctx := t.Context()
	ix, err := index.OpenBolt(filepath.Join(dir, "state", "index.bolt"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	snap, err := ix.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	err = snap.ForEachChunk(ctx, func(k index.Key, _ index.Location) error {
		rows = append(rows, fmt.Sprintf("chunk %x", k))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const commitID = packfile.NameSize + 4
	for _, table := range []index.Table{index.Recipes, index.Contents, index.Paths, index.Names} {
		err := snap.ForEach(ctx, table, nil, func(k, v []byte) error {
			if table == index.Paths { // of which an import makes one variant, after its length
				_, n := binary.Uvarint(v)
				v = v[n:]
			}
			rows = append(rows, fmt.Sprintf("%v %x %x", table, k, v[commitID:]))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return rows
}
