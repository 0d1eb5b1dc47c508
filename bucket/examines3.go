package bucket

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	examineTimeout = 5 * time.Minute // of one step
	maxSkew        = time.Minute     // S3 refuses at 15
	certificateAge = 14 * 24 * time.Hour
)

// An s3Examination tries things out with an object of its own.
type s3Examination struct {
	*examination
	*S3
	transport *http.Transport
	key       string // with the bucket's prefix
}

func (e *examination) s3(ctx context.Context, rawURL string) {
	s, err := newS3(rawURL)
	if !e.try("url", err, "bucket and settings are well-formed", "see the settings in docs/operations.md; files that the URL names must be there") {
		return
	}
	x := &s3Examination{e, s, nil, s.cfg.prefix + probePrefix + rand.Text()}
	if x.transport, err = s.cfg.transport(); err != nil {
		e.fail("url", err.Error(), "the file that the URL names must be there")
		return
	}
	defer x.transport.CloseIdleConnections()
	for _, step := range []func(context.Context) bool{
		x.connect, x.encryption, x.clock, x.identity, x.list, x.put, x.createOnly, x.checksums, x.reads, x.speed, x.delete, x.rules,
	} {
		ctx, cancel := context.WithTimeout(ctx, examineTimeout)
		more := step(ctx)
		cancel()
		if !more {
			return
		}
	}
}

func (x *s3Examination) host() string {
	host := x.cfg.endpoint.Hostname()
	if x.cfg.lookup == minio.BucketLookupDNS {
		host = x.cfg.bucket + "." + host
	}
	return host
}

func (x *s3Examination) addr() string {
	port := x.cfg.endpoint.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[x.cfg.endpoint.Scheme]
	}
	return net.JoinHostPort(x.host(), port)
}

func (x *s3Examination) connect(ctx context.Context) bool {
	addrs, err := net.DefaultResolver.LookupHost(ctx, x.host())
	if !x.try("dns", err, fmt.Sprintf("%s is %v", x.host(), addrs), "the host of endpoint has no address; with style=path it is without the bucket's name") {
		return false
	}
	start := time.Now()
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", x.addr())
	if err == nil {
		conn.Close()
	}
	return x.try("tcp", err, fmt.Sprintf("%s connects in %v", x.addr(), time.Since(start).Round(time.Microsecond)), "nothing listens there, or something in between forbids it")
}

func (x *s3Examination) encryption(ctx context.Context) bool {
	if x.cfg.endpoint.Scheme != "https" {
		x.warn("tls", "not encrypted", "whoever is in between reads all that is stored; bodies are signed, so they cannot be changed")
		return true
	}
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: x.transport.TLSClientConfig}).DialContext(ctx, "tcp", x.addr())
	if err != nil {
		x.fail("tls", err.Error(), "the certificate is not valid for this host; with one of your own, name its root with ca in the URL")
		return false
	}
	defer conn.Close()
	expires := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter
	found := "the certificate is valid until " + expires.Format(time.DateOnly)
	if time.Until(expires) < certificateAge {
		x.warn("tls", found, "renew it: after that day nothing reaches the bucket")
		return true
	}
	x.good("tls", "%s", found)
	return true
}

func (x *s3Examination) clock(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, x.cfg.endpoint.Scheme+"://"+x.addr(), nil)
	if err != nil {
		x.fail("clock", err.Error(), "the endpoint is no address of a server")
		return false
	}
	resp, err := x.transport.RoundTrip(req)
	if err != nil {
		x.fail("http", err.Error(), "this is no HTTP server")
		return false
	}
	resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		x.warn("clock", "the server does not say what time it is", "see that both clocks are right: S3 refuses what is 15 minutes off")
		return true
	}
	// The header has whole seconds.
	if skew := time.Since(date).Round(time.Second); skew.Abs() > maxSkew {
		x.warn("clock", fmt.Sprintf("this machine is %v ahead of the server", skew), "set the clock (NTP): S3 refuses what is 15 minutes off")
	} else {
		x.good("clock", "within %v of the server's", skew.Abs()+time.Second)
	}
	return true
}

