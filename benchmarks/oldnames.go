package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// zipfDownloads is how many downloads oldNames replays, and zipfPause after how many of
	// them it waits for what they have begun to be encoded: in truth there are days between.
	zipfDownloads = 2000
	zipfPause     = 50
)

// oldNames has the first generation imported from .nar.xz files, and gets it by the names
// of these: as clients do that hold narinfos of the cache before.
func oldNames(ctx context.Context, b *bench) ([]row, error) {
	if b.corpus == "" {
		return nil, fmt.Errorf("no corpus: set DEDUPD_CORPUS, or run under scripts/with-deps")
	}
	source := filepath.Join(b.corpus, "gen0", "xz")
	old, err := filesOf(source)
	if err != nil {
		return nil, err
	}
	repo := b.repository("oldnames")
	if err := os.MkdirAll(repo.bucket, 0o755); err != nil {
		return nil, err
	}
	if out, err := b.command(ctx, repo, "import", "file://"+source).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("import: %w\n%s", err, out)
	}
	nginx, err := b.startNginx(ctx, source)
	if err != nil {
		return nil, err
	}
	defer nginx.kill()
	rows, err := b.oldNameForms(ctx, repo, nginx, old)
	if err != nil {
		return nil, err
	}
	replayed, err := b.replayOldNames(ctx, repo, nginx, old)
	return append(rows, replayed...), err
}

// filesOf returns the NARs of a cache in a directory.
func filesOf(dir string) (files []file, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, "nar"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: "/nar/" + e.Name(), size: info.Size()})
	}
	return files, nil
}

// oldNameForms measures getting every NAR once in each form.
func (b *bench) oldNameForms(ctx context.Context, repo repository, nginx *child, old []file) ([]row, error) {
	flags := b.serveFlags
	defer func() { b.serveFlags = flags }()
	b.serveFlags = flags + " --old-names-cache 0"
	stored, err := b.serveRepository(ctx, repo, b.splitter)
	if err != nil {
		return nil, err
	}
	defer func() { stored.kill() }()
	current, err := currentNames(ctx, stored.url, filepath.Join(b.corpus, "gen0", "xz"))
	if err != nil {
		return nil, err
	}
	forms := []struct {
		what   string
		server *child
		files  []file
	}{
		{"stored, without compressing", stored, old},
		{"nginx, the .nar.xz", nginx, old},
		{"new names, zstd frames", stored, current},
	}
	bytes, cpus := make([][]float64, len(forms)), make([][]float64, len(forms))
	for i := range b.rounds {
		for j, f := range forms {
			before, err := f.server.groupCPU()
			if err != nil {
				return nil, err
			}
			n, err := getAll(ctx, f.server.url, f.files)
			if err != nil {
				return nil, err
			}
			after, err := f.server.groupCPU()
			if err != nil {
				return nil, err
			}
			bytes[j] = append(bytes[j], float64(n)/1e6)
			cpus[j] = append(cpus[j], (after-before).Seconds()*1e3)
			b.progress("round %d of %d, %s: %.1f MB, %.0f ms CPU", i+1, b.rounds, f.what, float64(n)/1e6, (after-before).Seconds()*1e3)
		}
	}
	var rows []row
	for _, j := range []int{0, 2} {
		rows = append(rows,
			compare("bytes: "+forms[j].what, "MB", bytes[j], forms[1].what, bytes[1], nil),
			compare("CPU: "+forms[j].what, "ms", cpus[j], forms[1].what, cpus[1], nil))
	}
	return rows, nil
}

// replayOldNames replays downloads of which few names have the most, one after another,
// without a cache and with one.
func (b *bench) replayOldNames(ctx context.Context, repo repository, nginx *child, old []file) ([]row, error) {
	flags := b.serveFlags
	defer func() { b.serveFlags = flags }()
	var sent, cpu [2]float64
	var real float64
	var stats struct {
		OldNames struct{ Hits, Misses, Encoded, Bytes int64 } `json:"old_names"`
	}
	for i, size := range []string{"0", "2GiB"} {
		b.serveFlags = flags + " --old-names-cache " + size
		server, err := b.serveRepository(ctx, repo, b.splitter)
		if err != nil {
			return nil, err
		}
		defer server.kill()
		names := zipf(old)
		for some := range slices.Chunk(names, zipfPause) {
			n, err := getAll(ctx, server.url, some)
			if err == nil {
				err = encoded(ctx, server.url)
			}
			if err != nil {
				return nil, err
			}
			sent[i] += float64(n) / 1e6
		}
		if i == 1 {
			out, err := b.command(ctx, repo, "stats", "--json").Output()
			if err == nil {
				err = json.Unmarshal(out, &stats)
			}
			if err != nil {
				return nil, fmt.Errorf("stats: %w", err)
			}
			real = 0
			for _, f := range names {
				real += float64(f.size) / 1e6
			}
		}
		took, err := server.stop() // with xz
		if err != nil {
			return nil, err
		}
		cpu[i] = took.Seconds()
		b.progress("replay, cache %s: %.1f MB, %.1f s CPU", size, sent[i], cpu[i])
	}
	s := stats.OldNames
	return []row{
		compare(fmt.Sprintf("%d downloads by zipf, sent with a cache", zipfDownloads), "MB", sent[1:], "without", sent[:1], nil),
		compare("the same, against the .nar.xz", "MB", sent[1:], "nginx", []float64{real}, nil),
		compare("the same, CPU, with encoding", "s", cpu[1:], "without", cpu[:1], nil),
		{What: fmt.Sprintf("the same, of %d downloads from %d files", s.Hits, s.Encoded), Unit: "MB on disk", Value: float64(s.Bytes) / 1e6},
	}, nil
}

// encoded waits until a server encodes nothing.
func encoded(ctx context.Context, url string) error {
	for {
		resp, err := get(ctx, url+"/metrics")
		if err != nil {
			return err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(text), "\ndedupd_old_names_waiting ") || strings.Contains(string(text), "\ndedupd_old_names_waiting 0\n") {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// zipf returns downloads of files, always the same ones.
func zipf(files []file) []file {
	random := rand.New(rand.NewPCG(1, 2))
	z := rand.NewZipf(random, 1.1, 1, uint64(len(files)-1))
	order := random.Perm(len(files))
	var downloads []file
	for range zipfDownloads {
		downloads = append(downloads, files[order[z.Uint64()]])
	}
	return downloads
}

// currentNames returns the URLs in the narinfos of a server, of the paths in a directory.
func currentNames(ctx context.Context, url, dir string) (files []file, err error) {
	infos, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, name := range infos {
		resp, err := get(ctx, url+"/"+filepath.Base(name))
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		if path := "/" + fields(text)["URL"]; !seen[path] {
			seen[path] = true
			files = append(files, file{path: path})
		}
	}
	return files, nil
}

// getAll gets files one after another, and returns how many bytes came.
func getAll(ctx context.Context, url string, files []file) (total int64, err error) {
	for _, f := range files {
		resp, err := get(ctx, url+f.path)
		if err != nil {
			return total, err
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return total, fmt.Errorf("GET %s: %w", f.path, err)
		}
		total += n
	}
	return total, nil
}
