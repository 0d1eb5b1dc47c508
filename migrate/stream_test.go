package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixexport"
	"github.com/dedupd/dedupd/upstream"
)

// stream returns paths of the cache as nix-store --export does.
func (c *cache) stream(infos ...*narinfo.NarInfo) []byte {
	c.t.Helper()
	var b bytes.Buffer
	w := nixexport.NewWriter(&b, chunkstore.DefaultStoreDir)
	for _, info := range infos {
		p := &nixexport.Path{StorePath: info.StorePath, References: info.References, Deriver: info.Deriver}
		err := w.Write(p, func(w io.Writer) error {
			_, err := w.Write(c.nars[info.StorePath.HashPart()])
			return err
		})
		if err != nil {
			c.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		c.t.Fatal(err)
	}
	return b.Bytes()
}

// runStream imports a stream, and returns what was left out.
func runStream(t *testing.T, s *chunkstore.Store, stream []byte, opts Options) (*Report, []Skip, error) {
	t.Helper()
	var skipped []Skip
	opts.Skipped = func(s Skip) { skipped = append(skipped, s) }
	report, err := ImportStream(t.Context(), s, bytes.NewReader(stream), opts, new(Progress))
	return report, skipped, err
}

func TestImportStream(t *testing.T) {
	c := newCache(t)
	var all []*narinfo.NarInfo
	for i := range 20 {
		all = append(all, c.add(compression.None, func(info *narinfo.NarInfo) {
			info.References = []narinfo.StorePath{info.StorePath}
			if i > 0 {
				info.References = append(info.References, all[i-1].StorePath)
			}
			info.Deriver = info.StorePath
		}))
	}
	all = append(all, c.addNAR(c.nars[all[3].StorePath.HashPart()], compression.None)) // which shares a NAR
	s := openStore(t)
	stream := c.stream(all...)
	if r, skipped, err := runStream(t, s, stream, Options{DryRun: true}); err != nil || r.Imported != int64(len(all)) || len(skipped) > 0 {
		t.Errorf("dry run: got %+v, %v, %v", r, skipped, err)
	}
	if r, skipped, err := runStream(t, s, stream, Options{Match: "package-?"}); err != nil || r.Imported != 10 || r.Incomplete != 0 || len(skipped) > 0 {
		t.Errorf("some: got %+v, %v, %v", r, skipped, err)
	}
	r, skipped, err := runStream(t, s, stream, Options{})
	if err != nil || r.Paths != int64(len(all)) || r.Present != 10 || r.Imported != int64(len(all)-10) || r.ReadBytes != int64(len(stream)) || len(skipped) > 0 {
		t.Errorf("all: got %+v, %v, %v", r, skipped, err)
	}
	for _, info := range all {
		c.check(s, info)
		if got, err := s.NarInfo(t.Context(), info.StorePath.HashPart()); err != nil || got.Deriver != info.Deriver {
			t.Errorf("%s: got %+v, %v", info.StorePath, got, err)
		}
	}
	for _, opts := range []Options{{Closure: true}, {Keys: make([]narinfo.PublicKey, 1)}, {Match: "["}, {Sign: true}} {
		if _, _, err := runStream(t, s, stream, opts); err == nil {
			t.Errorf("%+v: no error", opts)
		}
	}
}

// TestImportStreamDamaged imports what is right of a stream, up to where it cannot be read any more.
func TestImportStreamDamaged(t *testing.T) {
	c := newCache(t)
	first, bad, other, last := c.add(compression.None), c.add(compression.None), c.add(compression.None), c.add(compression.None)
	right := c.nars[other.StorePath.HashPart()]
	c.nars[bad.StorePath.HashPart()] = bytes.Replace(c.nars[bad.StorePath.HashPart()], []byte("regular"), []byte("irregul"), 1)
	c.nars[other.StorePath.HashPart()] = c.nars[last.StorePath.HashPart()]
	s := openStore(t)
	if _, _, err := runStream(t, s, c.stream(other), Options{}); err != nil {
		t.Fatal(err)
	}
	c.nars[other.StorePath.HashPart()] = right
	first.References = append(first.References, bad.StorePath)
	stream := c.stream(first, bad, other, last)
	report, skipped, err := runStream(t, s, stream[:len(stream)-100], Options{})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, ErrSource) || report.Imported != 1 || report.Paths != 3 {
		t.Errorf("cut short: got %+v, %v", report, err)
	}
	slices.SortFunc(skipped, func(a, b Skip) int { return bytes.Compare([]byte(a.Reason), []byte(b.Reason)) })
	if len(skipped) != 2 || skipped[0].Reason != BadNAR || skipped[0].Name != bad.StorePath.String() || skipped[1].Reason != Conflict || skipped[1].Name != other.StorePath.String() {
		t.Errorf("got %v", skipped)
	}
	report, skipped, err = runStream(t, s, stream, Options{})
	if err != nil || report.Imported != 1 || report.Present != 1 || len(skipped) != 2 || report.Failed() != 2 {
		t.Errorf("again: got %+v, %v, %v", report, skipped, err)
	}
	c.check(s, first)
	c.check(s, last)
	for _, text := range []string{"", "\x00", "it is not a stream"} {
		if report, _, err := runStream(t, s, []byte(text), Options{}); !errors.Is(err, ErrSource) || report.Paths != 0 {
			t.Errorf("%q: got %+v, %v", text, report, err)
		}
	}
}

// TestSign signs what comes without signatures, here and by another one.
func TestSign(t *testing.T) {
	key, err := narinfo.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCache(t)
	infos := []*narinfo.NarInfo{c.add(compression.None), c.add(compression.None), c.add(compression.None)}
	s := openStore(t)
	opts := Options{Sign: true, SigningKeys: []narinfo.PrivateKey{key}}
	if r, _, err := runStream(t, s, c.stream(infos[0]), opts); err != nil || r.Imported != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
	server := httptest.NewServer(Handler(s, func(context.Context, json.RawMessage) (upstream.Source, error) {
		return upstream.NewDir(c.dir, chunkstore.DefaultStoreDir), nil
	}, opts.SigningKeys, nil))
	defer server.Close()
	if r, err := AskStream(t.Context(), http.DefaultClient, server.URL, bytes.NewReader(c.stream(infos[:2]...)), Options{Sign: true}, func(Counts) {}); err != nil || r.Imported != 1 || r.Present != 1 {
		t.Errorf("a stream: got %+v, %v", r, err)
	}
	if r, err := Ask(t.Context(), http.DefaultClient, server.URL, nil, Options{Sign: true}, func(Counts) {}); err != nil || r.Imported != 1 || r.Present != 2 {
		t.Errorf("a cache: got %+v, %v", r, err)
	}
	for _, info := range infos {
		got, err := s.NarInfo(t.Context(), info.StorePath.HashPart())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := got.Verify(chunkstore.DefaultStoreDir, []narinfo.PublicKey{key.Public()}); !ok {
			t.Errorf("%s: got the signatures %v", got.StorePath, got.Sigs)
		}
	}
	cut := c.stream(infos...)
	if _, err := AskStream(t.Context(), http.DefaultClient, server.URL, bytes.NewReader(cut[:len(cut)-1]), Options{}, func(Counts) {}); err == nil {
		t.Error("a stream that is cut short: no error")
	}
}
