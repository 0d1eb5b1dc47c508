package site

import (
	"context"
	"time"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/chunkstore"
)

// home is what the first page says.
type home struct {
	URL, Host string
	Keys      []string
	Private   bool
	StoreDir  string // if it is not the usual one

	Counted  bool // what follows
	Stats    *chunkstore.Stats
	Age      time.Duration
	Timeline *timeline // nil for none
	Packages []pkgBar
	Lossy    bool // packages were forgotten on the way
}

// A pkgBar is a package with the length of its bar, in percent.
type pkgBar struct {
	pkg
	Percent float64
}

func (s *Site) home(ctx context.Context, url string, who *access.Identity) *home {
	h := &home{URL: url, Host: machine(hostOf(url)), Keys: s.cfg.Keys, Private: s.cfg.Private}
	if s.storeDir != chunkstore.DefaultStoreDir {
		h.StoreDir = s.storeDir
	}
	v := s.look(ctx)
	if v == nil {
		return h
	}
	h.Counted, h.Stats, h.Age = true, v.stats, time.Since(v.at)
	if v.stats.StorePaths == 0 {
		return h
	}
	h.Timeline = newTimeline(v.history)
	if who.Limited() {
		return h // names are not for everyone
	}
	h.Lossy = v.lossy
	for _, p := range v.packages {
		h.Packages = append(h.Packages, pkgBar{p, 100 * float64(p.Bytes) / float64(max(v.packages[0].Bytes, 1))})
	}
	return h
}

// machine is what a netrc file calls a host: without its port.
func machine(host string) string {
	for i := len(host) - 1; i >= 0; i-- {
		switch c := host[i]; {
		case c == ':' && i+1 < len(host):
			return host[:i]
		case c < '0' || c > '9':
			return host
		}
	}
	return host
}
