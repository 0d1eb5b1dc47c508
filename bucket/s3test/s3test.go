// Package s3test runs real S3 servers for tests.
package s3test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Servers are the kinds of server that Start knows.
var Servers = []string{"versitygw", "minio"}

const (
	accessKey = "dedupd"
	secretKey = "dedupd-secret"
	startTime = 2 * time.Minute // on a machine that does other things, too
)

// A Server is an S3 server in a process of its own.
type Server struct {
	Endpoint string // http://127.0.0.1:port
	kind     string
	dir      string
	cmd      *exec.Cmd
	log      bytes.Buffer
}

// Start starts a server, which ends with the test. The test is skipped if the server is
// not installed; with CI=true it fails.
func Start(t testing.TB, kind string) *Server {
	t.Helper()
	if _, err := exec.LookPath(kind); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", kind)
		}
		t.Skipf("%s is missing; make test installs it", kind)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := &Server{Endpoint: "http://" + addr, kind: kind, dir: t.TempDir()}
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", accessKey, secretKey)
	if err := os.WriteFile(s.credentials(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Run(t)
	t.Cleanup(func() { s.Kill() })
	return s
}

// Run starts the process of a server that was killed again, with the data that it had.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	data := filepath.Join(s.dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	addr := s.Endpoint[len("http://"):]
	switch s.kind {
	case "minio":
		s.cmd = exec.Command("minio", "server", "--quiet", "--address", addr, data)
		s.cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+accessKey, "MINIO_ROOT_PASSWORD="+secretKey, "MINIO_BROWSER=off", "MINIO_UPDATE=off")
	default:
		s.cmd = exec.Command("versitygw", "--quiet", "--access", accessKey, "--secret", secretKey, "--port", addr, "posix", data)
	}
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	for {
		if _, err := s.Client(t).ListBuckets(ctx); err == nil {
			return
		} else if ctx.Err() != nil {
			t.Fatalf("%s does not start: %v\n%s", s.kind, err, &s.log)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Kill ends the process as kill -9 does. It may be called again.
func (s *Server) Kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// Client returns a client of the server.
func (s *Server) Client(t testing.TB) *minio.Client {
	t.Helper()
	c, err := minio.New(s.Endpoint[len("http://"):], &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *Server) credentials() string { return filepath.Join(s.dir, "credentials") }

// NewBucket makes a bucket and returns its URL.
func (s *Server) NewBucket(t testing.TB, name string) string {
	t.Helper()
	if err := s.Client(t).MakeBucket(t.Context(), name, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return s.URL(name, s.Endpoint)
}

// Prefix is that of the URLs, which end in it.
const Prefix = "some/prefix"

// URL returns the URL of a bucket that is reached at an endpoint: the server's own, or
// that of a proxy before it.
func (s *Server) URL(name, endpoint string) string {
	q := url.Values{"endpoint": {endpoint}, "region": {"us-east-1"}, "style": {"path"}, "credentials": {s.credentials()}}
	return "s3://" + name + "/" + Prefix + "?" + q.Encode()
}
