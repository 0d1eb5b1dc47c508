package chunkstore

import (
	"slices"

	"github.com/dedupd/dedupd/packfile"
)

// Chunks of one NAR that were stored at different times lie in different packs, and each
// pack that a NAR needs costs a request, or a seek, when it is served. So an object may
// need only so many old packs in any window of its bytes; a known chunk in one more is
// stored again, near the others that are new (capping: Lillibridge, Eshghi, Bhagwat,
// "Improving Restore Speed for Backup Systems that Use Inline Chunk-Based
// Deduplication", FAST 2013). They choose for each segment the packs that give the most
// of it. That would need the chunks of a window in memory; here those count that come
// first, and stay as long as the window has any of their bytes.
//
// Packs in the spool are near: what lies in them goes to the bucket with what is new.
type scatter struct {
	max    int // see Options.MaxFragments
	packs  *packTable
	at     int64                // bytes of the object so far
	recent []fragment           // old packs in the window that ends at at; at most max
	stored map[packfile.ID]bool // chunks of this object that are stored again
}

// A fragment is an old pack that an object needs.
type fragment struct {
	pack uint32
	last int64 // where in the object it was needed last
}

// scatterWindow is the bytes of an object in which packs are counted.
const scatterWindow = 8 << 20

// keep says whether the chunk that begins at s.at may stay in its pack.
func (s *scatter) keep(pack uint32) bool {
	if s.max < 0 || s.packs.spooled(pack) {
		return true
	}
	s.recent = slices.DeleteFunc(s.recent, func(f fragment) bool { return f.last+scatterWindow <= s.at })
	for i := range s.recent {
		if s.recent[i].pack == pack {
			s.recent[i].last = s.at
			return true
		}
	}
	if len(s.recent) >= s.max {
		return false
	}
	s.recent = append(s.recent, fragment{pack, s.at})
	return true
}
