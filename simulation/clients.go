package simulation

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/narinfo"
)

// A client does one thing after another.
type client struct {
	*run
	rng *rand.Rand
}

// clientActs are what clients do, and how often.
var clientActs = []struct {
	weight int
	do     func(c *client)
}{
	{24, func(c *client) { c.uploadPath(encode(c.rng, c.library.next(c.rng))) }},
	{4, (*client).uploadAgain},
	{4, (*client).narInfoFirst},
	{4, (*client).together},
	{2, (*client).otherContents},
	{4, (*client).badNAR},
	{4, (*client).badNarInfo},
	{4, (*client).leave},
	{6, (*client).uploadFile},
	{40, (*client).download},
	{5, (*client).hangUp},
	{5, (*client).unknown},
}

func (c *client) act() {
	total := 0
	for _, a := range clientActs {
		total += a.weight
	}
	n := c.rng.IntN(total)
	for _, a := range clientActs {
		if n -= a.weight; n < 0 {
			c.operations.Add(1)
			a.do(c)
			return
		}
	}
}

// uploadPath does what "nix copy" does.
func (c *client) uploadPath(e *encoded) bool {
	return c.uploadNAR(e) && c.publish(e)
}

func (c *client) uploadNAR(e *encoded) bool {
	c.model.try(aNAR, e.name, e)
	return c.stored(e.name, c.put(e.name, e.body))
}

// stored says whether a client was told that what it uploaded is stored, as it should be.
func (c *client) stored(name string, a *answer) bool {
	switch {
	case a.status == http.StatusOK && !a.cut:
		c.model.ack(name)
		return true
	case a.failed() && c.writesMayFail():
	case c.model.isDamaged() && (a.status == http.StatusConflict || a.status == http.StatusBadRequest || a.status == http.StatusInternalServerError):
	default:
		c.bug("PUT %s: %v", name, a)
	}
	return false
}

// publish uploads the narinfo of a NAR that may have been uploaded.
func (c *client) publish(e *encoded) bool {
	n := c.model.get(e.name)
	name := e.path.HashPart() + ".narinfo"
	c.model.try(aPath, name, e)
	a := c.put(name, []byte(e.info().Text(c.repo.StoreDir)))
	if a.status == http.StatusBadRequest && (n == nil || !n.acked) {
		return false
	}
	return c.stored(name, a)
}

func (c *client) uploadAgain() {
	if a := c.library.some(c.rng); a != nil {
		c.uploadPath(encode(c.rng, a))
	}
}

func (c *client) narInfoFirst() {
	e := encode(c.rng, c.library.next(c.rng))
	if c.publish(e); c.uploadNAR(e) {
		c.publish(e)
	}
}

// together has some clients upload the same path at once.
func (c *client) together() {
	a := c.library.next(c.rng)
	var clients sync.WaitGroup
	for range 2 + c.rng.IntN(2) {
		other := &client{c.run, rand.New(rand.NewPCG(c.rng.Uint64(), 0))}
		clients.Go(func() { other.uploadPath(encode(other.rng, a)) })
	}
	clients.Wait()
}

// otherContents uploads a NAR for a path that has another one.
func (c *client) otherContents() {
	a := c.library.some(c.rng)
	if a == nil {
		return
	}
	other := *c.library.next(c.rng)
	other.path = a.path
	c.uploadPath(encode(c.rng, &other))
}

// refused says that an answer to a bad upload is as it should be.
func (c *client) refused(name string, a *answer) {
	if a.status >= 400 && a.status < 500 || a.cut && a.status == 0 || a.failed() && c.writesMayFail() {
		return
	}
	c.bug("PUT of a bad %s: %v", name, a)
}

// badNAR uploads a file that is not what its name says.
func (c *client) badNAR() {
	e := encode(c.rng, c.library.next(c.rng))
	b := bytes.Clone(e.body)
	switch c.rng.IntN(3) {
	case 0:
		b = b[:c.rng.IntN(len(b))]
	case 1:
		b[c.rng.IntN(len(b))] ^= 1 << c.rng.IntN(8)
	default:
		b = append(b, randomBytes(c.rng, 1+c.rng.IntN(100))...)
	}
	c.refused(e.name, c.put(e.name, b))
}

