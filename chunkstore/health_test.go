package chunkstore

import (
	"errors"
	"testing"
)

func TestHealth(t *testing.T) {
	s := testStore(t, t.TempDir())
	if h := s.Health(t.Context()); len(h.Read)+len(h.Write) > 0 {
		t.Errorf("a store in order: got %+v", h)
	}
	broken := errors.New("broken")
	s.commits.refusal.Store(&broken)
	s.uploads.free = func() (int64, error) { return 0, nil }
	if h := s.Health(t.Context()); len(h.Read) > 0 || len(h.Write) != 2 || h.Write[0] != broken || !errors.Is(h.Write[1], ErrNoSpace) {
		t.Errorf("a store that cannot write: got %+v", h)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h := s.Health(t.Context()); len(h.Read) != 1 || !errors.Is(h.Read[0], ErrClosed) || len(h.Write) != 1 {
		t.Errorf("a closed store: got %+v", h)
	}
}
