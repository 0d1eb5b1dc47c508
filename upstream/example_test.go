package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/dedupd/dedupd/upstream"
)

// A path may be absent, or it may not be known whether it is there.
func ExampleSource() {
	dir, err := os.MkdirTemp("", "cache-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var cache upstream.Source = upstream.NewDir(dir, "/nix/store")
	for range 2 {
		_, err := cache.NarInfo(context.Background(), "00000000000000000000000000000000")
		fmt.Println("absent:", errors.Is(err, upstream.ErrNotFound), "unreachable:", errors.Is(err, upstream.ErrUnreachable))
		if err := os.WriteFile(dir+"/nix-cache-info", []byte("StoreDir: /nix/store\n"), 0o600); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// absent: false unreachable: true
	// absent: true unreachable: false
}