func (x *s3Examination) identity(context.Context) bool {
	for _, p := range x.cfg.providers(x.transport) {
		v, err := p.RetrieveWithCredContext(&credentials.CredContext{Client: &http.Client{Transport: x.transport, Timeout: iamTimeout}})
		if err != nil || v.AccessKeyID == "" {
			continue
		}
		source := "a role or a web identity"
		switch p := p.(type) {
		case *credentials.EnvAWS:
			source = "the environment"
		case *credentials.FileAWSCredentials:
			source = "the file " + p.Filename
			if p.Filename == "" {
				source = "the file ~/.aws/credentials"
			}
		}
		x.good("credentials", "from %s", source)
		return true
	}
	x.fail("credentials", "none are found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file with credentials in the URL")
	return false
}

func (x *s3Examination) list(ctx context.Context) bool {
	_, err := x.listed(ctx, x.key)
	if err == nil {
		x.bucket = x.S3
	}
	return x.try("list", err, "the bucket can be listed", "the bucket must be there, and the key have the right s3:ListBucket")
}

// listed says whether the bucket lists key.
func (x *s3Examination) listed(ctx context.Context, key string) (bool, error) {
	opts := minio.ListObjectsOptions{Prefix: key, Recursive: true, MaxKeys: 1}
	x.cfg.payer(opts.Set)
	for o := range x.core.ListObjectsIter(ctx, x.cfg.bucket, opts) {
		return o.Key == key, o.Err
	}
	return false, ctx.Err()
}

// write puts data, signed as if it were signed.
func (x *s3Examination) write(ctx context.Context, key string, data, signed []byte) error {
	sum := sha256.Sum256(signed)
	_, err := x.core.PutObject(ctx, x.cfg.bucket, key, bytes.NewReader(data), int64(len(data)), "", hex.EncodeToString(sum[:]), x.cfg.putOptions())
	return err
}

func (x *s3Examination) read(ctx context.Context, key string, off, n int64) ([]byte, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+n-1); err != nil {
		return nil, err
	}
	x.cfg.payer(opts.Set)
	body, _, header, err := x.core.GetObject(ctx, x.cfg.bucket, key, opts)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if _, err := checkRange(header, off); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(body, n))
}

func (x *s3Examination) erase(ctx context.Context, key string) error {
	return x.core.RemoveObject(ctx, x.cfg.bucket, key, minio.RemoveObjectOptions{})
}

var examineData = []byte("dedupd doctor was here")

func (x *s3Examination) put(ctx context.Context) bool {
	return x.try("put", x.write(ctx, x.key, examineData, examineData), "an object can be written", "the key must have the right s3:PutObject; a reader does without")
}

func (x *s3Examination) createOnly(ctx context.Context) bool {
	err := x.write(ctx, x.key, examineData, examineData)
	switch status := minio.ToErrorResponse(err).StatusCode; {
	case status == http.StatusPreconditionFailed:
		x.good("create-only", "If-None-Match is honoured")
	case x.cfg.overwrites && err == nil:
		x.warn("create-only", "the server overwrites, as the URL says", "nothing else may write to this bucket, and a second server is not noticed for sure")
	case err == nil:
		x.fail("create-only", "the server ignores If-None-Match and overwrites objects", "if nothing else writes to this bucket, add overwrites=1 to its URL")
	default:
		x.fail("create-only", err.Error(), "the server does not know If-None-Match: add overwrites=1 to the URL if nothing else writes to this bucket")
	}
	return true
}

func (x *s3Examination) checksums(ctx context.Context) bool {
	key := x.key + "-damaged"
	if err := x.write(ctx, key, examineData, []byte("something else")); err == nil {
		x.warn("checksums", "an upload that was changed on the way is stored", "it is only found when it is read: use https, and let the scrub run")
		x.erase(ctx, key)
	} else {
		x.good("checksums", "an upload that was changed on the way is refused (%s)", minio.ToErrorResponse(err).Code)
	}
	return true
}

