package migrate

import (
	"context"
	"errors"
	"net/url"
	gopath "path"
	"regexp"
	"strings"

	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/pull"
	"github.com/dedupd/dedupd/upstream"
)

// Clients remember narinfos for 30 days, and with them the names of NARs at the source. Each
// such name is one here, too, whether its file was read or the NAR was here before. A path
// that was here before is looked up at the source for nothing but that; so that a path which
// has been imported is not, the narinfo that is stored has for its URL where it came from,
// which nobody else is shown.

// A linker is a sink that can give a NAR that it has another name.
type linker interface {
	LinkNAR(ctx context.Context, f chunkstore.File) error
}

// originOf returns what the URL of a stored narinfo begins with that came from source. The
// settings in its URL do not say which cache it is.
func originOf(source upstream.Source) string {
	name, _, _ := strings.Cut(source.Name(), "?")
	return strings.TrimSuffix(name, "/") + "/"
}

// settled says whether there is nothing more to be learnt of a path that is here.
func (im *importer) settled(have *narinfo.NarInfo) bool {
	return im.linker == nil || im.opts.DryRun || strings.HasPrefix(have.URL, im.origin)
}

// oldNames are those that the gateway serves: in nar/, and, as nix-push made them, beside the
// narinfos.
var oldNames = regexp.MustCompile(`^(nar/[0-9A-Za-z+\-_?=:!^][0-9A-Za-z+\-._?=:!^]{0,254}|[0-9A-Za-z]{1,128}\.nar(\.[0-9a-z]{1,8})?)$`)

// oldName returns the name by which clients of the source remember the NAR of info, if it
// can be one here.
func oldName(info *narinfo.NarInfo) (string, bool) {
	u, err := url.Parse(info.URL)
	if err != nil {
		return "", false
	}
	name := strings.TrimPrefix(u.Path, "/")
	return name, oldNames.MatchString(name)
}

// believable says whether the NAR of info may have a name that nobody has compared with a
// file: one that looks like a hash must be that of the NAR, or of the file as far as the
// narinfo says.
func believable(info *narinfo.NarInfo, name string) bool {
	hash, isHash := hashName(name)
	isFile := info.Compression != string(compression.None) && (info.FileHash == hash || info.FileHash.IsZero())
	return !isHash || isFile || hash == narinfo.NewHash(narinfo.SHA256, info.NarHash[:])
}

// hashName returns the hash that the name of a NAR is.
func hashName(name string) (narinfo.Hash, bool) {
	stem, _, _ := strings.Cut(gopath.Base(name), ".")
	hash, err := narinfo.ParseHash("sha256:" + stem)
	return hash, err == nil
}

// fileName returns the name under which the file of info's NAR is stored: the old one, unless
// something else has it here, or it says that the file has another compression.
func (im *importer) fileName(ctx context.Context, info *narinfo.NarInfo) (string, error) {
	name, ok := oldName(info)
	ext, want := gopath.Ext(name), compression.Type(info.Compression).Extension()
	if ok && im.linker != nil && (ext == want || want == "" && ext == ".nar") {
		f, err := im.store.File(ctx, name)
		if errors.Is(err, chunkstore.ErrNotFound) || err == nil && f.Content == info.NarHash && f.Compression == info.Compression {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
	return "nar/" + pull.FileName(info), nil
}

// link gives the NAR of info, which is here, the name that clients of the source remember.
func (im *importer) link(ctx context.Context, info *narinfo.NarInfo) error {
	name, ok := oldName(info)
	if !ok || !believable(info, name) {
		return nil
	}
	f := chunkstore.File{Name: name, Content: info.NarHash, Compression: info.Compression, FileSize: int64(info.FileSize)}
	if info.FileHash.Algo() == narinfo.SHA256 {
		f.FileHash = chunkstore.Hash(info.FileHash.Sum())
	}
	have, err := im.store.File(ctx, name)
	if errors.Is(err, chunkstore.ErrNotFound) {
		return im.linker.LinkNAR(ctx, f)
	}
	if err == nil && (have.Content != f.Content || have.Compression != f.Compression) {
		im.opts.Warn("something else has the old name of a NAR", "path", info.StorePath, "name", name)
	}
	return err
}

// plain lets info name the NAR itself.
func plain(info *narinfo.NarInfo) {
	info.URL, info.Compression = "nar/"+narinfo.EncodeNix32(info.NarHash[:])+".nar", string(compression.None)
	info.FileHash, info.FileSize = narinfo.NewHash(narinfo.SHA256, info.NarHash[:]), info.NarSize
}
