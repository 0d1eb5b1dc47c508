package bucket

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"
)

// An s3Config is what an s3 URL says.
type s3Config struct {
	bucket, prefix string // the prefix is empty or ends with a slash
	endpoint       *url.URL
	values         url.Values
	lookup         minio.BucketLookupType
	sse            encrypt.ServerSide
	overwrites     bool
	timeout        time.Duration // without any progress; see stallTimeout
}

// s3Settings are the settings in an s3 URL.
var s3Settings = []string{
	"endpoint", "region", "style", "ca", "credentials", "profile", "requester-pays", "storage-class", "sse", "sse-kms-key", "overwrites",
	"timeout",
}

func parseS3URL(raw string) (*s3Config, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, redacted(err)
	}
	if u.User != nil {
		return nil, errors.New("an s3 URL has no user: put keys into a file and name it with credentials=")
	}
	c := &s3Config{bucket: u.Host, prefix: strings.Trim(u.Path, "/")}
	if c.bucket == "" || u.Port() != "" || u.Fragment != "" {
		return nil, errors.New("an s3 URL has the form s3://<bucket>/<prefix>?endpoint=<host>&region=<region>")
	}
	if c.prefix != "" {
		if err := CheckKey(c.prefix); err != nil {
			return nil, fmt.Errorf("prefix: %w", err)
		}
		c.prefix += "/"
	}
	if c.values, err = url.ParseQuery(u.RawQuery); err != nil {
		return nil, fmt.Errorf("settings of the s3 URL: %w", err)
	}
	for name, values := range c.values {
		if !slices.Contains(s3Settings, name) || len(values) != 1 {
			return nil, fmt.Errorf("the s3 URL sets %q: it can set each of %s once", name, strings.Join(s3Settings, ", "))
		}
	}
	return c, c.readSettings()
}

func (c *s3Config) readSettings() (err error) {
	endpoint := c.values.Get("endpoint")
	if endpoint == "" {
		endpoint = "s3.amazonaws.com"
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	c.endpoint, err = url.Parse(endpoint)
	if err != nil || c.endpoint.Host == "" || c.endpoint.User != nil || strings.Trim(c.endpoint.Path, "/") != "" ||
		c.endpoint.Scheme != "https" && c.endpoint.Scheme != "http" {
		return fmt.Errorf("endpoint %q is not a host or its http or https URL", c.values.Get("endpoint"))
	}
	switch style := c.values.Get("style"); style {
	case "", "auto":
		c.lookup = minio.BucketLookupAuto
	case "path":
		c.lookup = minio.BucketLookupPath
	case "virtual":
		c.lookup = minio.BucketLookupDNS
	default:
		return fmt.Errorf("style is %q, not path, virtual or auto", style)
	}
	switch sse, key := c.values.Get("sse"), c.values.Get("sse-kms-key"); {
	case sse == "aws:kms" && key != "":
		if c.sse, err = encrypt.NewSSEKMS(key, nil); err != nil {
			return fmt.Errorf("sse-kms-key: %w", err)
		}
	case sse == "AES256" && key == "":
		c.sse = encrypt.NewSSE()
	case sse != "" || key != "":
		return errors.New("sse is AES256, or aws:kms with an sse-kms-key")
	}
	c.overwrites = c.values.Get("overwrites") == "1"
	c.timeout = stallTimeout
	if text := c.values.Get("timeout"); text != "" {
		if c.timeout, err = time.ParseDuration(text); err != nil || c.timeout <= 0 {
			return fmt.Errorf("timeout is %q, not a duration like 90s", text)
		}
	}
	return nil
}

// String returns the URL. Secrets are in files.
func (c *s3Config) String() string {
	u := url.URL{Scheme: "s3", Host: c.bucket, Path: "/" + strings.TrimSuffix(c.prefix, "/"), RawQuery: c.values.Encode()}
	return strings.TrimSuffix(u.String(), "/")
}

func (c *s3Config) putOptions() minio.PutObjectOptions {
	opts := minio.PutObjectOptions{
		ContentType: "application/octet-stream", StorageClass: c.values.Get("storage-class"), ServerSideEncryption: c.sse,
		// Not the hashes of pieces, which minio-go computes where there is no TLS, in place of the one that it is given.
		DisableContentSha256: true,
	}
	if !c.overwrites {
		opts.SetMatchETagExcept("*") // If-None-Match: *
	}
	return opts
}

// payer has a request charged to whoever makes it, if that is set.
func (c *s3Config) payer(set func(name, value string)) {
	if c.values.Get("requester-pays") == "1" {
		set("x-amz-request-payer", "requester")
	}
}

// client returns a client that makes each request once and counts it.
func (c *s3Config) client(counts *requestCounts) (*minio.Client, error) {
	transport, err := c.transport()
	if err != nil {
		return nil, err
	}
	region := c.values.Get("region")
	if region == "" {
		region = os.Getenv("AWS_REGION")
	}
	return minio.New(c.endpoint.Host, &minio.Options{
		Creds: c.credentials(transport), Secure: c.endpoint.Scheme == "https", Transport: counts.transport(transport),
		Region: region, BucketLookup: c.lookup, MaxRetries: 1,
	})
}

func (c *s3Config) credentials(transport http.RoundTripper) *credentials.Credentials {
	p := c.providers(transport)
	if len(p) == 1 {
		return credentials.New(p[0]) // a chain without any is anonymous
	}
	return credentials.NewChainCredentials(p)
}

// providers are where credentials are looked for, in this order.
func (c *s3Config) providers(transport http.RoundTripper) []credentials.Provider {
	file := &credentials.FileAWSCredentials{Filename: c.values.Get("credentials"), Profile: c.values.Get("profile")}
	if file.Filename != "" || file.Profile != "" {
		return []credentials.Provider{file}
	}
	return []credentials.Provider{
		&credentials.EnvAWS{}, file, &credentials.IAM{Client: &http.Client{Transport: transport, Timeout: iamTimeout}},
	}
}

// Time limits of a request; while a body moves it may take as long as it does.
const (
	dialTimeout  = 10 * time.Second
	stallTimeout = 90 * time.Second // a server may write a pack to its disks before it answers
	iamTimeout   = 10 * time.Second
)

// maxConnections is how many connections to the server are kept when they are idle.
const maxConnections = 64

func (c *s3Config) transport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: time.Minute,
		MaxIdleConns: maxConnections, MaxIdleConnsPerHost: maxConnections,
		DisableCompression: true, // objects are wanted as they are
	}
	if file := c.values.Get("ca"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", file)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return t, nil
}
