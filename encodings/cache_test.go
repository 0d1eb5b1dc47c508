package encodings

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs test with a clock that only moves when everybody waits.
func bubble(t *testing.T, test func(t *testing.T)) { synctest.Test(t, test) }

func open(t *testing.T, dir string, change ...func(*Options)) *Cache {
	t.Helper()
	opts := Options{Dir: dir, Size: 1 << 20, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&opts)
	}
	c, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// making makes a file of these bytes.
func making(b []byte) Making {
	return Making{
		Size: int64(len(b)), Limit: int64(len(b)),
		Encode: func(_ context.Context, w io.Writer) error {
			_, err := w.Write(b)
			return err
		},
		Verify: func(r io.Reader) error {
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
				return fmt.Errorf("got %d other bytes, %v", len(got), err)
			}
			return nil
		},
	}
}

func content(name string, n int) []byte {
	b := make([]byte, n)
	seed := [32]byte{}
	copy(seed[:], name)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// download begins a download and ends it, and returns what it was: "other" or "file".
func download(t *testing.T, c *Cache, name string, size int) string {
	t.Helper()
	u := c.Use(name)
	defer u.Close()
	u.Begin(making(content(name, size)))
	n, _, ok := u.File()
	if !ok {
		u.Send(Stored)
		return "other"
	}
	u.Send(Encoded)
	var got bytes.Buffer
	if err := u.Write(t.Context(), &got, 0, n); err != nil || !bytes.Equal(got.Bytes(), content(name, size)) {
		t.Errorf("%s: got %d of %d bytes, %v", name, got.Len(), size, err)
	}
	u.Sent(n)
	return "file"
}

// began returns what a range is taken to be of.
func began(c *Cache, name string) Form {
	u := c.Use(name)
	defer u.Close()
	return u.Began
}

// TestStates takes a name through all its states.
func TestStates(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		var full atomic.Bool
		room := func(o *Options) { o.Room = func() bool { return !full.Load() } }
		c := open(t, dir, room)
		const size = 3*blockSize + 5
		want := func(what string, form Form) {
			t.Helper()
			if got := began(c, "a"); got != form {
				t.Errorf("a range is taken for one of %d, want %d", got, form)
			}
			if got := download(t, c, "a", size); got != what {
				t.Errorf("got the %s, want the %s", got, what)
			}
			synctest.Wait()
		}
		want("other", Stored)
		want("other", Stored)
		slow := c.Use("a")
		slow.Send(Stored)
		want("other", Stored) // the third: it is encoded
		want("file", Stored)
		time.Sleep(3 * time.Hour)
		want("file", Stored) // somebody still reads the other form
		slow.Close()
		time.Sleep(59 * time.Minute)
		want("file", Stored)
		time.Sleep(2 * time.Minute)
		want("file", Encoded)

		c.Close()
		c = open(t, dir, room) // which forgets nothing
		want("file", Encoded)
		slow = c.Use("a")
		slow.Send(Encoded)
		full.Store(true)
		time.Sleep(pause)
		synctest.Wait()
		full.Store(false)
		want("other", Unknown)
		n, _, _ := slow.File()
		if err := slow.Write(t.Context(), io.Discard, 1, n-1); err != nil {
			t.Errorf("who reads a file when it goes: %v", err)
		}
		time.Sleep(2 * time.Hour)
		want("other", Unknown)
		slow.Close()

		c.Close()
		c = open(t, dir, room)
		want("other", Unknown)
		time.Sleep(2 * time.Hour)
		want("other", Stored)
		if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
			t.Errorf("there are %v, %v", files, err)
		}
		s := c.Stats()
		if s.Files != 0 || s.Bytes != 0 {
			t.Errorf("got %+v", s)
		}
	})
}

// TestEviction has more names than there is room for: those stay that are asked for most.
func TestEviction(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := open(t, t.TempDir(), func(o *Options) { o.Size, o.Often = 100_000, 2 })
		want := func(what string, names ...string) {
			t.Helper()
			for _, name := range names {
				if got := download(t, c, name, 40_000); got != what {
					t.Errorf("%s: got the %s, want the %s", name, got, what)
				}
				synctest.Wait()
			}
		}
		want("other", "a", "a", "b", "b", "c", "c")
		want("file", "a", "b", "b") // which a newcomer does not displace
		want("other", "c", "c")
		want("file", "c") // but one that is asked for more often does
		want("other", "a")
		if s := c.Stats(); s.Files != 2 || s.Evictions != 1 || s.Bytes != 80_000 || s.Encoded != 3 || s.Waiting != 0 {
			t.Errorf("got %+v", s)
		}
		time.Sleep(3 * day) // a name that was asked for once is as good as any
		want("file", "b", "c")
		want("other", "d", "d")
		want("file", "d")

		c.Close()
		c = open(t, c.opts.Dir, func(o *Options) { o.Size = 0 })
		if s := c.Stats(); s.Files != 0 || began(c, "d") != Unknown {
			t.Errorf("without room: got %+v", s)
		}
		time.Sleep(2 * time.Hour)
		want("other", "a", "b", "c", "d", "d", "d", "d")
		if began(c, "d") != Stored {
			t.Error("a name is not what it was without a cache")
		}
	})
}

