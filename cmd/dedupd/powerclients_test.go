//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
)

// powerClients upload paths and remember what was acknowledged.
type powerClients struct {
	mu      sync.Mutex
	uploads []*powerUpload
	size    int // bytes of NARs that were tried
	acked   int // uploads of NARs and narinfos
}

// A powerUpload is a path that somebody has tried to upload.
type powerUpload struct {
	info *narinfo.NarInfo
	seed uint64 // of the NAR

	// What must be there from now on, for it was acknowledged, or seen. The mutex of
	// powerClients guards them.
	nar, path bool
}

// powerHTTP gives up on a server that hangs.
var powerHTTP = &http.Client{Timeout: 2 * time.Minute}

// run uploads paths until that fails.
func (c *powerClients) run(url string, random *rand.Rand) error {
	for {
		if err := c.upload(url, random); err != nil {
			return err
		}
		time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond) // else all time goes into verifying
	}
}

// upload uploads a path: mostly a new one, sometimes one that was not acknowledged when
// the power was cut, sometimes another path with a NAR that was there.
func (c *powerClients) upload(url string, random *rand.Rand) error {
	u, err := c.choose(random)
	if err != nil {
		return err
	}
	c.mu.Lock()
	nar := u.nar
	c.mu.Unlock()
	if !nar {
		b, err := powerNAR(u.seed)
		if err != nil {
			return err
		}
		if err := powerPut(url+"/"+u.info.URL, b); err != nil {
			return err
		}
		c.acknowledged(&u.nar)
	}
	if err := powerPut(url+"/"+u.info.StorePath.HashPart()+".narinfo", u.info.Append(nil, "/nix/store")); err != nil {
		return err
	}
	c.acknowledged(&u.path)
	return nil
}

func (c *powerClients) acknowledged(what *bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*what = true
	c.acked++
}

func (c *powerClients) choose(random *rand.Rand) (*powerUpload, error) {
	c.mu.Lock()
	var old *powerUpload
	if len(c.uploads) > 0 {
		old = c.uploads[random.IntN(len(c.uploads))]
	}
	c.mu.Unlock()
	seed := random.Uint64()
	if old != nil && random.IntN(6) == 0 {
		seed = old.seed
	} else if old != nil && random.IntN(6) == 0 {
		return old, nil
	}
	b, err := powerNAR(seed)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(b)
	name := fmt.Appendf(nil, "%d", random.Uint64())
	digest := sha256.Sum256(name)
	path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(digest[:20]) + "-cut")
	if err != nil {
		return nil, err
	}
	u := &powerUpload{seed: seed, info: &narinfo.NarInfo{
		StorePath: path, URL: "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar", Compression: "none",
		NarHash: hash, NarSize: uint64(len(b)),
	}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uploads = append(c.uploads, u)
	c.size += len(b)
	return u, nil
}

func powerNAR(seed uint64) ([]byte, error) {
	random := rand.New(rand.NewPCG(seed, 0))
	// From 1 KB to 2 MB, small ones as often as large ones.
	return killNAR(random, int(1000*math.Exp(random.Float64()*math.Log(2000))))
}

// powerPut returns nil if the upload was acknowledged.
func powerPut(url string, b []byte) error {
	req, err := http.NewRequest("PUT", url, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := powerHTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("PUT %s: %s: %s", url, resp.Status, text)
	}
	return err
}

// verify gets everything that was ever tried. What is there counts as acknowledged from
// now on: a client that sees it relies on it.
func (c *powerClients) verify(url string, count *powerCount) error {
	var errs []error
	for _, u := range c.uploads {
		nar, path := u.nar, u.path
		var err error
		if u.path, err = u.verifyPath(url); err == nil {
			u.nar, err = u.get(url, u.info.URL, "none")
		}
		switch {
		case err != nil:
		case path && !u.path:
			err = errors.New("the narinfo was acknowledged and is lost")
		case nar && !u.nar:
			err = errors.New("the NAR was acknowledged and is lost")
		case u.path && !u.nar:
			err = errors.New("there is a narinfo and no NAR")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s (NAR of %d bytes acknowledged: %t, narinfo: %t): %w", u.info.StorePath.HashPart(), u.info.NarSize, nar, path, err))
		}
		count.add(u, nar, path)
	}
	powerHTTP.CloseIdleConnections()
	const most = 5
	if len(errs) > most {
		errs = append(errs[:most], fmt.Errorf("%d more", len(errs)-most))
	}
	return errors.Join(errs...)
}

// add counts what was verified of u, of which nar and path were known before.
func (n *powerCount) add(u *powerUpload, nar, path bool) {
	for _, known := range []bool{nar, path} {
		if known {
			n.verified++
		} else {
			n.unacked++
		}
	}
}

// verifyPath says whether there is a narinfo of u, and fails if it is another one, or if
// its NAR is.
func (u *powerUpload) verifyPath(url string) (bool, error) {
	status, b, err := powerGet(url + "/" + u.info.StorePath.HashPart() + ".narinfo")
	if err != nil || status == http.StatusNotFound {
		return false, err
	}
	info, err := narinfo.Parse(b, "/nix/store")
	if err != nil {
		return false, fmt.Errorf("narinfo with status %d: %w", status, err)
	}
	if got, want := info.Fingerprint("/nix/store"), u.info.Fingerprint("/nix/store"); got != want {
		return false, fmt.Errorf("narinfo: got %s, want %s", got, want)
	}
	there, err := u.get(url, info.URL, info.Compression)
	if err == nil && !there {
		err = fmt.Errorf("there is a narinfo, but not its %s", info.URL)
	}
	return true, err
}

// get says whether there is a file with the NAR of u, and fails if it is another NAR.
func (u *powerUpload) get(url, file, typ string) (bool, error) {
	status, b, err := powerGet(url + "/" + file)
	if err != nil || status == http.StatusNotFound {
		return false, err
	}
	r, err := compression.NewReader(compression.Type(typ), bytes.NewReader(b), compression.Limits{})
	if err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil || [32]byte(h.Sum(nil)) != u.info.NarHash {
		return false, fmt.Errorf("%s: status %d, %d bytes that are not the NAR: %v", file, status, n, err)
	}
	return true, nil
}

// powerGet gets a file whole. Only a status of 200 or 404 is not an error.
func powerGet(url string) (int, []byte, error) {
	resp, err := powerHTTP.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound {
		err = fmt.Errorf("GET %s: %s: %s", url, resp.Status, b)
	}
	return resp.StatusCode, b, err
}
