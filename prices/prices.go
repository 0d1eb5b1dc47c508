// Package prices says what object storage costs, by tables that operators can edit.
package prices

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// A Table is the providers that a file of prices has, by name.
type Table map[string]*Provider

// A Provider is what one of them takes, in US dollars; prices.toml says what the keys mean.
// The zero Provider takes nothing.
type Provider struct {
	Storage   []Tier  `toml:"storage"`
	Writes    float64 `toml:"writes"`
	Lists     float64 `toml:"lists"`
	Reads     float64 `toml:"reads"`
	Deletes   float64 `toml:"deletes"`
	Retrieval float64 `toml:"retrieval"`

	Egress          []Tier  `toml:"egress"`
	FreeEgress      float64 `toml:"free-egress"`
	FreeEgressTimes float64 `toml:"free-egress-times"`

	MinObject int64  `toml:"min-object"`
	Source    string `toml:"source"`
	Note      string `toml:"note"`
}

// A Tier is the next TB of a month, all that is left if TB is 0, and the price of each.
type Tier struct {
	TB    float64 `toml:"tb"`
	Price float64 `toml:"price"`
}

//go:embed prices.toml
var builtin string

// Default is the provider whose prices are meant if nobody says which.
const Default = "aws-s3-standard"

// Load reads the table at path; "" is the one that is built in.
func Load(path string) (Table, error) {
	text := builtin
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read prices: %w", err)
		}
		text = string(b)
	}
	t, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("prices in %s: %w", path, err)
	}
	return t, nil
}

func parse(text string) (Table, error) {
	var t Table
	md, err := toml.Decode(text, &t)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, key := range md.Undecoded() {
		errs = append(errs, fmt.Errorf("there is no price %q", key))
	}
	for name, p := range t {
		if err := p.check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return t, errors.Join(errs...)
}

func (p *Provider) check() error {
	for _, v := range []float64{p.Writes, p.Lists, p.Reads, p.Deletes, p.Retrieval, p.FreeEgress, p.FreeEgressTimes, float64(p.MinObject)} {
		if v < 0 || math.IsInf(v, 0) || math.IsNaN(v) {
			return fmt.Errorf("%v is no price", v)
		}
	}
	for _, tiers := range [][]Tier{p.Storage, p.Egress} {
		for i, t := range tiers {
			if last := i == len(tiers)-1; !(t.TB >= 0 && t.Price >= 0) || last != (t.TB == 0) {
				return fmt.Errorf("tier %d: the last tier, and no other, has no tb", i+1)
			}
		}
	}
	return nil
}

// Provider returns the prices of a provider.
func (t Table) Provider(name string) (*Provider, error) {
	if p := t[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("there are no prices of provider %q, only of %s", name, strings.Join(slices.Sorted(maps.Keys(t)), ", "))
}

// Usage is what is asked of a provider in one month. Bytes are those of Stored that are
// kept for all of it, in so many Objects, of Retrieved that are read, and of Egress that
// leave the provider's network.
type Usage struct {
	Writes, Lists, Reads, Deletes float64 // requests
	Objects                       float64
	Stored, Retrieved, Egress     float64 // bytes
}

// A Cost is in dollars.
type Cost struct {
	Requests  float64 `json:"requests"`
	Storage   float64 `json:"storage"`
	Retrieval float64 `json:"retrieval"`
	Egress    float64 `json:"egress"`
}

// Total is the sum.
func (c Cost) Total() float64 { return c.Requests + c.Storage + c.Retrieval + c.Egress }

const tb = 1e12

// Cost returns what u costs. Objects that are billed as larger than they are count as if
// all were of the same size. Requests have no tiers: those of any time can be asked for.
func (p *Provider) Cost(u Usage) Cost {
	free := p.FreeEgress + p.FreeEgressTimes*u.Stored/tb
	return Cost{
		Requests:  (u.Writes*p.Writes + u.Lists*p.Lists + u.Reads*p.Reads + u.Deletes*p.Deletes) / 1e6,
		Storage:   inTiers(p.Storage, max(u.Stored, u.Objects*float64(p.MinObject))/tb),
		Retrieval: p.Retrieval * u.Retrieved / tb,
		Egress:    inTiers(p.Egress, max(0, u.Egress/tb-free)),
	}
}

func inTiers(tiers []Tier, left float64) (dollars float64) {
	for _, t := range tiers {
		n := left
		if t.TB > 0 {
			n = min(left, t.TB)
		}
		dollars += n * t.Price
		left -= n
	}
	return dollars
}
