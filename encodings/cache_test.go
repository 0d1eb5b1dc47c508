package encodings

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs test with a clock that only moves when everybody waits.
func bubble(t *testing.T, test func(t *testing.T)) { synctest.Test(t, test) }

func open(t *testing.T, dir string, change ...func(*Options)) *Cache {
	t.Helper()
	opts := Options{Dir: dir, Size: 1 << 20}
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
