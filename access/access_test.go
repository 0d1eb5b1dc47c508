package access

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"
)

// create makes a token, and returns its text.
func create(t *testing.T, file string, token Token) string {
	t.Helper()
	text, err := Create(file, &token)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// TestAllow goes through credentials, rights, and where a request comes from.
func TestAllow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.json")
	reader := create(t, file, Token{Name: "reader", Rights: Read})
	writer := create(t, file, Token{Name: "writer", Rights: Read | Write})
	admin := create(t, file, Token{Name: "admin", Rights: Admin})
	expired := create(t, file, Token{Name: "expired", Rights: Read | Write | Admin, Expires: time.Now()})
	revoked := create(t, file, Token{Name: "revoked", Rights: Read | Write | Admin})
	if _, err := Revoke(file, "revoked"); err != nil {
		t.Fatal(err)
	}
	other := create(t, filepath.Join(t.TempDir(), "other.json"), Token{Name: "other", Rights: Read | Write | Admin})
	mixed := reader[:len(tokenPrefix)+8] + writer[len(tokenPrefix)+8:]
	tokens, err := Open(file, discard)
	if err != nil {
		t.Fatal(err)
	}
	const (
		ok        = 200
		unknown   = 401
		forbidden = 403
	)
	type outcome [3]int // of Read, Write and Admin
	for _, tt := range []struct {
		name, auth, remote, header string
		certificate                bool
		private, public            outcome
	}{
		{name: "nothing", private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "local", remote: "127.0.0.1:1", private: outcome{unknown, ok, unknown}, public: outcome{ok, ok, unknown}},
		{name: "local, IPv6", remote: "[::1]:1", private: outcome{unknown, ok, unknown}, public: outcome{ok, ok, unknown}},
		{name: "local proxy", remote: "127.0.0.1:1", header: "X-Forwarded-For", private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "browser", remote: "127.0.0.1:1", header: "Origin", private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "reader", auth: basic("any", reader), private: outcome{ok, forbidden, forbidden}, public: outcome{ok, forbidden, forbidden}},
		{name: "local reader", auth: basic("any", reader), remote: "127.0.0.1:1", private: outcome{ok, forbidden, forbidden}, public: outcome{ok, forbidden, forbidden}},
		{name: "writer", auth: basic("", writer), private: outcome{ok, ok, forbidden}, public: outcome{ok, ok, forbidden}},
		{name: "bearer", auth: "bearer " + writer, private: outcome{ok, ok, forbidden}, public: outcome{ok, ok, forbidden}},
		{name: "admin", auth: "Bearer " + admin, private: outcome{forbidden, forbidden, ok}, public: outcome{ok, forbidden, ok}},
		{name: "expired", auth: basic("x", expired), private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "revoked", auth: basic("x", revoked), private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "local revoked", auth: basic("x", revoked), remote: "127.0.0.1:1", private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "other", auth: basic("x", other), private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "mixed", auth: basic("x", mixed), private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "token as the user", auth: basic(writer, ""), private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "no scheme", auth: writer, private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "malformed", auth: "Basic %%%", private: outcome{unknown, unknown, unknown}, public: outcome{ok, unknown, unknown}},
		{name: "certificate", certificate: true, private: outcome{ok, ok, forbidden}, public: outcome{ok, ok, forbidden}},
		{name: "certificate of a reader", certificate: true, auth: basic("x", reader), private: outcome{ok, forbidden, forbidden}, public: outcome{ok, forbidden, forbidden}},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		if tt.remote != "" {
			r.RemoteAddr = tt.remote
		}
		if tt.auth != "" {
			r.Header.Set("Authorization", tt.auth)
		}
		if tt.header != "" {
			r.Header.Set(tt.header, "x")
		}
		if tt.certificate {
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: "alice"}}}}}
		}
		for _, public := range []bool{false, true} {
			p := &Policy{Local: Write, Certificate: Read | Write, Tokens: tokens, Log: discard}
			want := tt.private
			if public {
				p.Anyone, want = Read, tt.public
			}
			for i, need := range []Rights{Read, Write, Admin} {
				got := ok
				id, err := p.Allow(r, need)
				switch {
				case err == nil && id == nil:
					t.Errorf("%s: nobody", tt.name)
				case errors.Is(err, ErrCredentials):
					got = unknown
				case errors.Is(err, ErrForbidden):
					got = forbidden
				}
				if got != want[i] {
					t.Errorf("%s (public %v) for %v: got %d (%v), want %d", tt.name, public, need, got, err, want[i])
				}
			}
		}
	}
}

// TestAllowWithoutTokens is a cache of which nobody has changed a setting.
func TestAllowWithoutTokens(t *testing.T) {
	p := &Policy{Anyone: Read, Local: Write}
	r := httptest.NewRequest("GET", "/", nil)
	if _, err := p.Allow(r, Write); !errors.Is(err, ErrForbidden) {
		t.Errorf("remote write: got %v, want %v", err, ErrForbidden)
	}
	r.RemoteAddr = "127.0.0.1:1"
	if id, err := p.Allow(r, Write); err != nil || id.Name != "local" {
		t.Errorf("local write: got %+v, %v", id, err)
	}
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.0", 1, 0
	if _, err := p.Allow(r, Write); !errors.Is(err, ErrForbidden) {
		t.Errorf("HTTP/1.0: got %v, want %v", err, ErrForbidden)
	}
	r.Header["Authorization"] = []string{"Bearer x"}
	if _, err := p.Allow(r, Write); !errors.Is(err, ErrCredentials) {
		t.Errorf("token: got %v, want %v", err, ErrCredentials)
	}
	if _, err := (&Policy{}).Allow(&http.Request{}, 0); err != nil {
		t.Errorf("a request that needs no right: %v", err)
	}
}

func TestRights(t *testing.T) {
	for text, want := range map[string]Rights{"none": 0, "read": Read, "write, read": Read | Write, "read,write,admin": Read | Write | Admin} {
		var r, again Rights
		if err := r.UnmarshalText([]byte(text)); err != nil || r != want {
			t.Errorf("%q: got %v (%v), want %v", text, r, err, want)
		}
		if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
			t.Errorf("%q is not read as %v", r, r)
		}
	}
	for _, text := range []string{"", "read,", "reads", "all"} {
		if err := new(Rights).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		match []string
		name  string
		want  bool
	}{
		{nil, "hello-1", true},
		{[]string{"hello-*"}, "hello-1", true},
		{[]string{"hello-*"}, "hello", false},
		{[]string{"x", "*-dev"}, "hello-1-dev", true},
		{[]string{"hello"}, "hello-1", false},
		{[]string{"["}, "[", false},
	} {
		if got := (&Identity{Match: tt.match}).Covers(tt.name); got != tt.want {
			t.Errorf("%q covers %q: got %v, want %v", tt.match, tt.name, got, tt.want)
		}
	}
}
