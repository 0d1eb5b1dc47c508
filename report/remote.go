package report

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
)

// A process that has the store reports to one that has not, over HTTP:
//
//	POST   a request in JSON
//	200    lines of JSON, each a message; the report, or an error, is the last one
//
// The work ends when the client goes away.

type request struct {
	Closures []string `json:"closures,omitempty"`
	Top      int      `json:"top,omitempty"`
	Packages bool     `json:"packages"` // whether each is wanted
	Paths    bool     `json:"paths"`
}

// A message is one of these.
type message struct {
	Progress *Progress `json:"progress,omitempty"`
	Package  *Package  `json:"package,omitempty"`
	Path     *sentPath `json:"path,omitempty"`
	Report   *Report   `json:"report,omitempty"`
	Error    string    `json:"error,omitempty"`
}

// A sentPath is a Path; its narinfo goes as text.
type sentPath struct {
	StoreDir string    `json:"store_dir"`
	NarInfo  string    `json:"narinfo"`
	Writer   time.Time `json:"writer"`
	Wire     int64     `json:"wire"`
	Own      int64     `json:"own"`
	Shared   int64     `json:"shared"`
}

const (
	maxRequest   = 1 << 20 // bytes
	flushMessage = time.Second
)

// Handler reports on store for clients of Ask, with the memory and the directory of opts.
func Handler(store *chunkstore.Store, opts Options, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req request
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		lines, flush, flushed := json.NewEncoder(w), http.NewResponseController(w).Flush, time.Now()
		opts := opts
		opts.Closures, opts.Top = req.Closures, req.Top
		if req.Packages {
			opts.Package = func(p *Package) error { return lines.Encode(&message{Package: p}) }
		}
		if req.Paths {
			opts.Path = func(p *Path) error {
				return lines.Encode(&message{Path: &sentPath{p.StoreDir, p.Text(p.StoreDir), p.Writer, p.Wire, p.Own, p.Shared}})
			}
		}
		opts.Progress = func(p Progress) {
			if now := time.Now(); now.Sub(flushed) >= flushMessage && lines.Encode(&message{Progress: &p}) == nil {
				flushed = now
				flush() // when the client is gone, the request's context ends the work
			}
		}
		made, err := Make(r.Context(), store, opts)
		last := &message{Report: made}
		if err != nil {
			log.Error("request of the operator failed", "path", r.URL.Path, "err", err)
			last.Error = err.Error()
		}
		if err := lines.Encode(last); err != nil {
			log.Info("request was not completed", "path", r.URL.Path, "err", err)
		}
	})
}

// Ask has the server at url do what Make does here. The functions among opts are called
// here; memory and directory are the server's.
func Ask(ctx context.Context, client *http.Client, url string, opts Options) (*Report, error) {
	body, err := json.Marshal(&request{opts.Closures, opts.Top, opts.Package != nil, opts.Path != nil})
	if err != nil {
		return nil, err
	}
	opts.setDefaults()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return nil, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	lines := json.NewDecoder(resp.Body)
	for {
		var m message
		if err := lines.Decode(&m); errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the server has ended the report: %w", io.ErrUnexpectedEOF)
		} else if err != nil {
			return nil, err
		}
		switch {
		case m.Report != nil:
			return m.Report, nil
		case m.Error != "":
			return nil, errors.New(m.Error)
		case m.Progress != nil:
			opts.Progress(*m.Progress)
		case m.Package != nil:
			err = opts.Package(m.Package)
		case m.Path != nil && opts.Path != nil:
			err = m.Path.pass(opts.Path)
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *sentPath) pass(fn func(*Path) error) error {
	info, err := narinfo.Parse([]byte(p.NarInfo), p.StoreDir)
	if err != nil {
		return err
	}
	return fn(&Path{info, p.StoreDir, p.Writer, p.Wire, p.Own, p.Shared})
}