func (c *client) badNarInfo() {
	e := encode(c.rng, c.library.next(c.rng))
	if !c.uploadNAR(e) {
		return
	}
	info := e.info()
	switch c.rng.IntN(5) {
	case 0:
		info.NarHash[c.rng.IntN(32)] ^= 1
	case 1:
		info.NarSize += uint64(1 + c.rng.IntN(10))
	case 2:
		info.URL = "nar/" + narinfo.EncodeNix32(info.NarHash[:]) + ".nar.lz4"
		if e.typ == compression.LZ4 {
			info.URL += ".gone"
		}
	case 3:
		info.Compression = "bzip2"
	default:
		info.StorePath, _ = narinfo.ParseBaseName(narinfo.EncodeNix32(randomHash(c.rng)) + "-another")
	}
	name := e.path.HashPart() + ".narinfo"
	c.refused(name, c.put(name, []byte(info.Text(c.repo.StoreDir))))
}

// leave uploads a part of a file, and is gone.
func (c *client) leave() {
	e := encode(c.rng, c.library.next(c.rng))
	body := newUpload(e.body, c.rng.IntN(len(e.body)))
	c.refused(e.name, c.do(context.Background(), request{"PUT", e.name, body, len(e.body), nil, -1}))
}

func (c *client) uploadFile() {
	name := "log/" + narinfo.EncodeNix32(randomHash(c.rng)) + "-some.drv"
	if a := c.library.some(c.rng); a != nil && c.rng.IntN(2) == 0 {
		name = a.path.HashPart() + ".ls"
	}
	body := randomBytes(c.rng, randomSize(c.rng))
	c.model.try(aFile, name, body)
	c.stored(name, c.put(name, body))
}

// download gets something that was, or may have been, uploaded.
func (c *client) download() {
	if n := c.model.some(c.rng); n != nil {
		c.get(n)
	}
}

// get gets what is under a name. It says whether it is there.
func (c *client) get(n *name) bool {
	switch n.kind {
	case aPath:
		if c.rng.IntN(6) == 0 {
			c.getListing(strings.TrimSuffix(n.name, ".narinfo"))
		}
		return c.getPath(n.name)
	case aNAR:
		e := n.tried[0].(*encoded)
		if n.acked && c.rng.IntN(5) == 0 {
			w := c.begin(n.name)
			c.getNAR(w, "nar/"+narinfo.EncodeNix32(e.hash[:])+".nar", e.archive, compression.None)
		}
		return c.getNAR(c.begin(n.name), n.name, e.archive, e.typ)
	}
	if strings.HasSuffix(n.name, ".ls") {
		return c.getListing(strings.TrimSuffix(n.name, ".ls"))
	}
	w := c.begin(n.name)
	body := c.getBody(w, n.name)
	return body != nil && c.oneOf(n.name, body)
}

// oneOf says whether body is what was uploaded as a small file.
func (c *client) oneOf(name string, body []byte) bool {
	n := c.model.get(name)
	for _, thing := range n.tried {
		if bytes.Equal(thing.([]byte), body) {
			return true
		}
	}
	c.bug("GET %s: got %d bytes that nobody uploaded", name, len(body))
	return false
}

// getPath gets a narinfo, and the NAR that it names.
func (c *client) getPath(name string) bool {
	w := c.begin(name)
	body := c.getBody(w, name)
	if body == nil {
		return false
	}
	info, err := narinfo.Parse(body, c.repo.StoreDir)
	if err != nil {
		c.bug("GET %s: %v", name, err)
		return false
	}
	var e *encoded
	for _, thing := range c.model.get(name).tried {
		if t := thing.(*encoded); t.info().Fingerprint(c.repo.StoreDir) == info.Fingerprint(c.repo.StoreDir) {
			e = t
		}
	}
	if e == nil {
		c.bug("GET %s: nobody uploaded %q", name, body)
		return false
	}
	if _, ok := info.Verify(c.repo.StoreDir, []narinfo.PublicKey{c.key.Public()}); !ok {
		c.bug("GET %s: there is no signature", name)
	}
	w.acked = true // who is shown a narinfo must get the NAR
	ok := c.getNAR(w, info.URL, e.archive, compression.Zstd)
	if ok {
		c.verified.Add(1)
	}
	return ok
}

