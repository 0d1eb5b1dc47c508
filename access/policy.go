package access

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A Policy says who may do what. Its fields do not change while it is used.
type Policy struct {
	// Anyone is what everyone may do, whatever else is sent along.
	Anyone Rights
	// Local is what may be done without credentials from this machine: see FromHere.
	Local Rights
	// Certificate is what clients may do whose certificate the server has verified.
	Certificate Rights
	// Tokens may be nil for none.
	Tokens *Tokens
	// Log takes, at most once a second, why credentials were refused; nil for no log.
	Log *slog.Logger

	mu      sync.Mutex
	logged  time.Time // when a refusal was logged last
	skipped int       // refusals since
}

// Anyone is who counts for no more than everyone.
var Anyone = new(Identity)

// Allow returns who r comes from if that may do what need says. It reads nothing but
// the header of r. Its errors wrap ErrCredentials or ErrForbidden, can be told to the
// client, and do not depend on what it asks for, only on need.
//
// A request that has credentials is judged by these, not by where it comes from. For what
// everyone may do even wrong ones do no harm: a proxy that asks for passwords of its own
// may pass them on.
func (p *Policy) Allow(r *http.Request, need Rights) (*Identity, error) {
	id, err := p.identify(r)
	switch {
	case p.Anyone.Has(need) && id == nil:
		return Anyone, nil
	case p.Anyone.Has(need) && id.Limited():
		// What limits a token's rights does not limit those of everyone.
		return &Identity{Name: id.Name}, nil
	case p.Anyone.Has(need), id != nil && id.Rights.Has(need):
		return id, nil
	case err != nil:
		return nil, err
	case id != nil:
		return nil, fmt.Errorf("%w: %s may %v, but this needs %v", ErrForbidden, id.Name, id.Rights, need)
	}
	return p.allowLocal(r, need)
}

// identify returns who the credentials of r belong to, nil if there are none.
func (p *Policy) identify(r *http.Request) (*Identity, error) {
	if len(r.Header["Authorization"]) > 0 {
		id, why := p.Tokens.identify(credentials(r))
		if id == nil {
			p.refused(r, why)
			return nil, ErrCredentials
		}
		return id, nil
	}
	if p.Certificate != 0 && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		name := r.TLS.VerifiedChains[0][0].Subject.CommonName
		return &Identity{Name: "certificate:" + name, Rights: p.Certificate}, nil
	}
	return nil, nil
}

// credentials returns the token in the Authorization of r: the password of whatever user,
// since Nix can send nothing else, or a bearer token.
func credentials(r *http.Request) string {
	if len(r.Header["Authorization"]) > 1 {
		return ""
	}
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// refused logs that the credentials of r are no good.
func (p *Policy) refused(r *http.Request, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.Log != nil && now.Sub(p.logged) >= time.Second {
		p.Log.Warn("credentials were refused", "why", why, "method", r.Method, "path", r.URL.Path, "remote", r.RemoteAddr, "others", p.skipped)
		p.logged, p.skipped = now, 0
		return
	}
	p.skipped++
}

// allowLocal is Allow for requests without credentials.
func (p *Policy) allowLocal(r *http.Request, need Rights) (*Identity, error) {
	if !p.Local.Has(need) {
		return nil, ErrCredentials
	}
	err := FromHere(r)
	if err == nil {
		return &Identity{Name: "local", Rights: p.Local}, nil
	}
	if p.Anyone.Has(Read) && p.Certificate == 0 && p.Tokens.Count() == 0 {
		return nil, fmt.Errorf("%w: %w", ErrForbidden, err) // no credentials would help
	}
	return nil, ErrCredentials
}

// FromHere returns nil if r comes from this machine: not from others through a proxy on
// it, and not from a browser, which any web page could have write (with the gateway's
// signature, even). Whoever can open a Unix socket is on this machine.
//
// A proxy that says nothing about itself cannot be told apart, except that nginx speaks
// HTTP/1.0 as long as it is not told otherwise, which nobody else does any more.
func FromHere(r *http.Request) error {
	if !loopback(r) {
		return errors.New("this is allowed from this machine only")
	}
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via"} {
		if r.Header[name] != nil {
			return fmt.Errorf("this is allowed from this machine only, and the header %s says that a proxy forwarded it", name)
		}
	}
	if !r.ProtoAtLeast(1, 1) {
		return errors.New("this is allowed from this machine only, and HTTP/1.0 is what proxies speak")
	}
	for _, name := range []string{"Origin", "Sec-Fetch-Site"} {
		if r.Header[name] != nil {
			return fmt.Errorf("this is not allowed to browsers, and the header %s says that this is one", name)
		}
	}
	return nil
}

func loopback(r *http.Request) bool {
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && addr.Network() == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}
