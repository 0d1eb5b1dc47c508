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
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"github.com/dedupd/dedupd/faultfs"
	"github.com/dedupd/dedupd/narinfo"
)

// A killLoad is the store paths that clients upload in every run, the last one after
// recovery.
type killLoad struct {
	paths []killPath
}

// A killPath is a store path with its NAR.
type killPath struct {
	url, narURL string
	info        *narinfo.NarInfo
	text        []byte // of info
	nar         []byte
}

// newKillLoad makes n paths of 1 KB to 300 KB. Many share parts of their files; some have
// the NAR of another one, which is uploaded at about the same time.
func newKillLoad(seed uint64, n int) (*killLoad, error) {
	l, rnd := &killLoad{}, rand.New(rand.NewPCG(seed, 0))
	for i := range n + 1 {
		var b []byte
		if i%8 == 7 {
			b = l.paths[i-1-rnd.IntN(4)].nar
		} else {
			var err error
			if b, err = killNAR(rnd, int(1000*math.Pow(300, rnd.Float64()*rnd.Float64()))); err != nil {
				return nil, err
			}
		}
		hash := sha256.Sum256(b)
		part := sha256.Sum256(append(hash[:], byte(i), byte(i>>8)))
		path, err := narinfo.ParseBaseName(narinfo.EncodeNix32(part[:20]) + "-killed")
		if err != nil {
			return nil, err
		}
		info := &narinfo.NarInfo{
			StorePath: path, URL: "nar/" + narinfo.EncodeNix32(hash[:]) + ".nar", Compression: "none",
			NarHash: hash, NarSize: uint64(len(b)),
		}
		l.paths = append(l.paths, killPath{
			url: "/" + path.HashPart() + ".narinfo", narURL: "/" + info.URL,
			info: info, text: info.Append(nil, "/nix/store"), nar: b,
		})
	}
	return l, nil
}

// A killRun is what became of the uploads of one run.
type killRun struct {
	*killLoad
	begun atomic.Int64 // paths
	acked []killAck    // for each path
	mu    sync.Mutex
	err   error // what no kill explains
}

type killAck struct{ nar, info bool }

func (l *killLoad) newRun() *killRun {
	return &killRun{killLoad: l, acked: make([]killAck, len(l.paths))}
}

func (r *killRun) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, err)
}

// live starts the server on v, uploads everything, and stops the server. It says whether
// that was killed.
func (r *killRun) live(v *faultfs.Volume) (killed bool, err error) {
	s, err := startKilled(v)
	if err != nil || s == nil {
		return s == nil, err
	}
	defer s.kill()
	client := newKillClient(s.url)
	defer client.close()
	var clients sync.WaitGroup
	for range killClients {
		clients.Go(func() {
			for {
				i := int(r.begun.Add(1)) - 1
				if i >= len(r.paths)-1 || !r.upload(client, i) {
					return
				}
			}
		})
	}
	clients.Wait()
	killed, err = shutDown(s)
	return killed, errors.Join(r.err, err)
}

// upload says whether path i was acknowledged.
func (r *killRun) upload(c *killClient, i int) bool {
	p, ack := &r.paths[i], &r.acked[i]
	ack.nar = r.put(c, p.narURL, p.nar)
	ack.info = ack.nar && r.put(c, p.url, p.text)
	return ack.info
}

func (r *killRun) put(c *killClient, path string, body []byte) bool {
	status, text, err := c.do("PUT", path, body)
	if err != nil {
		return false // killed
	}
	if status != 200 {
		r.fail(fmt.Errorf("PUT %s: status %d: %s", path, status, text))
	}
	return status == 200
}

// verify gets everything whose upload was begun from a server that has recovered, and
// uploads something. It returns how many narinfos and NARs had been acknowledged.
func (r *killRun) verify(url string) (infos, nars int, err error) {
	c := newKillClient(url)
	defer c.close()
	last := len(r.paths) - 1
	again := killRun{killLoad: r.killLoad, acked: append(slices.Clone(r.acked[:last]), killAck{})}
	if !again.upload(c, last) {
		return 0, 0, errors.Join(errors.New("an upload after recovery failed"), again.err)
	}
	acked := map[string]bool{} // URLs of NARs
	for i, ack := range again.acked {
		acked[r.paths[i].narURL] = acked[r.paths[i].narURL] || ack.nar
	}
	for i, ack := range again.acked {
		if i >= int(r.begun.Load()) && i != last {
			continue
		}
		p := &r.paths[i]
		// The narinfo's URL is another for the same NAR, so that a sample of these will do.
		if !ack.info || i%4 == 0 {
			if err := c.verifyNAR(p, acked[p.narURL]); err != nil {
				return 0, 0, fmt.Errorf("path %d: %w", i, err)
			}
		}
		if err := c.verifyInfo(p, ack.info); err != nil {
			return 0, 0, fmt.Errorf("path %d: %w", i, err)
		}
		if ack.info {
			infos++
		}
		if ack.nar {
			nars++
		}
	}
	return infos, nars, nil
}

// A killClient keeps its connections to one server.
type killClient struct {
	url    string
	client http.Client
	decode *zstd.Decoder
}

func newKillClient(url string) *killClient {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return &killClient{url, http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: killClients}}, d}
}

func (c *killClient) close() {
	c.client.CloseIdleConnections()
	c.decode.Close()
}

func (c *killClient) do(method, path string, body []byte) (int, []byte, error) {
	req, err := http.NewRequest(method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// verifyNAR gets the NAR of p under the name that it was uploaded as.
func (c *killClient) verifyNAR(p *killPath, acked bool) error {
	status, body, err := c.do("GET", p.narURL, nil)
	switch {
	case err != nil:
		return err
	case status == 404 && !acked:
		return nil
	case status != 200 || !bytes.Equal(body, p.nar):
		return fmt.Errorf("GET %s: status %d, %d of %d bytes, acknowledged: %v", p.narURL, status, len(body), len(p.nar), acked)
	}
	return nil
}

// verifyInfo gets the narinfo of p, which must say what was uploaded but for the file, and
// the NAR that it names.
func (c *killClient) verifyInfo(p *killPath, acked bool) error {
	status, text, err := c.do("GET", p.url, nil)
	switch {
	case err != nil:
		return err
	case status == 404 && !acked:
		return nil
	case status != 200:
		return fmt.Errorf("GET %s: status %d: %s, acknowledged: %v", p.url, status, text, acked)
	}
	info, err := narinfo.Parse(text, "/nix/store")
	if err != nil {
		return fmt.Errorf("GET %s: %w", p.url, err)
	}
	served := *info
	info.URL, info.Compression, info.FileSize = p.info.URL, p.info.Compression, p.info.FileSize
	if got := info.Append(nil, "/nix/store"); !bytes.Equal(got, p.text) {
		return fmt.Errorf("GET %s: got\n%s\nwant\n%s", p.url, got, p.text)
	}
	status, body, err := c.do("GET", "/"+served.URL, nil)
	if err != nil {
		return err
	}
	got, err := c.decode.DecodeAll(body, nil)
	if status != 200 || uint64(len(body)) != served.FileSize || err != nil || !bytes.Equal(got, p.nar) {
		return fmt.Errorf("GET %s: status %d, %d of %d bytes, %d of %d decoded: %w", served.URL, status, len(body), served.FileSize, len(got), len(p.nar), err)
	}
	return nil
}
