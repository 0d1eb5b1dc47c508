// Package site is what a cache shows to people: what it holds, how to use it, and each
// store path in it.
//
//	/                    how to use the cache, and what it holds
//	/search?q=<words>    store paths by path, hash part or a part of the name
//	/path/<hash part>    one store path
//
// Pages work without scripts, and have none. Nothing that takes long is done when
// one is asked for: what needs all of the index is counted in the background.
package site

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
)

// Config are the settings of a Site.
type Config struct {
	Store *chunkstore.Store
	// State is the directory where the history of the cache's size is kept.
	State string
	// URL is where clients find the cache; by default what a request says.
	URL string
	// Keys are the public keys that clients should trust.
	Keys []string
	// Private says that reading needs a token.
	Private bool
	// Memory bounds, in bytes, the table of names that are searched; another one of that
	// size is there while a new one is made. Default 16 MiB, for about 250,000 paths.
	Memory int64
	Log    *slog.Logger
}

// A Site answers requests for pages. Its methods may be called concurrently.
type Site struct {
	cfg      Config
	storeDir string

	last      atomic.Pointer[survey]
	wanted    chan struct{} // to Run: somebody looks; capacity 1
	first     chan struct{} // closed when there is a survey
	firstOnce sync.Once
}

// New returns a Site. What it says of the whole cache is only counted while Run runs.
func New(cfg Config) *Site {
	if cfg.Memory == 0 {
		cfg.Memory = 16 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Site{
		cfg: cfg, storeDir: cfg.Store.Repository().StoreDir,
		wanted: make(chan struct{}, 1), first: make(chan struct{}),
	}
}

// Serve answers a GET or HEAD of one of the URLs above, for somebody who may read. An
// error is one of the store, and nothing has been written then.
func (s *Site) Serve(w http.ResponseWriter, r *http.Request, who *access.Identity) error {
	p, err := s.page(r, who)
	if err != nil {
		return err
	}
	if p.redirect != "" {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Location", p.redirect)
		w.WriteHeader(http.StatusSeeOther)
		return nil
	}
	var body bytes.Buffer
	if err := templates.ExecuteTemplate(&body, p.template, p); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", securityPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	// It says where it was asked for, and to whom it was shown.
	h.Set("Cache-Control", "private, no-cache")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(p.status)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err = io.Copy(w, &body)
	return err
}

// A page is what a template is filled with.
type page struct {
	template string
	status   int
	redirect string

	Title string
	Host  string // of the cache
	Query string // of the search
	Data  any
}

// notFound is a page for what is not there.
func (s *Site) notFound(p *page, what string) *page {
	p.template, p.status, p.Title, p.Data = "notfound", http.StatusNotFound, "Not found", what
	return p
}

func (s *Site) page(r *http.Request, who *access.Identity) (*page, error) {
	url := s.url(r)
	p := &page{status: http.StatusOK, Host: hostOf(url)}
	path := strings.TrimPrefix(r.URL.Path, "/")
	switch path {
	case "":
		p.template, p.Title, p.Data = "home", "Nix binary cache", s.home(r.Context(), url, who)
		return p, nil
	case "search":
		return s.search(r.Context(), p, r.URL.Query().Get("q"), who)
	}
	return s.path(r.Context(), p, strings.TrimPrefix(path, "path/"), who)
}

// url is where the client of r finds the cache.
func (s *Site) url(r *http.Request) string {
	if s.cfg.URL != "" {
		return strings.TrimSuffix(s.cfg.URL, "/")
	}
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

func hostOf(url string) string {
	_, host, _ := strings.Cut(url, "://")
	return host
}

// find returns the narinfo of a path that who may see, nil if there is none.
func (s *Site) find(ctx context.Context, hashPart string, who *access.Identity) (*narinfo.NarInfo, error) {
	info, err := s.cfg.Store.NarInfo(ctx, hashPart)
	if errors.Is(err, chunkstore.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if !who.Covers(info.StorePath.Name()) {
		return nil, nil
	}
	return info, nil
}
