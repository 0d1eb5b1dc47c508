package chunkstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/packfile"
)

// Repository is what is fixed when a repository is created, since chunks are only
// shared between NARs that were cut in the same way. It is an object in the bucket.
type Repository struct {
	// Version is the version of all formats in the bucket. A newer one is refused.
	Version int `json:"version"`
	// StoreDir is the store directory of all paths, without a slash at the end.
	StoreDir string `json:"store_dir"`
	// Mask is the version of the masking rules.
	Mask int `json:"mask"`
	// Splitter is "rabin" or "fastcdc".
	Splitter string `json:"splitter"`
	// MinSize, AverageBits and MaxSize are the splitter's settings: chunks are at least
	// MinSize and at most MaxSize bytes long, and boundaries fall on average every
	// 2^AverageBits bytes beyond the minimum.
	MinSize     int `json:"min_size"`
	AverageBits int `json:"average_bits"`
	MaxSize     int `json:"max_size"`
	// Polynomial is that of the rabin splitter, in hexadecimal.
	Polynomial string `json:"polynomial,omitempty"`
	// Literal is the length in bytes below which a piece of a NAR stands in its recipe
	// instead of being a chunk.
	Literal int `json:"literal"`
	// ID is drawn when the repository is created: 32 hexadecimal digits. By it a state
	// directory knows its own. It is no setting.
	ID string `json:"id"`
	// Sum is the CRC-32C of the whole object, 8 hexadecimal digits, with zeros in their place.
	Sum string `json:"sum"`
}

const (
	formatVersion = 1
	maskVersion   = 1
	repositoryKey = "dedupd.json"
	maxRepository = 64 << 10

	// DefaultStoreDir is where nearly every Nix has its store.
	DefaultStoreDir = "/nix/store"

	// Splitters.
	Rabin   = "rabin"
	FastCDC = "fastcdc"
)

// DefaultRepository returns the settings of a new repository for storeDir.
func DefaultRepository(storeDir, splitter string) Repository {
	r := Repository{
		Version: formatVersion, StoreDir: storeDir, Mask: maskVersion, Splitter: splitter,
		MinSize: 64 << 10, AverageBits: 18, MaxSize: packfile.MaxChunk, Literal: 1 << 10,
	}
	if splitter == Rabin {
		// Irreducible, of degree 53; drawn once with chunker.RandomPolynomial.
		r.Polynomial = "35544b1aeed8c1"
	}
	return r
}

// Validate reports settings that this version cannot work with.
func (r Repository) Validate() error {
	switch {
	case r.Version > formatVersion || r.Mask > maskVersion:
		return fmt.Errorf("repository has format %d.%d, this dedupd knows %d.%d: upgrade dedupd", r.Version, r.Mask, formatVersion, maskVersion)
	case r.Version < 1 || r.Mask < 1:
		return fmt.Errorf("repository has no format version")
	case !strings.HasPrefix(r.StoreDir, "/") || strings.HasSuffix(r.StoreDir, "/") || len(r.StoreDir) > 255:
		return fmt.Errorf("store directory %q is not an absolute path without a slash at its end", r.StoreDir)
	case r.MinSize < 4<<10 || r.MaxSize > packfile.MaxChunk || r.AverageBits < 12 || r.AverageBits > 19 ||
		1<<r.AverageBits <= r.MinSize || 1<<r.AverageBits >= r.MaxSize:
		return fmt.Errorf("chunk sizes %d, 2^%d, %d: need 4096 ≤ minimum < 2^average bits < maximum ≤ %d",
			r.MinSize, r.AverageBits, r.MaxSize, packfile.MaxChunk)
	case r.Literal < 0 || r.Literal > r.MinSize:
		return fmt.Errorf("literal size %d is above the minimum chunk size", r.Literal)
	}
	s, err := newSplitter(r)
	if err != nil {
		return err
	}
	if s, ok := s.(*rabin); ok && (s.pol.Deg() != 53 || !s.pol.Irreducible()) {
		return fmt.Errorf("polynomial %q is not irreducible and of degree 53", r.Polynomial)
	}
	return nil
}

