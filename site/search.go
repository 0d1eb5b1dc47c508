package site

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/narinfo"
)

const (
	maxQuery   = 300 // bytes
	minQuery   = 2
	maxResults = 100
	// maxLooked is how many paths are looked at for the results: those that are gone, or
	// that are not for this client, are none.
	maxLooked = 2000
)

// results are what a search has found.
type results struct {
	Paths   []*narinfo.NarInfo
	More    bool          // there are more
	Problem string        // why there was no search
	Age     time.Duration // of the table of names
	Left    int           // paths whose names are not in it
	Exact   bool          // a whole path was asked for
}

// search answers /search. A hash part, with or without what may be around it, leads to its
// page; everything else is looked for in the names.
func (s *Site) search(ctx context.Context, p *page, query string, who *access.Identity) (*page, error) {
	query = strings.TrimSpace(query)
	p.template, p.Title, p.Query = "search", "Search", query
	found := &results{}
	p.Data = found
	switch {
	case query == "":
		return p, nil
	case len(query) > maxQuery, !utf8.ValidString(query):
		p.Query, p.status = "", http.StatusBadRequest
		found.Problem = "Nothing is called like that: a name has 211 characters at most."
		return p, nil
	}
	if hashPart, ok := s.hashPart(query); ok {
		info, err := s.find(ctx, hashPart, who)
		if err != nil {
			return nil, err
		}
		if info != nil {
			p.redirect = "/path/" + hashPart
			return p, nil
		}
		found.Exact = true
		return p, nil
	}
	if len(query) < minQuery {
		found.Problem = "Type two characters at least."
		return p, nil
	}
	v := s.look(ctx)
	if v == nil {
		found.Problem = "The names are being read. Search again in a moment; a whole store path can be found at once."
		return p, nil
	}
	found.Age, found.Left = time.Since(v.at), v.names.left
	return p, s.searchNames(ctx, v, strings.TrimPrefix(query, s.storeDir+"/"), who, found)
}

func (s *Site) searchNames(ctx context.Context, v *survey, what string, who *access.Identity, found *results) (err error) {
	looked := 0
	v.names.search(what, func(hashPart string) bool {
		looked++
		if len(found.Paths) == maxResults || looked > maxLooked {
			found.More = true
			return false
		}
		var info *narinfo.NarInfo
		if info, err = s.find(ctx, hashPart, who); err != nil {
			return false
		}
		if info != nil {
			found.Paths = append(found.Paths, info)
		}
		return true
	})
	slices.SortFunc(found.Paths, func(a, b *narinfo.NarInfo) int {
		return cmp.Or(strings.Compare(a.StorePath.Name(), b.StorePath.Name()), a.StorePath.Compare(b.StorePath))
	})
	return err
}

// hashPart returns the hash part of what may be a store path, in a store path or not, or a
// file in one, or a hash part alone.
func (s *Site) hashPart(query string) (string, bool) {
	base := strings.TrimPrefix(query, s.storeDir+"/")
	if len(base) < narinfo.HashPartLen || !narinfo.IsHashPart(base[:narinfo.HashPartLen]) {
		return "", false
	}
	rest := base[narinfo.HashPartLen:]
	return base[:narinfo.HashPartLen], rest == "" || rest[0] == '-' || rest == ".narinfo"
}