// getNAR gets a NAR under one of its names, and says whether it was there.
func (c *client) getNAR(w window, name string, a *archive, typ compression.Type) bool {
	body := c.getBody(w, name)
	if body == nil {
		return false
	}
	plain, err := decode(typ, body)
	if err != nil || !bytes.Equal(plain, a.nar) {
		c.bug("GET %s: the body of %d bytes is not the NAR, which has %d: %v", name, len(body), len(a.nar), err)
		return false
	}
	if c.rng.IntN(4) == 0 {
		c.getPart(w, name, body)
	}
	return true
}

// getBody gets all of what is under a name, nil if there is no answer, as there should be.
func (c *client) getBody(w window, name string) []byte {
	if c.rng.IntN(8) == 0 {
		a := c.fetch("HEAD", name, nil)
		if c.present(w, "HEAD", name, a) && a.body.Len() > 0 {
			c.bug("HEAD %s: %v", name, a)
		}
	}
	a := c.fetch("GET", name, nil)
	if !c.present(w, "GET", name, a) {
		return nil
	}
	if got := a.header.Get("Content-Length"); got != strconv.Itoa(a.body.Len()) || a.status != http.StatusOK {
		c.bug("GET %s: %v, Content-Length is %s", name, a, got)
		return nil
	}
	if a.body.Len() == 0 {
		return []byte{}
	}
	return a.body.Bytes()
}

// getPart gets a part of what is under a name.
func (c *client) getPart(w window, name string, body []byte) {
	from := c.rng.IntN(len(body))
	to := from + c.rng.IntN(len(body)-from)
	a := c.fetch("GET", name, map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", from, to)})
	if a.status == http.StatusRequestedRangeNotSatisfiable && c.model.isDamaged() || !c.present(w, "GET", name, a) {
		return
	}
	want := fmt.Sprintf("bytes %d-%d/%d", from, to, len(body))
	if a.status != http.StatusPartialContent || !bytes.Equal(a.body.Bytes(), body[from:to+1]) || a.header.Get("Content-Range") != want ||
		a.header.Get("Content-Length") != strconv.Itoa(a.body.Len()) {
		c.bug("GET %s, %d to %d: %v with headers %v", name, from, to, a, a.header)
	}
}

// present says whether there is something under a name. If it is not there, or cannot be
// reached, that must be allowed.
func (c *client) present(w window, method, name string, a *answer) bool {
	switch {
	case !a.cut && (a.status == http.StatusOK || a.status == http.StatusPartialContent):
		return true
	case a.failed() && c.readsMayFail(w):
	case a.status == http.StatusNotFound && !(w.acked && !c.model.isDamaged()):
	default:
		c.bug("%s %s: %v (acknowledged: %v)", method, name, a, w.acked)
	}
	return false
}

// getListing gets a listing, which is one that was uploaded, or one that the gateway made.
func (c *client) getListing(hashPart string) bool {
	name := hashPart + ".ls"
	w := c.begin(name)
	w.acked = w.acked || c.begin(hashPart+".narinfo").acked
	body := c.getBody(w, name)
	if body == nil {
		return false
	}
	if n := c.model.get(hashPart + ".narinfo"); n != nil {
		for _, thing := range n.tried {
			if bytes.Equal(thing.(*encoded).listing(), body) {
				return true
			}
		}
	}
	if c.model.get(name) == nil {
		c.bug("GET %s: %q is another path's", name, body)
		return false
	}
	return c.oneOf(name, body)
}

// hangUp stops in the middle of a download.
func (c *client) hangUp() {
	n := c.model.some(c.rng)
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.rng.IntN(2000))*time.Microsecond)
	defer cancel()
	c.do(ctx, request{"GET", n.name, nil, 0, nil, c.rng.IntN(1 << c.rng.IntN(20))})
}

// unknown asks for what nobody has uploaded.
func (c *client) unknown() {
	hash := narinfo.EncodeNix32(randomHash(c.rng))
	for _, name := range []string{hash + ".narinfo", hash + ".ls", "nar/" + hash + hash[:20] + ".nar.xz", "log/" + hash + "-x.drv"} {
		if a := c.fetch("GET", name, nil); a.status != http.StatusNotFound {
			c.bug("GET %s: %v", name, a)
		}
	}
}
