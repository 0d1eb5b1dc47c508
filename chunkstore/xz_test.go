package chunkstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/dedupd/dedupd/compression"
)

// NARs that xz decodes in processes of its own come in as all others do, and what is wrong
// with them is the client's fault.
func TestXZProgram(t *testing.T) {
	program, err := compression.FindProgram(t.Context(), 2)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	rnd := testSeed(t)
	s := testStore(t, t.TempDir(), func(o *Options) { o.XZ = program })
	var files, nars [6][]byte
	for i := range files {
		nars[i] = narOf(t, rnd, 300<<10)
		cmd := exec.Command("xz", "-0")
		cmd.Stdin = bytes.NewReader(nars[i])
		if files[i], err = cmd.Output(); err != nil {
			t.Fatal(err)
		}
	}
	var uploads sync.WaitGroup
	for i, file := range files {
		uploads.Go(func() {
			f, err := s.PutNAR(t.Context(), fmt.Sprintf("nar/%d.nar.xz", i), bytes.NewReader(file), nil)
			if err != nil || f.Content != sha256.Sum256(nars[i]) || f.FileHash != sha256.Sum256(file) || f.FileSize != int64(len(file)) {
				t.Errorf("got %+v, %v", f, err)
			}
		})
	}
	uploads.Wait()

	broken, cancelled := errors.New("connection reset"), context.Canceled
	half := files[0][:len(files[0])/2]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, test := range []struct {
		name string
		r    io.Reader
		want []error
		not  error
	}{
		{"cut", bytes.NewReader(half), []error{ErrBadUpload, compression.ErrCorrupt}, compression.ErrProgram},
		{"garbage behind", bytes.NewReader(append(bytes.Clone(files[0]), "garbage!"...)), []error{ErrBadUpload, compression.ErrCorrupt}, compression.ErrProgram},
		{"broken off", io.MultiReader(bytes.NewReader(half), iotest.ErrReader(broken)), []error{broken}, ErrBadUpload},
		{"cancelled", io.MultiReader(bytes.NewReader(half), readerFunc(func([]byte) (int, error) { cancel(); return 0, cancelled })), []error{cancelled}, ErrBadUpload},
	} {
		_, err := s.PutNAR(ctx, "nar/x.nar.xz", test.r, nil)
		for _, want := range test.want {
			if !errors.Is(err, want) || errors.Is(err, test.not) {
				t.Errorf("%s: got %v, want %v", test.name, err, want)
			}
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