// openRepository returns the settings of the repository in b, which it creates with
// those of want if b has none and create is set. It is an error if they differ, unless
// want is zero.
func openRepository(ctx context.Context, b bucket.Bucket, want Repository, create bool) (Repository, error) {
	anything := want == Repository{}
	if anything {
		want = DefaultRepository(DefaultStoreDir, Rabin)
	}
	if err := want.Validate(); err != nil {
		return Repository{}, err
	}
	have, err := readRepository(ctx, b)
	if errors.Is(err, bucket.ErrNotFound) && !create {
		return Repository{}, fmt.Errorf("there is no repository in %s to follow, or that the state directory belongs to: is this the right bucket?", b)
	}
	if errors.Is(err, bucket.ErrNotFound) {
		want.ID = randomID()
		data := want.encode()
		err = b.Put(ctx, repositoryKey, bytes.NewReader(data), int64(len(data)))
		if err != nil && !errors.Is(err, bucket.ErrExists) {
			return Repository{}, fmt.Errorf("create repository in %s: %w", b, err)
		}
		have, err = readRepository(ctx, b)
	}
	if err != nil {
		return Repository{}, fmt.Errorf("open repository in %s: %w", b, err)
	}
	if err := have.Validate(); err != nil {
		return Repository{}, fmt.Errorf("open repository in %s: %w", b, err)
	}
	if len(have.ID) != 32 {
		return Repository{}, fmt.Errorf("open repository in %s: %q is not an ID", b, have.ID)
	}
	if want.ID, want.Sum = have.ID, have.Sum; have != want && !anything {
		return Repository{}, fmt.Errorf("repository in %s was created with other settings, which cannot be changed: it has %+v, asked for %+v", b, have, want)
	}
	return have, nil
}

// ownerFile of a state directory is a copy of the settings of the repository that it
// belongs to.
const ownerFile = "repository"

// stateOwner returns the repository that a state directory belongs to, the zero one if
// it is new.
func stateOwner(state string) (Repository, error) {
	path := filepath.Join(state, ownerFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Repository{}, nil
	} else if err != nil {
		return Repository{}, err
	}
	r, err := decodeRepository(data)
	if err != nil {
		return r, fmt.Errorf("%s is damaged: put a copy of %s of the right bucket in its place: %w", path, repositoryKey, err)
	}
	return r, nil
}

// claimState makes a new state directory the repository's, durably. It is an error if it
// is another's: its index and its spool are of no use here, and do harm.
func (r Repository) claimState(state string, owner Repository) error {
	if owner.ID == r.ID {
		return nil
	}
	if owner.ID != "" {
		return fmt.Errorf("state directory %s belongs to repository %s, the bucket holds %s: is this the right bucket?", state, owner.ID, r.ID)
	}
	if err := replaceFile(filepath.Join(state, ownerFile), r.encode()); err != nil {
		return fmt.Errorf("claim state directory: %w", err)
	}
	return syncDir(state)
}

// replaceFile gives the file at path other contents, all or nothing. Whether a crash undoes
// it is for the caller to see to, with syncDir.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// noSum stands where the sum is while it is computed.
const noSum = "00000000"

// encode returns the object that holds the settings.
func (r Repository) encode() []byte {
	r.Sum = noSum
	return sealJSON(r)
}

// decodeRepository is the inverse of encode. Bytes of a newer version, with other
// settings, are checked as well.
func decodeRepository(data []byte) (Repository, error) {
	var r Repository
	if err := json.Unmarshal(data, &r); err != nil {
		return Repository{}, fmt.Errorf("%w: %w", packfile.ErrCorrupt, err)
	}
	if !sealedJSON(data, r.Sum) {
		return Repository{}, fmt.Errorf("%w: wrong checksum", packfile.ErrCorrupt)
	}
	return r, nil
}

// sealJSON returns v as JSON, whose last field, a sum that is noSum, becomes that of the
// whole.
func sealJSON(v any) []byte {
	data, _ := json.MarshalIndent(v, "", "  ") // never fails
	data = append(data, '\n')
	sum := hexSum(data)
	copy(data[bytes.LastIndex(data, []byte(noSum)):], sum)
	return data
}

// sealedJSON says whether data is what sealJSON has made, with that sum.
func sealedJSON(data []byte, sum string) bool {
	at := bytes.LastIndex(data, []byte(sum))
	data = bytes.Clone(data)
	return len(sum) == len(noSum) && at >= 0 && copy(data[at:], noSum) == len(noSum) && hexSum(data) == sum
}

// hexSum is the CRC-32C of data, as 8 hexadecimal digits.
func hexSum(data []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

// ReadRepository returns the settings of the repository in b; the error wraps
// bucket.ErrNotFound if there is none.
func ReadRepository(ctx context.Context, b bucket.Bucket) (Repository, error) {
	r, err := readRepository(ctx, b)
	if err == nil {
		err = r.Validate()
	}
	return r, err
}

func readRepository(ctx context.Context, b bucket.Bucket) (Repository, error) {
	info, err := b.Stat(ctx, repositoryKey)
	if err != nil {
		return Repository{}, err
	}
	if info.Size > maxRepository {
		return Repository{}, fmt.Errorf("%s is %d bytes long", repositoryKey, info.Size)
	}
	data := make([]byte, info.Size)
	if err := b.ReadAt(ctx, repositoryKey, data, 0); err != nil {
		return Repository{}, err
	}
	r, err := decodeRepository(data)
	if err != nil {
		return r, fmt.Errorf("%s is damaged: put the file %q of the state directory in its place, which is a copy: %w", repositoryKey, ownerFile, err)
	}
	return r, nil
}
