// Package gateway serves a store to Nix as a binary cache over HTTP, and takes uploads
// from it.
//
//	/ search?q= path/<hash part>            GET HEAD       pages for people; see package site
//	metrics                                 GET HEAD       of the server, for Prometheus
//	healthz, readyz[?write=1]               GET HEAD       the server answers; the store can be used
//	debug/pprof/[<profile>]                 GET HEAD       profiles of the server, with the right Admin
//	nix-cache-info                          GET HEAD PUT   PUT is accepted and ignored
//	<hash part>.narinfo                     GET HEAD PUT
//	<hash part>.ls                          GET HEAD PUT   made from the NAR unless uploaded
//	nar/<NarHash>-<layout>.nar.zst          GET HEAD       zstd frames as they are stored
//	nar/<NarHash>.nar                       GET HEAD       the NAR itself
//	nar/<file>                              GET HEAD PUT   a NAR under the name of its upload
//	nar/<NarHash or file>/ls                GET HEAD       the listing of a NAR
//	log/<derivation>                        GET HEAD PUT   small files, as uploaded
//	debuginfo/<build ID>[.debug]            GET HEAD PUT
//	realisations/<id>.doi                   GET HEAD PUT
//	build-trace-v2/<derivation>/<out>.doi   GET HEAD PUT
//	serve/<store path>/<file>               GET HEAD       a file, or what is in a directory
//	api/v1/missing                          POST           which of many paths are not here
//
// What is at the names of Nix (narinfos, listings, NARs by file, small files) and not in the
// store is looked for in upstreams, if there are any: see package pull.
//
// What clients rely on, and what this package therefore never does, is in each file's
// comments; the versions of Nix that were tried are 2.8, 2.26 and 2.34. What Nix does not
// ask for is described in docs/protocol.md.
package gateway

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/encodings"
	"github.com/dedupd/dedupd/metrics"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/pull"
	"github.com/dedupd/dedupd/site"
	"github.com/dedupd/dedupd/upstream"
)