// TestNotMade has files that cannot be made, or are not worth it: nothing stays of them.
func TestNotMade(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := open(t, t.TempDir(), func(o *Options) { o.Often = 1 })
		good := content("x", 300_000)
		tries := 0
		for _, tt := range []struct {
			name   string
			change func(*Making)
			tries  int // for five downloads
		}{
			{"fails", func(m *Making) { m.Encode = failing(good[:200_000], io.ErrNoProgress) }, 5},
			{"other bytes", func(m *Making) { m.Encode = failing(good[:200_000], nil) }, 5},
			{"too large", func(m *Making) { m.Size, m.Limit = 100_000, 200_000 }, 1},
			{"known to be too large", func(m *Making) { m.Limit = 200_000 }, 0},
			{"larger than the cache", func(m *Making) { m.Size, m.Limit = 2<<20, 3<<20 }, 0},
			{"no encoder", func(m *Making) { m.Encode = failing(nil, ErrNoEncoder) }, 1},
		} {
			tries = 0
			for range 5 {
				u := c.Use(tt.name)
				m := making(good)
				tt.change(&m)
				encode := m.Encode
				m.Encode = func(ctx context.Context, w io.Writer) error {
					tries++
					return encode(ctx, w)
				}
				u.Begin(m)
				u.Close()
				synctest.Wait()
			}
			if tries != tt.tries {
				t.Errorf("%s: tried %d times, want %d", tt.name, tries, tt.tries)
			}
		}
		if files, err := os.ReadDir(c.opts.Dir); err != nil || len(files) > 0 {
			t.Errorf("there are %v, %v", files, err)
		}
		if s := c.Stats(); s.Encoded != 0 || s.Files != 0 || s.Bytes != 0 || s.Failures != 12 {
			t.Errorf("got %+v", s)
		}
	})
}

func failing(b []byte, err error) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		if _, err := w.Write(b); err != nil {
			return err
		}
		return err
	}
}

// TestDamagedFiles damages a file in every place: what is read is right, or an error, and
// the next one who asks gets the other form.
func TestDamagedFiles(t *testing.T) {
	const size = blockSize + 1000
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		c := open(t, dir, func(o *Options) { o.Often = 1 })
		download(t, c, "a", size)
		synctest.Wait()
		time.Sleep(2 * time.Hour)
		c.Close()
		path := c.dir.path(c.Use("a").e.key)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			what   string
			damage func([]byte) []byte
			loads  bool
		}{
			{"nothing", func(b []byte) []byte { return b }, true},
			{"first byte", flip(0), true},
			{"last byte", flip(size - 1), true},
			{"checksum", flip(size), false},
			{"footer", flip(len(whole) - 1), false},
			{"length", flip(len(whole) - footerSize + 16), false},
			{"huge length", flip(len(whole) - footerSize + 22), false},
			{"one byte less", func(b []byte) []byte { return b[:len(b)-1] }, false},
			{"a block less", func(b []byte) []byte { return b[:size-blockSize] }, false},
			{"one byte more", func(b []byte) []byte { return append(b, 0) }, false},
			{"empty", func([]byte) []byte { return nil }, false},
		} {
			os.Remove(path + leavingMark)
			if err := os.WriteFile(path, tt.damage(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			c := open(t, dir)
			u := c.Use("a")
			_, _, loads := u.File()
			if loads != tt.loads || loads != (u.Began == Encoded) {
				t.Errorf("%s: loaded: %v, began: %d", tt.what, loads, u.Began)
			}
			if loads {
				var got bytes.Buffer
				err := u.Write(t.Context(), &got, 0, size)
				if (err == nil) != (tt.what == "nothing") || !bytes.HasPrefix(content("a", size), got.Bytes()) {
					t.Errorf("%s: %d bytes, %v", tt.what, got.Len(), err)
				}
			}
			u.Close()
			if tt.what != "nothing" && began(c, "a") != Unknown {
				t.Errorf("%s: a range is taken for one of %d", tt.what, began(c, "a"))
			}
			c.Close()
		}
	})
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 1
		return b
	}
}

// TestParallel has many use few names while files come and go. Run it with -race.
func TestParallel(t *testing.T) {
	var n atomic.Int64
	c := open(t, t.TempDir(), func(o *Options) {
		o.Size, o.Often, o.Grace = 150_000, 1, 4*time.Millisecond
		o.Room = func() bool { return n.Add(1)%5 > 0 }
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				download(t, c, fmt.Sprint((i+j*j)%6), 50_000)
				if j%16 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	c.Close()
	c.tidy()
	s := c.Stats()
	t.Logf("%+v", s)
	if s.Hits+s.Misses != 1600 || s.Bytes != s.Files*50_000 || s.Bytes > s.Limit || s.Damaged > 0 {
		t.Errorf("got %+v", s)
	}
}
