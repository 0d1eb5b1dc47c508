package push_test

import (
	"context"
	"log"
	"os"

	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/nixstore"
	"github.com/dedupd/dedupd/push"
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
	closure, err := store.Closure(ctx, []narinfo.StorePath{path})
	if err != nil {
		log.Fatal(err)
	}
	opts := push.Options{URL: "https://cache.example", StoreDir: store.Dir()}
	report, err := push.Push(ctx, store, closure, opts, new(push.Progress))
	if err != nil {
		log.Fatal(err)
	}
	report.WriteText(os.Stdout)
}
