package main

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A pieces is a writer that remembers each write.
type pieces struct {
	mu  sync.Mutex
	all []string
}

func (p *pieces) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, string(b))
	return len(b), nil
}

// lines returns how many lines each write had, and forgets them.
func (p *pieces) lines() (n []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.all {
		n = append(n, strings.Count(s, "\n"))
	}
	p.all = nil
	return n
}

func TestBufferedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &pieces{}
		s := &Settings{LogFormat: "text"}
		log, flush := s.bufferedLogger(w)
		expect := func(what string, want ...int) {
			t.Helper()
			got := w.lines()
			if len(got) != len(want) {
				t.Fatalf("%s: got writes of %v lines, want %v", what, got, want)
			}
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("%s: got writes of %v lines, want %v", what, got, want)
				}
			}
		}
		log.Info("a")
		log.With("x", 1).WithGroup("g").Info("b", "y", 2)
		expect("at once")
		time.Sleep(logFlush)
		synctest.Wait()
		expect("after a while", 2)
		log.Info("a")
		log.Warn("b")
		expect("a warning", 2)
		log.With("x", 1).Error("c")
		expect("an error", 1)
		for range 70 {
			log.Info(strings.Repeat("x", 1000))
		}
		if got := w.lines(); len(got) != 1 || got[0] < 60 {
			t.Errorf("much: got writes of %v lines, want one of about 63", got)
		}
		log.Info("last")
		flush()
		if got := w.lines(); len(got) != 1 {
			t.Errorf("the end: got %d writes, want 1", len(got))
		}
		time.Sleep(2 * logFlush)
		synctest.Wait()
		expect("nothing is left")
	})
}
