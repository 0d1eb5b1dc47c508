// Package access decides who a request comes from, and what they may do.
//
// A right is given by a token, by a client certificate, by being on this machine, or to
// everyone. docs/security.md says what each is worth.
package access

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Rights are a set of rights. The zero Rights are none.
type Rights uint8

const (
	// Read is the right to get what the cache holds.
	Read Rights = 1 << iota
	// Write is the right to upload. Nix needs Read with it, to see what is there already.
	Write
	// Admin is the right to see how the server does: profiles, and metrics if they are
	// not for everyone. It says nothing about the other two.
	Admin
)

var rightNames = []string{"read", "write", "admin"} // by bit

// String returns the names of the rights with commas, or "none".
func (r Rights) String() string {
	var names []string
	for bit, name := range rightNames {
		if r&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ",")
}

// MarshalText implements encoding.TextMarshaler.
func (r Rights) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes what String returns, in
// any order, with white space.
func (r *Rights) UnmarshalText(text []byte) error {
	*r = 0
	if string(text) == "none" {
		return nil
	}
next:
	for s := range strings.SplitSeq(string(text), ",") {
		for bit, name := range rightNames {
			if strings.TrimSpace(s) == name {
				*r |= 1 << bit
				continue next
			}
		}
		return fmt.Errorf("there is no right %q, only %s", strings.TrimSpace(s), strings.Join(rightNames, ", "))
	}
	return nil
}

// Has says whether all of need are in r.
func (r Rights) Has(need Rights) bool { return r&need == need }

// Errors of Policy.Allow, which say how a refusal is to be answered.
var (
	// ErrCredentials says that there are no credentials, or not the right ones: 401.
	ErrCredentials = errors.New("credentials that this cache knows are needed")
	// ErrForbidden says that who is asking is known, or cannot be known, and that it may
	// not do this: 403.
	ErrForbidden = errors.New("forbidden")
)

// An Identity is who a request comes from. It does not change.
type Identity struct {
	// Name is for logs: what gave the rights, a colon, and its name, such as
	// "token:ci" or "certificate:alice". It is "" where nothing but the rights of
	// everyone counts.
	Name   string
	Rights Rights
	// Match are the patterns, as of path.Match, one of which the name of a store path
	// has to fit; none for all.
	Match []string
	// MaxNAR is the size in bytes of the largest NAR that may be uploaded, and of the
	// largest file with one; 0 is no limit of its own.
	MaxNAR int64
	// Limits are shared by all requests of a token; nil for none.
	Limits *Limits
}

// Limited says whether there are store paths that id has no rights to.
func (id *Identity) Limited() bool { return len(id.Match) > 0 }

// Covers says whether id's rights are rights to store paths with a name, which is what
// follows the hash part and the dash.
func (id *Identity) Covers(name string) bool {
	for _, pattern := range id.Match {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			return true
		}
	}
	return len(id.Match) == 0
}
