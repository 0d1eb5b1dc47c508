package bucket_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/dedupd/dedupd/bucket"
)

func Example() {
	dir, err := os.MkdirTemp("", "bucket")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	ctx := context.Background()
	b, err := bucket.Open(ctx, "file://"+dir)
	if err != nil {
		panic(err)
	}
	pack := strings.NewReader("frames, records, directory, trailer")
	if err := b.Put(ctx, "writer/000001-x7", pack, pack.Size()); err != nil {
		panic(err)
	}
	p := make([]byte, 7)
	if err := b.ReadAt(ctx, "writer/000001-x7", p, 8); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", p)

	err = b.Put(ctx, "writer/000001-x7", pack, pack.Size())
	fmt.Println(errors.Is(err, bucket.ErrExists))
	// Output:
	// records
	// true
}