// Config are the settings of a gateway. Zero values mean the defaults.
type Config struct {
	// Keys sign every narinfo that is PUT, and those that one of VerifyKeys, or one of
	// themselves, has signed before, when they are served. They sign nothing else.
	Keys       []narinfo.PrivateKey
	VerifyKeys []narinfo.PublicKey
	// TrustedKeys, if there are any, are those of which one must have signed a narinfo
	// that is PUT.
	TrustedKeys []narinfo.PublicKey
	// Priority is what clients sort substituters by, lowest first; default 30, which is
	// before cache.nixos.org (40).
	Priority int
	// NoMassQuery tells clients not to ask for many paths at once.
	NoMassQuery bool
	// Access says who may do what. The default is that everyone may read, and that this
	// machine may write.
	Access *access.Policy
	// TLS encrypts what Serve serves, except on Unix sockets; nil for nothing. It has
	// HTTP/2 where NextProtos does.
	TLS *tls.Config
	// MaxNarInfo and MaxFile are the largest narinfo (default 4 MiB) and the largest log,
	// listing or other small file (default 64 MiB) that can be PUT, in decoded bytes.
	// That of NARs is the store's.
	MaxNarInfo, MaxFile int64
	// NarInfoCache and ListingCache bound, in bytes, what is remembered of rendered
	// narinfos (default 32 MiB) and generated listings (default 32 MiB). There is no listing
	// of a NAR that would take more than ListingCache by itself.
	NarInfoCache, ListingCache int64
	// NarInfoMaxAge is how long caches on the way may keep a narinfo; default 60 s.
	NarInfoMaxAge time.Duration
	// AckTimeout is how long a PUT of a narinfo, a log or a realisation waits for the bucket
	// to have it, and all that it relies on, before it is refused. What was taken in stays.
	// Zero answers as soon as it is on the disk.
	AckTimeout time.Duration
	// WriterURL is where clients are told to upload whom a store that only reads refuses;
	// "" for nowhere.
	WriterURL string
	// Pull gets from upstreams what the store lacks, for whoever may read; nil for nothing.
	Pull *pull.Puller
	// OldNames has smaller forms of NARs under the names of their uploads; nil for nothing.
	OldNames *encodings.Cache
	// IdleTimeout is how long a client may neither send nor take anything in the middle
	// of a body before it is dropped; default 60 s.
	IdleTimeout time.Duration
	// MaxConnections is how many connections clients may have open, to all listeners of a
	// Serve; default 4096. Beyond it, those that are idle for longest are closed.
	MaxConnections int
	// HeaderTimeout is how long a client may take to send a request's header; default 30 s.
	HeaderTimeout time.Duration
	// ShutdownTimeout is how long Serve lets running requests go on; default 30 s.
	ShutdownTimeout time.Duration
	// AccessLog has one line logged for each request.
	AccessLog bool
	// Import answers POST /import of AdminHandler; default none.
	Import http.Handler
	// Report answers POST /report of AdminHandler; default none.
	Report http.Handler
	// Site answers with pages for people; default none.
	Site *site.Site
	// MetricsRight is what it takes to get the metrics; default Read.
	MetricsRight access.Rights
	// Metrics takes the gateway's and the store's; default those of a new registry.
	Metrics *metrics.Metrics
	// Log takes what an operator should know; default slog.Default().
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	if c.Priority == 0 {
		c.Priority = 30
	}
	if c.MaxNarInfo == 0 {
		c.MaxNarInfo = 4 << 20
	}
	if c.MaxFile == 0 {
		c.MaxFile = 64 << 20
	}
	if c.NarInfoCache == 0 {
		c.NarInfoCache = 32 << 20
	}
	if c.ListingCache == 0 {
		c.ListingCache = 32 << 20
	}
	if c.NarInfoMaxAge == 0 {
		c.NarInfoMaxAge = time.Minute
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = time.Minute
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 4096
	}
	if c.HeaderTimeout == 0 {
		c.HeaderTimeout = 30 * time.Second
	}
	if c.ShutdownTimeout == 0 {
		c.ShutdownTimeout = 30 * time.Second
	}
	if c.MetricsRight == 0 {
		c.MetricsRight = access.Read
	}
	if c.Metrics == nil {
		c.Metrics = metrics.New("")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Access == nil {
		c.Access = &access.Policy{Anyone: access.Read, Local: access.Write, Log: c.Log}
	}
}

// A Gateway is the http.Handler of a binary cache. Clients that stall while they receive
// are only dropped where it is served by Serve.
type Gateway struct {
	store    *chunkstore.Store
	storeDir string
	cfg      Config
	log      *slog.Logger

	cacheInfo []byte
	vouched   []narinfo.PublicKey // whose signatures are the gateway's own
	cache     cacheControl
	narInfos  *otter.Cache[string, *narInfoText]      // by hash part
	listings  *otter.Cache[chunkstore.Hash, *listing] // by NarHash
	decoding  chan struct{}                           // slots for requests with a Content-Encoding
	asking    chan struct{}                           // slots for queries of many paths
	listSlots chan struct{}                           // slots for making listings
	served    counters
	requests  *requestMetrics
	metrics   http.Handler
	prober    *prober
}

// New returns a gateway to store, which stays the caller's to close.
func New(store *chunkstore.Store, cfg Config) *Gateway {
	cfg.setDefaults()
	g := &Gateway{
		store: store, storeDir: store.Repository().StoreDir, cfg: cfg, log: cfg.Log,
		narInfos: newNarInfoCache(cfg.NarInfoCache), listings: newListingCache(cfg.ListingCache),
		decoding: make(chan struct{}, maxDecoding),
		asking:   make(chan struct{}, maxAsking), listSlots: make(chan struct{}, maxListings),
		cache: newCacheControl(cfg.Access.Anyone.Has(access.Read), cfg.NarInfoMaxAge),
	}
	g.cacheInfo = g.makeCacheInfo()
	g.vouched = cfg.vouched()
	g.requests, g.metrics, g.prober = newRequestMetrics(cfg.Metrics.Registry), cfg.Metrics.Handler(), newProber(store)
	cfg.Metrics.Store(store)
	if cfg.OldNames != nil {
		cfg.Metrics.OldNames(cfg.OldNames)
	}
	cfg.Metrics.Cache("narinfo", func() (stats.Stats, uint64) { return g.narInfos.Stats(), g.narInfos.WeightedSize() })
	cfg.Metrics.Cache("listing", func() (stats.Stats, uint64) { return g.listings.Stats(), g.listings.WeightedSize() })
	return g
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resp := &response{ResponseWriter: w, start: time.Now(), who: access.Anyone}
	if r.ProtoMajor == 2 {
		resp.stall = g.stallTimeout
	}
	aborted := false
	if err := g.handle(resp, r); err != nil {
		aborted = !g.fail(resp, r, err)
	}
	if r.ContentLength != 0 {
		// net/http reads what is left of a short body, and has no time limit of its own.
		// A client that asked first and is refused sends nothing.
		wait := g.cfg.IdleTimeout
		if resp.status >= 400 && r.Header["Expect"] != nil {
			wait = min(wait, time.Second)
		}
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(wait))
	}
	took := time.Since(resp.start)
	g.requests.observe(resp, r.Method, took)
	if g.cfg.AccessLog {
		g.logRequest(resp, r, took, aborted)
	}
	if aborted {
		g.requests.aborted.Inc()
		panic(http.ErrAbortHandler) // net/http closes the connection, and says nothing
	}
}

