package migrate

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/narinfo"
)

// A list calls fn with items until there are no more. An error of fn ends it and is
// returned.
type list func(ctx context.Context, fn func(string) error) error

func listOf(items []string) list {
	return func(_ context.Context, fn func(string) error) error {
		for _, item := range items {
			if err := fn(item); err != nil {
				return err
			}
		}
		return nil
	}
}

// walk calls do with the hash parts of paths, for several at a time, and then, if closures
// are wanted, with those of what these refer to, level by level, each once. Each level goes
// through look, unless that is nil.
func walk(ctx context.Context, jobs int, paths list, closure bool, look func(list) list, do func(ctx context.Context, hashPart string) ([]narinfo.StorePath, error)) error {
	if look == nil {
		look = func(paths list) list { return paths }
	}
	if !closure {
		return each(ctx, jobs, look(paths), func(ctx context.Context, hashPart string) error {
			_, err := do(ctx, hashPart)
			return err
		})
	}
	var mu sync.Mutex
	seen := map[string]bool{} // guarded by mu, as next is
	for {
		var next []string
		fresh := func(ctx context.Context, fn func(string) error) error {
			return paths(ctx, func(hashPart string) error {
				mu.Lock()
				again := seen[hashPart]
				seen[hashPart] = true
				mu.Unlock()
				if again {
					return nil
				}
				return fn(hashPart)
			})
		}
		err := each(ctx, jobs, look(fresh), func(ctx context.Context, hashPart string) error {
			refs, err := do(ctx, hashPart)
			mu.Lock()
			defer mu.Unlock()
			for _, ref := range refs {
				if !seen[ref.HashPart()] {
					next = append(next, ref.HashPart())
				}
			}
			return err
		})
		if err != nil || len(next) == 0 {
			return err
		}
		paths = listOf(next)
	}
}

// each calls do with what list has, for several at a time, until one fails.
func each(ctx context.Context, jobs int, items list, do func(context.Context, string) error) error {
	group, ctx := errgroup.WithContext(ctx)
	work := make(chan string)
	group.Go(func() error {
		defer close(work)
		return items(ctx, func(item string) error {
			select {
			case work <- item:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	for range jobs {
		group.Go(func() error {
			for item := range work {
				if err := do(ctx, item); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
