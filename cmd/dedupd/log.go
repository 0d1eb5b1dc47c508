package main

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	logFlush  = 100 * time.Millisecond // for which a message of no urgency may lie in memory
	logBuffer = 64 << 10               // bytes of them
)

// logger returns a logger to w.
func (s *Settings) logger(w io.Writer) *slog.Logger { return slog.New(s.logHandler(w)) }

// bufferedLogger returns a logger to w that is quick enough for a line for each request:
// it writes messages of no urgency together, and those from warn on at once, with all
// before them. flush writes what is left.
func (s *Settings) bufferedLogger(w io.Writer) (log *slog.Logger, flush func()) {
	lines := &lineBuffer{w: w}
	return slog.New(&flushHandler{s.logHandler(lines), lines}), lines.flush
}

func (s *Settings) logHandler(w io.Writer) slog.Handler {
	opts := &slog.HandlerOptions{Level: s.LogLevel}
	if s.LogFormat == "json" {
		return slog.NewJSONHandler(w, opts)
	}
	return slog.NewTextHandler(w, opts)
}

// A flushHandler flushes after what is urgent.
type flushHandler struct {
	slog.Handler
	lines *lineBuffer
}

func (h *flushHandler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		h.lines.flush()
	}
	return err
}

func (h *flushHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &flushHandler{h.Handler.WithAttrs(attrs), h.lines}
}

func (h *flushHandler) WithGroup(name string) slog.Handler {
	return &flushHandler{h.Handler.WithGroup(name), h.lines}
}

// A lineBuffer is a writer that keeps what it is given for a moment. What it cannot write
// is lost: there is nobody to tell.
type lineBuffer struct {
	w io.Writer

	mu  sync.Mutex
	buf []byte
}

func (b *lineBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf) == 0 {
		time.AfterFunc(logFlush, b.flush)
	}
	if b.buf = append(b.buf, p...); len(b.buf) >= logBuffer {
		b.write()
	}
	return len(p), nil
}

func (b *lineBuffer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.write()
}

// write is called with the lock held, so that lines stay in order.
func (b *lineBuffer) write() {
	if len(b.buf) > 0 {
		b.w.Write(b.buf)
		b.buf = b.buf[:0]
	}
}
