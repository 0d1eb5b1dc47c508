package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
)

// debuginfo/<build-id>.debug is JSON with, among others, the URL of a NAR, relative to the
// directory debuginfo, and the name of a file in it (Nix: src/libstore/binary-cache-store.cc):
//
//	{"archive":"../nar/<file>","member":"lib/debug/.build-id/ab/cd….debug"}

var (
	errNoTarget  = errors.New("not what index-debug-info writes")
	errNoArchive = errors.New("what it refers to is not here")
)

// retarget returns a file of debug information whose archive is a NAR that is served here: as
// it is, or with the NAR itself instead, if it had a compression that cannot be made again.
func (im *importer) retarget(ctx context.Context, r io.Reader) (io.Reader, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var archive string
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTarget, err)
	}
	if err := json.Unmarshal(fields["archive"], &archive); err != nil {
		return nil, fmt.Errorf("%w: archive: %w", errNoTarget, err)
	}
	base := url.URL{Path: "/debuginfo/"}
	u, err := base.Parse(archive)
	if err != nil {
		return nil, fmt.Errorf("%w: archive: %w", errNoTarget, err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	f, err := im.store.File(ctx, name)
	if errors.Is(err, chunkstore.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s", errNoArchive, archive)
	} else if err != nil {
		return nil, err
	}
	if f.NAR && !compression.Type(f.Compression).Reproducible() {
		name = "nar/" + narinfo.EncodeNix32(f.Content[:]) + ".nar"
	} else if u.Host == "" {
		return bytes.NewReader(text), nil
	}
	if fields["archive"], err = json.Marshal("../" + name); err != nil {
		return nil, err
	}
	if text, err = json.Marshal(fields); err != nil {
		return nil, err
	}
	return bytes.NewReader(text), nil
}
