package chunkstore_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
)

// TestFlips changes one byte of a store after another: of packs in the bucket and in the
// spool, of the journal, of the index, of everything. Whatever it is, no client gets a wrong
// byte, nothing panics, what is not served as before is reported, and can be uploaded again.
//
//	DEDUPD_FLIPS=10000      how many; 600 by default
//	DEDUPD_FLIP_SEED=n      of an earlier run
//	DEDUPD_FLIP_REGION=e    only regions whose names match the regular expression e
func TestFlips(t *testing.T) {
	flips := 600
	if testing.Short() {
		flips = 100
	}
	if v := os.Getenv("DEDUPD_FLIPS"); v != "" {
		var err error
		if flips, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	if v := os.Getenv("DEDUPD_FLIP_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("DEDUPD_FLIP_SEED=%d", seed)
	dir := flipDir(t)
	tpl := makeFlipTemplate(t, filepath.Join(dir, "template"), rand.New(rand.NewPCG(seed, 0)))
	var classes []string
	for _, class := range tpl.regions.names() {
		if regexp.MustCompile(os.Getenv("DEDUPD_FLIP_REGION")).MatchString(class) {
			classes = append(classes, class)
		}
	}
	if missing := missingRegions(tpl.regions); len(missing) > 0 {
		t.Errorf("the store has nothing of %q", missing)
	}
	tallies := map[string]*tally{}
	for _, class := range classes {
		tallies[class] = &tally{}
	}
	begun := time.Now()
	for i := range flips {
		class := classes[i%len(classes)]
		rnd := rand.New(rand.NewPCG(seed, uint64(i)+1))
		f := &flipCase{T: t, tpl: tpl, rnd: rnd, tally: tallies[class], class: class, dir: filepath.Join(dir, "flip")}
		f.run(t.Context())
		if err := os.RemoveAll(f.dir); err != nil {
			t.Fatal(err)
		}
		if t.Failed() && i > 100 {
			t.Logf("stopped after %d flips", i+1)
			break
		}
	}
	t.Logf("%v for all\n%s", time.Since(begun).Round(time.Second), table(classes, tallies))
}

// missingRegions are those that a store should have, and has not.
func missingRegions(r regions) (missing []string) {
	for _, class := range []string{
		"pack frame payload, decode", "pack frame spans", "pack frame, unused", "spool pack directory", "journal entry", "index branch key", "index leaf value",
	} {
		if r[class] == nil {
			missing = append(missing, class)
		}
	}
	return missing
}

// A tally counts what came of the flips in one region.
type tally struct {
	flips, refused, rebuilt, logged int // logged: an error, or what was dropped, at the start
	right, absent, failed, cut      int // answers
	checked, scrubbed, silent       int // silent: nobody noticed
	healed, repaired                int
}

func table(classes []string, tallies map[string]*tally) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprintln(w, "region\tflips\tno start\trebuilt\tlogged\tright\t404\t5xx\tcut\tcheck\tscrub\tsilent\thealed\trepaired\t")
	sum := &tally{}
	row := func(name string, c *tally) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", name, c.flips, c.refused, c.rebuilt, c.logged,
			c.right, c.absent, c.failed, c.cut, c.checked, c.scrubbed, c.silent, c.healed, c.repaired)
	}
	for _, class := range classes {
		c := tallies[class]
		row(class, c)
		sum.flips += c.flips
		sum.refused += c.refused
		sum.rebuilt += c.rebuilt
		sum.logged += c.logged
		sum.right += c.right
		sum.absent += c.absent
		sum.failed += c.failed
		sum.cut += c.cut
		sum.checked += c.checked
		sum.scrubbed += c.scrubbed
		sum.silent += c.silent
		sum.healed += c.healed
		sum.repaired += c.repaired
	}
	row("all", sum)
	w.Flush()
	return b.String()
}

// harmless are regions of which nothing is ever read, or nothing again that counts.
var harmless = map[string]bool{
	"pack frame, unused": true, "index unused": true,
	"open pack header": true, // recovery writes another
	// bbolt has two heads. Each alone leads to a whole index, at most a transaction behind.
	"index head, of before": true, "index head, used": true,
}

