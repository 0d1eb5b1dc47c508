package index_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dedupd/dedupd/index"
)

func Example() {
	dir, err := os.MkdirTemp("", "index")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	ix, err := index.OpenBolt(filepath.Join(dir, "index"), index.Options{})
	if err != nil {
		panic(err)
	}
	defer ix.Close()

	pack, err := ix.PackNumber(ctx, "writer/000001-x7")
	if err != nil {
		panic(err)
	}
	known, unknown := index.Key{1}, index.Key{2}
	var batch index.Batch
	batch.PutChunk(known, index.Location{Pack: pack, Offset: 4096, Prefix: 12, Payload: 5000, Kind: 1, Chunks: 1, Len: 9000})
	batch.Put(index.Names, []byte("nix-cache-info"), []byte("StoreDir: /nix/store\n"))
	batch.Mark("journal 1", 5012)
	if err := ix.Apply(ctx, &batch); err != nil {
		panic(err)
	}

	var out [2]index.Location
	if err := ix.Chunks(ctx, []index.Key{known, unknown}, out[:]); err != nil {
		panic(err)
	}
	name, _ := ix.PackName(ctx, out[0].Pack)
	fmt.Println(name, out[0].Offset, out[1] == index.Location{})

	_, err = ix.Get(ctx, index.Names, []byte("index.html"))
	fmt.Println(errors.Is(err, index.ErrNotFound))

	if err := ix.Flush(ctx); err != nil { // only now, at the latest, it is durable
		panic(err)
	}
	marks, _ := ix.Marks(ctx)
	fmt.Println(marks)
	// Output:
	// writer/000001-x7 4096 true
	// true
	// map[journal 1:5012]
}
