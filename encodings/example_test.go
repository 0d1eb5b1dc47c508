package encodings_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dedupd/dedupd/encodings"
)

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	c, err := encodings.Open(encodings.Options{Dir: dir, Size: 1 << 20, Often: 1})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	download := func() {
		u := c.Use("nar/x.nar.xz")
		defer u.Close()
		u.Begin(encodings.Making{
			Size: 5, Limit: 100,
			Encode: func(_ context.Context, w io.Writer) error {
				_, err := io.WriteString(w, "small")
				return err
			},
			Verify: func(io.Reader) error { return nil },
		})
		size, _, ok := u.File()
		if !ok {
			u.Send(encodings.Stored)
			fmt.Println("something large, and a smaller file in the background")
			return
		}
		u.Send(encodings.Encoded)
		if err := u.Write(context.Background(), os.Stdout, 0, size); err != nil {
			panic(err)
		}
	}
	download()
	for c.Stats().Encoded == 0 {
		time.Sleep(time.Millisecond)
	}
	download()
	// Output:
	// something large, and a smaller file in the background
	// small
}