// A flipCase is one flip.
type flipCase struct {
	*testing.T
	tpl   *flipTemplate
	rnd   *rand.Rand
	tally *tally
	class string
	dir   string
	what  string // for messages

	log      *errorLog
	store    *chunkstore.Store
	gateway  *gateway.Gateway
	reported bool // that something is wrong
	changed  bool // not every answer is the right one
}

func (f *flipCase) run(ctx context.Context) {
	f.tally.flips++
	file, off := f.tpl.regions.pick(f.rnd, f.class)
	by := byte(1) << f.rnd.IntN(8)
	if f.rnd.IntN(2) == 0 {
		by = byte(1 + f.rnd.IntN(255))
	}
	f.what = fmt.Sprintf("%s: %s at %d by %#02x", f.class, file, off, by)
	if err := f.tpl.write(f.dir, file, off, by); err != nil {
		f.Fatal(err)
	}
	if !f.open(ctx, file, f.rnd.IntN(2) == 0) {
		return
	}
	defer f.close(ctx)
	report := f.check(ctx, chunkstore.CheckOptions{ReadData: true})
	if f.rnd.IntN(4) == 0 {
		f.scrub(ctx)
	}
	for range 2 { // what is found the first time is known the second
		f.read(ctx)
	}
	if f.changed && !f.reported {
		f.Errorf("%s: answers changed, and nothing was reported", f.what)
	}
	if !f.reported {
		f.tally.silent++
		if !harmless[f.class] && !f.overwritten(file, off) {
			f.Errorf("%s: not noticed; check says %+v", f.what, report)
		}
	}
	if f.rnd.IntN(10) == 0 {
		f.heal(ctx)
	}
}

// overwritten says whether recovery wrote the page of the index anew: what bbolt read of it
// was right, and it makes the rest from that.
func (f *flipCase) overwritten(file string, off int) bool {
	if !strings.HasPrefix(f.class, "index") {
		return false
	}
	b, err := os.ReadFile(filepath.Join(f.dir, filepath.FromSlash(file)))
	if err != nil {
		f.Fatal(err)
	}
	now := regions{}
	now.addIndex(f, file, b)
	return slices.ContainsFunc(now["index unused"], func(s span) bool { return s.off <= off && off < s.off+s.n })
}

// open opens the store. It may only be refused with a reason.
func (f *flipCase) open(ctx context.Context, file string, refuse bool) bool {
	f.log = &errorLog{}
	log := slog.New(f.log)
	var err error
	f.store, _, err = openFlipStore(ctx, f.dir, refuse, log, chunkstore.Repository{})
	if err != nil {
		f.tally.refused++
		if strings.HasPrefix(f.class, "index") || !strings.Contains(err.Error(), baseName(file)) {
			f.Errorf("%s: open: %v", f.what, err)
		}
		return false
	}
	f.gateway = flipGateway(f.store, log)
	if f.log.contains("rebuilt from the packs") {
		f.tally.rebuilt++
		f.reported = true
	} else if f.log.contains("") {
		f.tally.logged++
		f.reported = true
	}
	return true
}

func (f *flipCase) close(ctx context.Context) {
	done, cancel := context.WithCancel(ctx)
	cancel() // what waits stays in the spool
	f.store.Close(done)
}

func (f *flipCase) check(ctx context.Context, opts chunkstore.CheckOptions) *chunkstore.CheckReport {
	f.Helper()
	r, err := f.store.Check(ctx, opts)
	if err != nil {
		f.Errorf("%s: check: %v", f.what, err)
		return &chunkstore.CheckReport{ProblemCount: 1}
	}
	if !r.OK() && !opts.Repair {
		f.tally.checked++
		f.reported = true
	}
	return r
}

// scrub scrubs once, which has to find what is wrong with the packs of the bucket.
func (f *flipCase) scrub(ctx context.Context) {
	r, err := f.store.ScrubRound(ctx)
	if err != nil {
		if !strings.HasPrefix(f.class, "index") {
			f.Errorf("%s: scrub: %v", f.what, err)
		}
		return
	}
	if r.Damaged+r.BadPacks > 0 {
		f.tally.scrubbed++
		f.reported = true
	} else if strings.HasPrefix(f.class, "pack ") && !harmless[f.class] {
		f.Errorf("%s: scrubbing found nothing", f.what)
	}
}