func (g *Gateway) handle(w *response, r *http.Request) error {
	res, ok := parsePath(r.URL.Path)
	if ok {
		w.kind = res.kind
	}
	// Before anything else: who may not ask is told nothing, not even what there is. And
	// before the body is touched: net/http answers "Expect: 100-continue" at its first
	// read, so that a client that may not write has not sent anything.
	if err := g.authorize(w, r, res); err != nil {
		return err
	}
	if !ok {
		return refuse(http.StatusNotFound, "a binary cache has nothing at this URL")
	}
	if via := r.Header["Via"]; g.cfg.Pull != nil && via != nil {
		r = r.WithContext(upstream.WithVia(r.Context(), via...))
	}
	if !res.kind.allows(r.Method) {
		w.Header().Set("Allow", res.kind.methods())
		return refuse(http.StatusMethodNotAllowed, "use %s", res.kind.methods())
	}
	switch r.Method {
	case http.MethodPost:
		return g.postMissing(w, r)
	case http.MethodPut:
		if err := g.writable(w, r, res); err != nil {
			return err
		}
		// net/http cancels the context when the client ends its side. What is wrong then
		// is that the body is cut short, and that is found out by reading it.
		ctx, cancel := untilCutOff(r.Context())
		defer cancel()
		r = r.WithContext(ctx)
		err := g.put(w, r, res)
		if err == nil && res.kind.promised() {
			err = g.waitForBucket(ctx)
		}
		if err != nil {
			return fmt.Errorf("PUT %s: %w", res.name, err)
		}
		// Never 202, which Nix takes for an error.
		w.WriteHeader(http.StatusOK)
		return nil
	}
	if err := g.visible(r.Context(), w, res); err != nil {
		return err
	}
	return g.get(w, r, res)
}

func (g *Gateway) get(w *response, r *http.Request, res resource) error {
	switch res.kind {
	case kindCacheInfo:
		return g.getCacheInfo(w, r)
	case kindNarInfo:
		return g.getNarInfo(w, r, res)
	case kindListing:
		return g.getListing(w, r, res)
	case kindNARListing:
		return g.getNARListing(w, r, res)
	case kindNAR, kindFlatNAR:
		return g.getNAR(w, r, res)
	case kindInside:
		return g.getInside(w, r, res)
	case kindMetrics:
		w.Header().Set("Cache-Control", cacheNever)
		g.metrics.ServeHTTP(w, r)
		return nil
	case kindPage:
		return g.getPage(w, r)
	case kindProfile:
		w.Header().Set("Cache-Control", cacheNever)
		profiles.ServeHTTP(w, r)
		return nil
	case kindHealth:
		return g.getHealth(w, r)
	case kindReady:
		return g.getReady(w, r)
	}
	return g.getFile(w, r, res)
}

func (g *Gateway) put(w *response, r *http.Request, res resource) error {
	switch res.kind {
	case kindCacheInfo:
		return g.putCacheInfo(w, r)
	case kindNarInfo:
		return g.putNarInfo(w, r, res)
	case kindNAR:
		return g.putNAR(w, r, res)
	}
	return g.putFile(w, r, res)
}
