package rangecache_test

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/rangecache"
)

func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	b, err := bucket.OpenDir(dir + "/bucket")
	if err != nil {
		panic(err)
	}
	text := "what is read now, and what will be read soon"
	if err := b.Put(ctx, "object", strings.NewReader(text), int64(len(text))); err != nil {
		panic(err)
	}
	c, err := rangecache.Open(b, rangecache.Options{Dir: dir + "/cache", Size: 64 << 20})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	r := c.NewReader()
	defer r.Close()
	p := make([]byte, 16)
	for _, off := range []int64{0, 22} {
		// One request is for both.
		if err := r.ReadAt(ctx, "object", p, off, int64(len(text))); err != nil {
			panic(err)
		}
		fmt.Printf("%q after %d request\n", p, c.Stats().Fetches)
	}
	// Output:
	// "what is read now" after 1 request
	// "what will be rea" after 1 request
}
