package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/encodings"
)

// Stats are the statistics of a store, and of the gateway that serves it, if there is
// one.
type Stats struct {
	Store  *chunkstore.Stats `json:"store"`
	Served *Served           `json:"served,omitempty"`
	// OldNames are downloads under the names of uploads, if there is a cache for them.
	OldNames *encodings.Stats `json:"old_names,omitempty"`
}

// WriteText writes the statistics for people.
func (s *Stats) WriteText(w io.Writer) error {
	if err := s.Store.WriteText(w); err != nil || s.Served == nil || s.Served.NARBytes == 0 {
		return err
	}
	sent, of := float64(s.Served.Bytes), float64(s.Served.NARBytes)
	_, err := fmt.Fprintf(w, "\nsince the server was started, %.1f MB were sent for %.1f MB of NARs: %.2f bytes for each byte\n", sent/1e6, of/1e6, sent/of)
	if old := s.OldNames; err == nil && old != nil && old.Hits+old.Misses > 0 {
		_, err = fmt.Fprintf(w, "old names: %d downloads, %d of them from %d files that take %.1f of %.1f MB; %.1f MB were sent of files, %.1f MB as large as the NARs\n",
			old.Hits+old.Misses, old.Hits, old.Files, float64(old.Bytes)/1e6, float64(old.Limit)/1e6, float64(old.HitBytes)/1e6, float64(old.MissBytes)/1e6)
	}
	return err
}

// AdminHandler returns the handler of what only the operator may ask. It checks nobody:
// it belongs on a socket that only the operator can open.
//
//	GET /stats               Stats
//	GET /check?read-data=1   chunkstore.CheckReport
//	POST /check              chunkstore.CheckReport, after repairing
//	POST /import             what Config.Import does
//	POST /report             what Config.Report does
//	POST /snapshot           chunkstore.SnapshotReport, after writing one
//	GET /readyz?write=1      Readiness, always with status 200
//	GET /metrics             as in the gateway
//	GET /debug/pprof/        as in the gateway
func (g *Gateway) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	if g.cfg.Import != nil {
		mux.Handle("POST /import", g.cfg.Import)
	}
	if g.cfg.Report != nil {
		mux.Handle("POST /report", g.cfg.Report)
	}
	mux.Handle("GET /metrics", g.metrics)
	mux.Handle("GET /debug/pprof/", profiles)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		g.reply(w, r, func(context.Context) (any, error) { return g.readiness(r), nil })
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		g.reply(w, r, func(ctx context.Context) (any, error) {
			stats, err := g.store.Stats(ctx)
			served := g.Served()
			all := &Stats{Store: stats, Served: &served}
			if g.cfg.OldNames != nil {
				old := g.cfg.OldNames.Stats()
				all.OldNames = &old
			}
			return all, err
		})
	})
	mux.HandleFunc("GET /check", func(w http.ResponseWriter, r *http.Request) {
		g.reply(w, r, func(ctx context.Context) (any, error) {
			return g.store.Check(ctx, chunkstore.CheckOptions{ReadData: r.FormValue("read-data") == "1"})
		})
	})
	mux.HandleFunc("POST /snapshot", func(w http.ResponseWriter, r *http.Request) {
		g.reply(w, r, func(ctx context.Context) (any, error) { return g.store.WriteSnapshot(ctx) })
	})
	mux.HandleFunc("POST /check", func(w http.ResponseWriter, r *http.Request) {
		g.reply(w, r, func(ctx context.Context) (any, error) {
			return g.store.Check(ctx, chunkstore.CheckOptions{Repair: true})
		})
	})
	return mux
}

// reply answers with what fn returns, as JSON.
func (g *Gateway) reply(w http.ResponseWriter, r *http.Request, fn func(context.Context) (any, error)) {
	v, err := fn(r.Context())
	if err != nil {
		g.log.Error("request of the operator failed", "path", r.URL.Path, "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		g.log.Info("request was not completed", "path", r.URL.Path, "err", err)
	}
}
