package gateway_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/gateway"
)

func Example() {
	dir, err := os.MkdirTemp("", "gateway")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, stop := context.WithCancel(context.Background())
	b, err := bucket.Open(ctx, "file://"+filepath.Join(dir, "bucket"))
	if err != nil {
		log.Fatal(err)
	}
	store, err := chunkstore.Open(ctx, chunkstore.Options{State: filepath.Join(dir, "state"), Bucket: b})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- gateway.New(store, gateway.Config{Priority: 35}).Serve(ctx, l) }()

	resp, err := http.Get(fmt.Sprintf("http://%s/nix-cache-info", l.Addr()))
	if err != nil {
		log.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Printf("%s", text)

	stop()
	if err := <-served; err != nil {
		log.Fatal(err)
	}
	if err := store.Close(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output:
	// StoreDir: /nix/store
	// WantMassQuery: 1
	// Priority: 35
}
