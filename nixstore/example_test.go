//go:build unix

package nixstore_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/dedupd/dedupd/nixstore"
)

func Example() {
	ctx := context.Background()
	store, err := nixstore.Open(ctx, nixstore.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	path, err := store.Resolve("./result")
	if err != nil {
		log.Fatal(err)
	}
	info, err := store.NarInfo(ctx, path.HashPart())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(info.Text(store.Dir()))
	nar, _, err := store.NAR(ctx, info, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer nar.Close()
	if _, err := io.Copy(os.Stdout, nar); err != nil {
		log.Fatal(err)
	}
}
