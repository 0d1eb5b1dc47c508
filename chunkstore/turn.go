package chunkstore

import "io"

// A turn is one goroutine's leave to keep a processor busy. Uploads have as many turns
// between them as there are Options.Workers, the first come first, so that work that
// never ends does not fill the scheduler's queue, in which readers would wait behind it.
// Nobody has a turn while he waits for something else. A nil turn is always had.
type turn struct {
	all  chan struct{} // holds one for each turn that is taken
	mine bool
}

func (s *Store) newTurn() *turn { return &turn{all: s.turns} }

func (t *turn) take() {
	if t != nil && !t.mine {
		t.all <- struct{}{}
		t.mine = true
	}
}

func (t *turn) give() {
	if t != nil && t.mine {
		<-t.all
		t.mine = false
	}
}

// while calls wait, which may block, without the turn, if there is one.
func (t *turn) while(wait func()) {
	if t == nil || !t.mine {
		wait()
		return
	}
	t.give()
	defer t.take()
	wait()
}

// A waitingReader is one that whoever has the turn may wait for.
type waitingReader struct {
	r    io.Reader
	turn *turn
}

func (w waitingReader) Read(p []byte) (n int, err error) {
	w.turn.while(func() { n, err = w.r.Read(p) })
	return n, err
}
