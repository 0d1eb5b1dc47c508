package prices_test

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/prices"
)

func builtin(t testing.TB) prices.Table {
	t.Helper()
	table, err := prices.Load("")
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// Each example was computed by hand.
func TestCost(t *testing.T) {
	for _, c := range []struct {
		name, provider string
		usage          prices.Usage
		want           prices.Cost
	}{
		{"nothing", "aws-s3-standard", prices.Usage{}, prices.Cost{}},
		{"requests", "aws-s3-standard", prices.Usage{Writes: 2e6, Lists: 1e6, Reads: 10e6, Deletes: 5e6}, prices.Cost{Requests: 10 + 5 + 4}},
		{"first tier", "aws-s3-standard", prices.Usage{Stored: 2e12}, prices.Cost{Storage: 46}},
		// 50 at 23, 450 at 22, 45.7 at 21.
		{"all tiers", "aws-s3-standard", prices.Usage{Stored: 545.7e12}, prices.Cost{Storage: 1150 + 9900 + 959.7}},
		// 10 at 90, 40 at 85, 100 at 70, 350 at 50.
		{"egress", "aws-s3-standard", prices.Usage{Egress: 500e12}, prices.Cost{Egress: 900 + 3400 + 7000 + 17500}},
		// A million objects of 1 kB are billed as 131.072 GB.
		{"small objects", "aws-s3-standard-ia", prices.Usage{Objects: 1e6, Stored: 1e9, Retrieved: 3e12}, prices.Cost{Storage: 0.131072 * 12.5, Retrieval: 30}},
		{"large objects", "aws-s3-standard-ia", prices.Usage{Objects: 1e6, Stored: 32e12}, prices.Cost{Storage: 400}},
		{"nothing for egress", "cloudflare-r2", prices.Usage{Reads: 1e6, Stored: 1e12, Egress: 1e15}, prices.Cost{Requests: 0.36, Storage: 15}},
		{"three times what is stored", "backblaze-b2", prices.Usage{Stored: 1e12, Egress: 3e12}, prices.Cost{Storage: 6}},
		{"more", "backblaze-b2", prices.Usage{Stored: 1e12, Egress: 5e12}, prices.Cost{Storage: 6, Egress: 20}},
		{"a TB is free", "hetzner", prices.Usage{Egress: 1.5e12}, prices.Cost{Egress: 0.5}},
		{"yours", "self-hosted", prices.Usage{Writes: 1e6, Stored: 1e15, Egress: 1e15}, prices.Cost{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := builtin(t).Provider(c.provider)
			if err != nil {
				t.Fatal(err)
			}
			got := p.Cost(c.usage)
			for _, v := range []struct{ got, want float64 }{
				{got.Requests, c.want.Requests}, {got.Storage, c.want.Storage}, {got.Retrieval, c.want.Retrieval},
				{got.Egress, c.want.Egress}, {got.Total(), c.want.Total()},
			} {
				if math.Abs(v.got-v.want) > 1e-6 {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
			}
		})
	}
}

func TestBadTables(t *testing.T) {
	for text, says := range map[string]string{
		"[a]\nwrits = 1.0":                                   "a.writs",
		"[a]\nwrites = -1.0":                                 "no price",
		"[a]\nreads = nan":                                   "no price",
		"[a]\nstorage = [{tb = 1.0, price = 1.0}]":           "tier 1",
		"[a]\negress = [{price = 1.0}, {price = 1.0}]":       "tier 1",
		"[a]\nstorage = [{tb = -1.0, price = 1.0}]":          "tier 1",
		"[a]\nstorage = [{tb = 1.0, price = 1.0}, {tb = 1}]": "tier 2",
		"a = 1": "a",
		"[":     "line 1",
	} {
		path := filepath.Join(t.TempDir(), "prices.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := prices.Load(path); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %v, want an error about %q", text, err, says)
		}
	}
	if _, err := prices.Load("/does/not/exist"); err == nil {
		t.Error("a file that is not there was read")
	}
	if _, err := builtin(t).Provider("nobody"); err == nil || !strings.Contains(err.Error(), "wasabi") {
		t.Errorf("got %v, want the names of those that there are", err)
	}
}
