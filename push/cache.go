package push

import (
	"context"
	"io"
	"net/http"
)

// A Cache is one that files can be put into, for those that do not have them in a store. Its
// methods may be called concurrently, but for Absent. What may pass by itself they try several times.
type Cache struct{ c *client }

// Open returns the cache at opts.URL, if there is one for the store directory.
func Open(ctx context.Context, opts Options) (*Cache, error) {
	if opts.Jobs == 0 {
		opts.Jobs = 8
	}
	c, err := newClient(&opts, new(Progress))
	if err != nil {
		return nil, err
	}
	return &Cache{c}, c.checkCache(ctx)
}

// Close ends the connections that are not in use.
func (c *Cache) Close() error {
	c.c.http.CloseIdleConnections()
	return nil
}

// Absent returns which paths, by their hash parts, the cache does not have. It asks dedupd for
// many at once.
func (c *Cache) Absent(ctx context.Context, hashParts []string) (map[string]bool, error) {
	return c.c.absent(ctx, hashParts)
}

// Head returns the header with which the cache serves a file, and nil if it does not have it.
func (c *Cache) Head(ctx context.Context, name string) (http.Header, error) {
	return c.c.head(ctx, name)
}

// Put uploads a file of size bytes. What the cache says against it is a *StatusError.
func (c *Cache) Put(ctx context.Context, name, contentType string, file io.ReaderAt, size int64) error {
	return c.c.retry(ctx, func() error {
		_, err := c.c.do(ctx, http.MethodPut, name, contentType, io.NewSectionReader(file, 0, size), maxMessage)
		return err
	})
}
