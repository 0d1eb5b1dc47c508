package chunkstore_test

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/dedupd/dedupd/packfile"
)

// A span is a part of a file.
type span struct {
	file   string
	off, n int
}

// regions are the bytes of a store by what they are.
type regions map[string][]span

func (r regions) add(class, file string, off, n int) {
	if n > 0 {
		r[class] = append(r[class], span{file, off, n})
	}
}

// names returns the classes in their order.
func (r regions) names() []string { return slices.Sorted(maps.Keys(r)) }

// pick returns a random byte of a class.
func (r regions) pick(rnd *rand.Rand, class string) (file string, off int) {
	total := 0
	for _, s := range r[class] {
		total += s.n
	}
	at := rnd.IntN(total)
	for _, s := range r[class] {
		if at < s.n {
			return s.file, s.off + at
		}
		at -= s.n
	}
	panic("not reached")
}

// addPack adds the parts of a sealed pack. unused says which frames nothing needs.
func (r regions) addPack(t testing.TB, prefix, file string, b []byte, unused func(off int64) bool) {
	t.Helper()
	name, err := packfile.ParseName(strings.TrimSuffix(strings.Join(strings.Split(file, "/")[2:], "/"), ".pack"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := packfile.Read(name, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	trailer, err := packfile.ParseTrailer(b[len(b)-packfile.TrailerSize:], int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	r.add(prefix+" header", file, 0, packfile.HeaderSize)
	for i, f := range p.Frames {
		off := int(p.Offsets[i])
		if unused(p.Offsets[i]) {
			r.add(prefix+" frame, unused", file, off, int(f.Size()))
			continue
		}
		r.addFrame(t, prefix+" frame", file, off, b[off:off+int(f.Size())], f)
	}
	r.add(prefix+" records", file, int(trailer.Records), int(trailer.Directory-trailer.Records))
	r.add(prefix+" directory", file, int(trailer.Directory), len(b)-packfile.TrailerSize-int(trailer.Directory))
	r.add(prefix+" trailer", file, len(b)-packfile.TrailerSize, packfile.TrailerSize)
}

// addFrame adds the parts of a frame, the bytes of its spans apart.
func (r regions) addFrame(t testing.TB, prefix, file string, off int, b []byte, f packfile.FrameInfo) {
	t.Helper()
	v, err := packfile.ParseFrame(f.Kind, len(f.Chunks), b, f.Prefix, f.CRC)
	if err != nil {
		t.Fatal(err)
	}
	r.add(prefix+" prefix", file, off, f.Prefix)
	if f.Kind != packfile.KindPatch {
		r.add(prefix+" payload, decode", file, off+f.Prefix, f.Payload)
		return
	}
	marks := make([]byte, f.Payload)
	if err := v.Patch(marks, func(j int) []byte { return bytes.Repeat([]byte{1}, int(v.Spans(0)[j].Len)) }); err != nil {
		t.Fatal(err)
	}
	for from := 0; from < len(marks); {
		to := from
		for to < len(marks) && marks[to] == marks[from] {
			to++
		}
		if marks[from] == 1 {
			r.add(prefix+" spans", file, off+f.Prefix+from, to-from)
		} else {
			r.add(prefix+" payload, patch", file, off+f.Prefix+from, to-from)
		}
		from = to
	}
}

// addJournal adds the parts of a journal, and of the open pack that it is of.
func (r regions) addJournal(t testing.TB, file string, b []byte, framesFile string, frames []byte) {
	t.Helper()
	const headerSize, entrySize = 38, 16 // docs/format.md
	j, err := packfile.NewJournalReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	r.add("journal header", file, 0, headerSize)
	r.add("open pack header", framesFile, 0, packfile.HeaderSize)
	off, frame, entries := headerSize, packfile.HeaderSize, 0
	for off < len(b) {
		e, err := j.Next()
		if err != nil {
			t.Fatal(err)
		}
		n := int(binary.LittleEndian.Uint32(b[off:]))
		r.add("journal entry header", file, off, entrySize)
		r.add("journal entry", file, off+entrySize, n)
		off += entrySize + n
		for _, f := range e.Frames {
			r.add("open pack frames", framesFile, frame, int(f.Size()))
			frame += int(f.Size())
		}
		entries++
	}
	if frame != len(frames) || entries < 3 {
		t.Fatalf("the journal has %d entries, and frames up to %d of %d", entries, frame, len(frames))
	}
}

// addIndex adds the parts of a bbolt file (go.etcd.io/bbolt, internal/common/page.go).
func (r regions) addIndex(t testing.TB, file string, b []byte) {
	t.Helper()
	const pageSize, headerSize = 4096, 16
	le := binary.LittleEndian
	live := 0
	if le.Uint64(b[pageSize+headerSize+48:]) > le.Uint64(b[headerSize+48:]) {
		live = 1
	}
	meta := b[live*pageSize+headerSize:]
	used := make([]bool, len(b))
	add := func(class string, off, n int) {
		r.add("index "+class, file, off, n)
		for i := off; i < off+n; i++ {
			used[i] = true
		}
	}
	add("head, used", live*pageSize, headerSize+64)
	add("head, of before", (1-live)*pageSize, headerSize+64)
	free := int(le.Uint64(meta[32:])) * pageSize
	add("free list", free, headerSize+8*int(le.Uint16(b[free+10:])))

	var walk func(off int)
	walkPage := func(id uint64) { walk(int(id) * pageSize) }
	walk = func(off int) {
		flags, count := le.Uint16(b[off+8:]), int(le.Uint16(b[off+10:]))
		if flags&1 != 0 {
			add("branch page header", off, headerSize)
			for i := range count {
				e := off + headerSize + 16*i
				add("branch element", e, 16)
				add("branch key", e+int(le.Uint32(b[e:])), int(le.Uint32(b[e+4:])))
				walkPage(le.Uint64(b[e+8:]))
			}
			return
		}
		add("leaf page header", off, headerSize)
		for i := range count {
			e := off + headerSize + 16*i
			key, keySize, valueSize := e+int(le.Uint32(b[e+4:])), int(le.Uint32(b[e+8:])), int(le.Uint32(b[e+12:]))
			add("leaf element", e, 16)
			add("leaf key", key, keySize)
			if le.Uint32(b[e:])&1 == 0 {
				add("leaf value", key+keySize, valueSize)
				continue
			}
			add("table", key+keySize, 8)
			if string(b[key:key+keySize]) != "index" { // of this one rows are not counted
				add("table", key+keySize+8, 8)
			}
			if root := le.Uint64(b[key+keySize:]); root != 0 {
				walkPage(root)
			} else {
				walk(key + keySize + 16)
			}
		}
	}
	walkPage(le.Uint64(meta[16:]))
	for off := 0; off < len(b); {
		end := off
		for end < len(b) && used[end] == used[off] {
			end++
		}
		if !used[off] {
			r.add("index unused", file, off, end-off)
		}
		off = end
	}
}

// classify sorts the bytes of all files of a store into regions.
func classify(t testing.TB, files map[string][]byte, unused func(file string, off int64) bool) regions {
	t.Helper()
	r := regions{}
	for name, b := range files {
		switch ext := path.Ext(name); {
		case name == "bucket/dedupd.json", name == "bucket/.dedupd-bucket", name == "state/repository":
			r.add(path.Base(name), name, 0, len(b))
		case name == "state/index.bolt":
			r.addIndex(t, name, b)
		case strings.HasPrefix(name, "bucket/packs/"):
			r.addPack(t, "pack", name, b, func(off int64) bool { return unused(name, off) })
		case ext == ".pack":
			r.addPack(t, "spool pack", name, b, func(int64) bool { return false })
		case ext == ".journal":
			framesFile := strings.TrimSuffix(name, ext) + ".frames"
			r.addJournal(t, name, b, framesFile, files[framesFile])
		case ext == ".frames", name == "state/lock":
		default:
			t.Fatalf("%s is of no region", name)
		}
	}
	return r
}
