package metrics

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/dedupd/dedupd/bucket"
)

// errorKind is the label of an error of a bucket.
func errorKind(err error) string {
	for _, k := range []struct {
		err  error
		name string
	}{
		{bucket.ErrNotFound, "not_found"},
		{bucket.ErrExists, "exists"},
		{io.ErrUnexpectedEOF, "short"},
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "timeout"},
		{syscall.ENOSPC, "no_space"},
		{syscall.EDQUOT, "no_space"},
	} {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	return "other"
}