// read asks all questions, and for a random range of each answer.
func (f *flipCase) read(ctx context.Context) {
	for _, i := range f.rnd.Perm(len(f.tpl.questions)) {
		q := &f.tpl.questions[i]
		f.count(q, 0, 0, ctx)
		if strings.HasPrefix(q.url, "/nar/") && len(q.want) > 0 {
			off := f.rnd.IntN(len(q.want))
			f.count(q, off, off+1+f.rnd.IntN(len(q.want)-off), ctx)
		}
	}
}

func (f *flipCase) count(q *question, off, end int, ctx context.Context) {
	r, right, wrong := q.put(ctx, f.gateway, off, end)
	switch {
	case wrong:
		f.Errorf("%s: GET %s, bytes %d to %d: wrong: %v, want %d bytes %.100q", f.what, q.url, off, end, r, len(q.want), q.want)
	case right:
		f.tally.right++
	case r.cut:
		f.tally.cut++
	case r.status == 404:
		f.tally.absent++
	default:
		f.tally.failed++
	}
	f.changed = f.changed || !right
}

// heal makes everything whole again: an operator restarts the store and repairs it if need
// be, and a client uploads what is absent.
func (f *flipCase) heal(ctx context.Context) {
	if strings.HasPrefix(f.class, "index") { // nothing may be taken in before it is rebuilt
		f.close(ctx)
		if !f.open(ctx, "", false) {
			return
		}
	}
	f.push(ctx)
	for _, p := range f.tpl.paths {
		// What was absent has not been read until now, nor has a frame that only it needs.
		if p.pull(ctx, f.gateway) != nil {
			f.push(ctx)
		}
	}
	r, err := f.store.Check(ctx, chunkstore.CheckOptions{ReadData: true})
	if err != nil || !r.OK() {
		f.tally.repaired++
		if strings.HasPrefix(f.class, "pack frame") && err == nil {
			f.Errorf("%s: uploading again did not heal: %q", f.what, r.Problems)
		}
		f.close(ctx)
		if !f.open(ctx, "", false) {
			return
		}
		f.check(ctx, chunkstore.CheckOptions{Repair: true})
		f.push(ctx)
	}
	if r := f.check(ctx, chunkstore.CheckOptions{ReadData: true}); !r.OK() || r.AbsentPaths+r.AbsentFiles > 0 {
		f.Errorf("%s: check after healing: %d absent paths and %d files, %q", f.what, r.AbsentPaths, r.AbsentFiles, r.Problems)
	}
	for _, p := range f.tpl.paths {
		if err := p.pull(ctx, f.gateway); err != nil {
			f.Errorf("%s: after healing: %v", f.what, err)
		}
	}
	f.tally.healed++
}

// push uploads everything as a client does that knows nothing of what happened.
func (f *flipCase) push(ctx context.Context) {
	for _, p := range f.tpl.paths {
		if err := p.push(ctx, f.gateway); err != nil {
			f.Errorf("%s: upload again: %v", f.what, err)
		}
	}
	for url, body := range f.tpl.uploads {
		if r := ask(ctx, f.gateway, "PUT", url, body); r.status != 200 {
			f.Errorf("%s: upload again: PUT %s: %v", f.what, url, r)
		}
	}
}

// An errorLog is a slog.Handler that keeps errors, and what is said of a journal's end: one
// whose last entry is damaged cannot be told from one that a crash cut short.
type errorLog struct {
	mu     sync.Mutex
	errors []string
}

func (l *errorLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (l *errorLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *errorLog) WithGroup(string) slog.Handler                    { return l }

func (l *errorLog) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	if r.Level < slog.LevelError && !strings.Contains(text, "what follows is dropped") {
		return nil
	}
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, text)
	return nil
}

func (l *errorLog) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, text := range l.errors {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}
