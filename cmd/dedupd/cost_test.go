package main

import (
	"encoding/json"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/bucket/s3test"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/prices"
	"github.com/dedupd/dedupd/report"
)

// 2,000 paths of 10 chunks each, in 40 packs of 25 MB, and what they cost by hand.
func TestCostOf(t *testing.T) {
	st := &chunkstore.Stats{
		StorePaths: 2000, Chunks: 20_000, FrameBytes: 990e6, StoredBytes: 1e9, UploadedBytes: 2e9, Objects: 41,
		Requests: &chunkstore.RequestStats{Total: bucket.Requests{Put: 60, List: 40, Get: 900, Head: 100, Delete: 5}},
	}
	p, err := defaultSettings().priceTable()
	if err != nil {
		t.Fatal(err)
	}
	c := report.CostOf(st, prices.Default, p)
	for _, v := range []struct {
		what      string
		got, want float64
	}{
		{"requests so far", c.SoFar.Total(), 100*5e-6 + 1000*0.4e-6},
		{"a month", c.Month.Total(), 0.023},
		{"PUTs a path", c.Here.Puts, 0.05},
		{"writing 1,000 paths", c.Here.Write, 50 * 5e-6},
		{"storing them", c.Here.Month, 0.0115},
		{"plain: PUTs", c.Plain.Puts, 2},
		{"plain: writing", c.Plain.Write, 0.01},
		{"plain: storing", c.Plain.Month, 0.023},
		{"chunks: PUTs", c.Chunk.Puts, 10},
		{"chunks: writing", c.Chunk.Write, 0.05},
	} {
		if math.Abs(v.got-v.want) > 1e-9 {
			t.Errorf("%s: got %v, want %v", v.what, v.got, v.want)
		}
	}
	var text strings.Builder
	r := &statsReport{Cost: c}
	r.Store = st
	if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "$0.0100") {
		t.Errorf("%v\n%s", err, text.String())
	}
	st.Requests = nil
	if got := report.CostOf(st, prices.Default, p); got != nil {
		t.Errorf("a directory costs %+v", got)
	}
}

// The operator's own table is used, and has to have the provider.
func TestPriceTable(t *testing.T) {
	s := defaultSettings()
	s.Prices, s.Provider = filepath.Join(t.TempDir(), "prices.toml"), "mine"
	if err := os.WriteFile(s.Prices, []byte("[mine]\nwrites = 7.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := s.priceTable(); err != nil || p.Writes != 7 {
		t.Errorf("got %+v, %v", p, err)
	}
	s.Provider = "yours"
	if _, err := s.priceTable(); err == nil || !strings.Contains(err.Error(), "mine") {
		t.Errorf("got %v, want an error with the names that there are", err)
	}
}

// A server on S3 says what it has sent, and what that costs, while it runs and afterwards.
func TestStatsOnS3(t *testing.T) {
	dir := t.TempDir()
	url := s3test.Start(t, "versitygw").NewBucket(t, "bucket")
	server, err := startChild(dir, "--bucket", url)
	if err != nil {
		t.Fatal(err)
	}
	defer server.kill()
	if err := server.ready(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(server.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.Contains(string(metrics), `dedupd_bucket_requests_total{method="put"} `) {
		t.Errorf("the metrics (%v) do not have the requests:\n%s", err, metrics)
	}
	stats := func() *statsReport {
		t.Helper()
		out, err := dedupd(t, "", "stats", "--json", "--provider", "wasabi", "--bucket", url, "--state", filepath.Join(dir, "state"))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var r statsReport
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		if r.Cost == nil || r.Cost.Provider != "wasabi" || r.Store.Requests.Process.Put == 0 {
			t.Errorf("got %s", out)
		}
		return &r
	}
	running := stats().Store.Requests
	if err := server.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	server.cmd.Wait()
	if after := stats().Store.Requests; after.Total.Put < running.Total.Put+after.Process.Put {
		t.Errorf("got %+v after %+v", after, running)
	}
}
