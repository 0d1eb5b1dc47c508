package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// tlsFiles are the files that connections are encrypted with. When they change, new
// connections get what they hold then.
type tlsFiles struct {
	cert, key string
	clientCA  string // "" if clients have no certificates
	log       *slog.Logger

	mu       sync.Mutex
	config   *tls.Config
	stamp    string    // of the files that config was made from
	looked   time.Time // when stamp was compared last
	complain rate.Sometimes
}

// tlsInterval is the time between looks at the files.
const tlsInterval = time.Second

// tlsConfig returns the configuration of connections, nil if they are not encrypted.
func (s *Settings) tlsConfig(log *slog.Logger) (*tls.Config, error) {
	if s.TLSCert == "" {
		return nil, nil
	}
	f := &tlsFiles{cert: s.TLSCert, key: s.TLSKey, clientCA: s.ClientCA, log: log, complain: rate.Sometimes{Interval: time.Minute}}
	if err := f.read(); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: f.current}, nil
}

// current is for tls.Config.GetConfigForClient. If the files cannot be used, as while
// one is new and the other is not yet, it goes on with what it has.
func (f *tlsFiles) current(*tls.ClientHelloInfo) (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) < tlsInterval || f.stamp == f.stampNow() {
		return f.config, nil
	}
	if err := f.read(); err != nil {
		f.complain.Do(func() {
			f.log.Error("the new TLS certificate cannot be used: connections get the old one", "err", err)
		})
		return f.config, nil
	}
	f.log.Info("TLS certificate was read", "file", f.cert, "until", f.config.Certificates[0].Leaf.NotAfter)
	return f.config, nil
}

func (f *tlsFiles) read() error {
	stamp := f.stampNow() // before they are read: what changes after it is read again
	cert, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	if f.clientCA != "" {
		text, err := os.ReadFile(f.clientCA)
		if err != nil {
			return err
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(text) {
			return errors.New("there is no certificate in " + f.clientCA)
		}
		// A certificate is never demanded here: which rights there are without one is
		// said in one place only, and not in this.
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	f.config, f.stamp = config, stamp
	return nil
}

// stampNow returns what changes when one of the files does.
func (f *tlsFiles) stampNow() string {
	f.looked = time.Now()
	var stamp string
	for _, name := range []string{f.cert, f.key, f.clientCA} {
		if info, err := os.Stat(name); err == nil {
			stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), ";")
		}
	}
	return stamp
}
