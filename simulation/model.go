package simulation

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/dedupd/dedupd/nar"
)

// A kind is what is behind a name of the cache.
type kind int

const (
	aPath kind = iota // a narinfo, by its hash part; the thing is an *encoded
	aNAR              // an uploaded NAR, by its name; the thing is an *encoded
	aFile             // a small file, by its name; the thing is []byte
)

// A name is what clients have tried to store under one name, and what they were told.
type name struct {
	kind  kind
	name  string
	tried []any // in the order of the attempts; what is there is one of these
	acked bool  // a client was told that the name is stored
	safe  bool  // and after that, that the bucket has everything
}

// A model says what a store may answer. It may be used concurrently.
type model struct {
	mu      sync.Mutex
	names   map[string]*name
	all     []*name // in the order of the first attempt
	damaged bool    // something was damaged, and not everything is healed
}

func newModel() *model { return &model{names: map[string]*name{}} }

// try notes that thing is about to be stored under a name.
func (m *model) try(k kind, text string, thing any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[text]
	if n == nil {
		n = &name{kind: k, name: text}
		m.names[text] = n
		m.all = append(m.all, n)
	}
	if !slices.ContainsFunc(n.tried, func(t any) bool { return same(t, thing) }) {
		n.tried = append(n.tried, thing)
	}
}

func same(a, b any) bool {
	if x, ok := a.([]byte); ok {
		return bytes.Equal(x, b.([]byte))
	}
	return a == b
}

// ack notes that a client was told that a name is stored.
func (m *model) ack(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names[text].acked = true
}

// get returns what is known of a name, nil if nobody ever tried to store it.
func (m *model) get(text string) *name {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[text]
	if n == nil {
		return nil
	}
	return n.clone()
}

func (n *name) clone() *name {
	c := *n
	c.tried = slices.Clone(n.tried)
	return &c
}

// some returns a name, or nil.
func (m *model) some(rng *rand.Rand) *name {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.all) == 0 {
		return nil
	}
	return m.all[rng.IntN(len(m.all))].clone()
}

// list returns all names.
func (m *model) list() []*name {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*name, len(m.all))
	for i, n := range m.all {
		all[i] = n.clone()
	}
	return all
}

// ackedNames returns the names that are acknowledged now, for flushed.
func (m *model) ackedNames() (acked []*name) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.all {
		if n.acked {
			acked = append(acked, n)
		}
	}
	return acked
}

// flushed notes that the bucket has all of these names.
func (m *model) flushed(names []*name) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		n.safe = true
	}
}

// stateLost notes that only what the bucket has is left. What was acknowledged and is not
// there may be there all the same.
func (m *model) stateLost() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.all {
		n.acked = n.acked && n.safe
	}
}

// counts returns how many paths are acknowledged, and how many were tried.
func (m *model) counts() (acked, tried int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.all {
		if n.kind == aPath {
			tried++
			if n.acked {
				acked++
			}
		}
	}
	return acked, tried
}

func (m *model) setDamaged(v bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.damaged = v
}

func (m *model) isDamaged() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.damaged
}

// listing is what a gateway says of an archive that nobody has uploaded a listing of.
func (a *archive) listing() []byte {
	l, err := nar.List(bytes.NewReader(a.nar))
	must(err)
	text, err := l.MarshalJSON()
	must(err)
	return text
}