func (x *s3Examination) reads(ctx context.Context) bool {
	got, err := x.read(ctx, x.key, 0, int64(len(examineData)))
	if err == nil && !bytes.Equal(got, examineData) {
		err = errors.New("other bytes than were just written")
	}
	if !x.try("get", err, "what was written is read at once", "the key must have the right s3:GetObject") {
		return true
	}
	if got, err = x.read(ctx, x.key, 7, 6); err == nil && string(got) != "doctor" {
		err = fmt.Errorf("got %q", got)
	}
	x.try("range", err, "a part of an object can be read", "packs are read in parts: something in between removes Range")
	o, err := x.core.StatObject(ctx, x.cfg.bucket, x.key, minio.StatObjectOptions{})
	if err == nil && o.Size != int64(len(examineData)) {
		err = fmt.Errorf("its size is %d", o.Size)
	}
	x.try("head", err, "and its size be asked for", "the key must have the right s3:GetObject")
	there, err := x.listed(ctx, x.key)
	if err == nil && !there {
		err = errors.New("what was just written is not listed")
	}
	x.try("list after write", err, "what was written is listed at once", "lists must not be stale: packs would be overlooked when the index is made anew")
	return true
}

func (x *s3Examination) speed(ctx context.Context) bool {
	small, large := make([]byte, smallSize), make([]byte, examineSize)
	rand.Read(large) // never fails
	var puts, gets []time.Duration
	for i := range smallReads {
		key := fmt.Sprintf("%s-%d", x.key, i)
		start := time.Now()
		err := x.write(ctx, key, small, small)
		puts, start = append(puts, time.Since(start)), time.Now()
		if err == nil {
			_, err = x.read(ctx, key, 0, smallSize)
			gets = append(gets, time.Since(start))
			x.erase(ctx, key)
		}
		if err != nil {
			x.fail("latency", err.Error(), "the server fails now and then; retries hide it at a cost")
			return true
		}
	}
	slices.Sort(puts)
	slices.Sort(gets)
	x.good("latency", "PUT %v, GET %v of 1 KiB: the median of %d", puts[smallReads/2].Round(10*time.Microsecond), gets[smallReads/2].Round(10*time.Microsecond), smallReads)
	key, start := x.key+"-large", time.Now()
	err := x.write(ctx, key, large, large)
	defer x.erase(context.WithoutCancel(ctx), key)
	if !x.try("upload", err, fmt.Sprintf("%d MiB %s", examineSize>>20, speed(examineSize, start)), "a pack is uploaded in one request: something in between limits bodies or time") {
		return true
	}
	start = time.Now()
	got, err := x.read(ctx, key, 0, examineSize)
	if err == nil && !bytes.Equal(got, large) {
		err = errors.New("other bytes than were written")
	}
	x.try("download", err, fmt.Sprintf("%d MiB %s", examineSize>>20, speed(examineSize, start)), "the server or the network does not keep what it is given")
	return true
}

func (x *s3Examination) delete(ctx context.Context) bool {
	err := x.erase(ctx, x.key)
	if err == nil {
		var there bool
		if there, err = x.listed(ctx, x.key); err == nil && there {
			err = errors.New("it is still listed")
		}
	}
	x.try("delete", err, "an object can be removed, and is listed no more", "the key must have the right s3:DeleteObject; what the checks wrote stays below "+probePrefix)
	return true
}

// rules asks for what deletes objects by itself, or keeps what was deleted.
func (x *s3Examination) rules(ctx context.Context) bool {
	if v, err := x.core.GetBucketVersioning(ctx, x.cfg.bucket); err != nil {
		x.good("versioning", "is not told (%s)", minio.ToErrorResponse(err).Code)
	} else if v.Enabled() {
		x.warn("versioning", "is on", "objects that are deleted stay, and cost: have a rule that ends old versions")
	} else {
		x.good("versioning", "is off")
	}
	rules, err := x.core.GetBucketLifecycle(ctx, x.cfg.bucket)
	if err != nil {
		x.good("lifecycle", "there are no rules, or they are not told (%s)", minio.ToErrorResponse(err).Code)
		return true
	}
	for _, r := range rules.Rules {
		below := cmp.Or(r.Prefix, r.RuleFilter.Prefix, r.RuleFilter.And.Prefix)
		ours := strings.HasPrefix(x.cfg.prefix, below) || strings.HasPrefix(below, x.cfg.prefix)
		if ours && r.Status == "Enabled" && !r.Expiration.IsNull() {
			x.fail("lifecycle", fmt.Sprintf("rule %q deletes objects when they are old", r.ID), "packs are never old: remove it, or keep it away from this prefix")
			return true
		}
	}
	x.good("lifecycle", "no rule deletes objects of this prefix")
	return true
}
