package migrate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/upstream"
)

// A process that has the store imports for one that has not, over HTTP:
//
//	POST   a Request in a line of JSON; if it says so, after that a hash part in each line, or
//	       a stream
//	200    lines of JSON, each a message: progress now and then, what is left out, and the
//	       report as the last one
//
// The import ends when the client goes away.

// A Request is what is to be imported.
type Request struct {
	Source  json.RawMessage `json:"source"` // of which the server makes a source
	Options Options         `json:"options"`
	// HasPaths says that paths follow; else all that the source has is to be imported.
	HasPaths bool `json:"has_paths"`
	// HasStream says that what nix-store --export has written follows, and is the source.
	HasStream bool `json:"has_stream"`
}

// A message is one of these.
type message struct {
	Progress *Counts `json:"progress,omitempty"`
	Skip     *Skip   `json:"skip,omitempty"`
	Report   *Report `json:"report,omitempty"`
	Error    string  `json:"error,omitempty"` // of the import, with the report
}

const progressInterval = time.Second

// Handler imports into store for clients of Ask, and signs with keys if they say so. What it
// opens that is an io.Closer it closes.
func Handler(store *chunkstore.Store, open func(ctx context.Context, source json.RawMessage) (upstream.Source, error), keys []narinfo.PrivateKey, warn func(string, ...any)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := bufio.NewReader(r.Body)
		var req Request
		line, err := body.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &req)
		}
		var source upstream.Source
		if err == nil && !req.HasStream {
			source, err = open(r.Context(), req.Source)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if c, ok := source.(io.Closer); ok {
			defer c.Close()
		}
		// The client sends paths and reads what becomes of them at the same time.
		control := http.NewResponseController(w)
		if err := control.EnableFullDuplex(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		s := &sender{lines: json.NewEncoder(w), flush: control.Flush}
		opts := req.Options
		opts.SigningKeys = keys
		opts.Skipped, opts.Warn = func(skip Skip) { s.send(&message{Skip: &skip}) }, warn
		if req.HasPaths {
			opts.Paths = func(_ context.Context, fn func(string) error) error { return readHashParts(body, fn) }
		}
		var progress Progress
		stop := every(progressInterval, func() {
			counts := progress.Counts()
			s.send(&message{Progress: &counts})
		})
		var report *Report
		if req.HasStream {
			report, err = ImportStream(r.Context(), store, body, opts, &progress)
		} else {
			report, err = Import(r.Context(), store, source, opts, &progress)
		}
		if err == nil && !opts.DryRun {
			err = store.Flush(r.Context())
		}
		stop()
		last := &message{Report: report}
		if err != nil {
			last.Error = err.Error()
		}
		s.send(last)
	})
}

// A sender writes messages as soon as there are some. When the client is gone, the request's
// context ends the import.
type sender struct {
	mu    sync.Mutex
	lines *json.Encoder
	flush func() error
}

func (s *sender) send(m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lines.Encode(m) == nil {
		s.flush()
	}
}

// every calls fn at an interval until the function that it returns is called.
func every(interval time.Duration, fn func()) (stop func()) {
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fn()
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		running.Wait()
	}
}

func readHashParts(r io.Reader, fn func(string) error) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if !narinfo.IsHashPart(lines.Text()) && !IsFile(lines.Text()) {
			return fmt.Errorf("%q is not the hash part of a store path", lines.Text())
		}
		if err := fn(lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// Ask has the server at url do what Import does here. The functions among opts are called
// here; progress is, now and then.
func Ask(ctx context.Context, client *http.Client, url string, source any, opts Options, progress func(Counts)) (*Report, error) {
	text, err := json.Marshal(source)
	if err != nil {
		return nil, err
	}
	return ask(ctx, client, url, &Request{Source: text, Options: opts, HasPaths: opts.Paths != nil}, func(w io.Writer) error {
		if opts.Paths == nil {
			return nil
		}
		return opts.Paths(ctx, func(hashPart string) error {
			_, err := io.WriteString(w, hashPart+"\n")
			return err
		})
	}, progress)
}

// AskStream has the server at url do what ImportStream does here.
func AskStream(ctx context.Context, client *http.Client, url string, stream io.Reader, opts Options, progress func(Counts)) (*Report, error) {
	return ask(ctx, client, url, &Request{Options: opts, HasStream: true}, func(w io.Writer) error {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{stream}, make([]byte, copyBuffer))
		return err
	}, progress)
}

// copyBuffer is how much of a stream is sent at a time, in bytes.
const copyBuffer = 128 << 10

// ask sends a request and what write writes behind it, and takes the answer.
func ask(ctx context.Context, client *http.Client, url string, request *Request, write func(io.Writer) error, progress func(Counts)) (*Report, error) {
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	body, send := io.Pipe()
	var sending sync.WaitGroup
	defer sending.Wait()
	defer body.Close()
	sending.Go(func() {
		_, err := fmt.Fprintf(send, "%s\n", text)
		if err == nil {
			err = write(send)
		}
		send.CloseWithError(err)
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
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
	for lines := json.NewDecoder(resp.Body); ; {
		var m message
		if err := lines.Decode(&m); err == io.EOF {
			return nil, fmt.Errorf("the server has ended the import: %w", io.ErrUnexpectedEOF)
		} else if err != nil {
			return nil, err
		}
		switch {
		case m.Progress != nil:
			progress(*m.Progress)
		case m.Skip != nil && request.Options.Skipped != nil:
			request.Options.Skipped(*m.Skip)
		case m.Report != nil && m.Error != "":
			return m.Report, errors.New(m.Error)
		case m.Report != nil:
			return m.Report, nil
		}
	}
}
