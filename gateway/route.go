package gateway

import (
	"net/http"
	"slices"
	"strings"

	"github.com/dedupd/dedupd/narinfo"
)

// kind is what a URL is about.
type kind byte

const (
	kindNone kind = iota // nothing is there
	kindCacheInfo
	kindNarInfo
	kindListing
	kindNAR
	kindLog
	kindDebugInfo
	kindRealisation
	kindMissing

	// What follows can only be read.
	kindFlatNAR // a NAR beside the narinfos, as nix-push made them
	kindNARListing
	kindInside
	kindMetrics
	kindHealth
	kindReady
	kindProfile
	kindPage
	numKinds
)

// kindNames are what metrics and the access log call the kinds.
var kindNames = [numKinds]string{
	"none", "cache-info", "narinfo", "listing", "nar", "log", "debuginfo", "realisation", "missing", "flat-nar", "nar-listing", "inside",
	"metrics", "health", "ready", "profile", "page",
}

// allows says whether URLs of the kind have a method.
func (k kind) allows(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead:
		return k != kindMissing
	case http.MethodPut:
		return k < kindMissing
	case http.MethodPost:
		return k == kindMissing
	}
	return false
}

// methods is the value of Allow.
func (k kind) methods() string {
	all := []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut}
	return strings.Join(slices.DeleteFunc(all, func(m string) bool { return !k.allows(m) }), ", ")
}

// A resource is a URL of the cache.
type resource struct {
	kind kind
	name string // the path without its first slash; what a file is stored as
	id   string // the hash part of a narinfo or listing, the file name of a NAR, the path of a file in the store
}

// parsePath says what the decoded path of a URL is about. What it lets through is safe
// as a name: segments of ordinary characters, none of them "." or "..".
//
// This is not an http.ServeMux because that answers paths it finds untidy with a
// redirect, which clients before Nix 2.29 do not follow when they PUT.
func parsePath(path string) (resource, bool) {
	name, ok := strings.CutPrefix(path, "/")
	if inside, ok := strings.CutPrefix(name, "serve/"); ok && len(inside) <= maxInside {
		// Any bytes can be names in a store path, which is where they are looked up.
		return resource{kind: kindInside, name: "serve", id: inside}, true
	}
	if !ok || len(name) > maxName {
		return resource{}, false
	}
	dir, rest, nested := strings.Cut(name, "/")
	if !nested {
		return parseRoot(name)
	}
	res := resource{name: name, id: rest}
	segments := 1
	switch dir {
	case "api":
		return resource{kind: kindMissing, name: name}, rest == "v1/missing"
	case "nar":
		res.kind = kindNAR
		if file, ok := strings.CutSuffix(rest, "/ls"); ok {
			res.kind, res.id, rest = kindNARListing, file, file
		}
	case "log":
		res.kind = kindLog
	case "debuginfo":
		res.kind = kindDebugInfo
	case "realisations":
		res.kind = kindRealisation
		ok = strings.HasSuffix(rest, ".doi")
	case "build-trace-v2":
		res.kind, segments = kindRealisation, 2
		ok = strings.HasSuffix(rest, ".doi")
	case "path":
		res.kind = kindPage
		ok = narinfo.IsHashPart(rest)
	case "debug":
		res.kind = kindProfile
		if rest == "pprof/" { // where an index is
			return res, true
		}
		segments, ok = 2, strings.HasPrefix(rest, "pprof/")
	default:
		return resource{}, false
	}
	for s := range strings.SplitSeq(rest, "/") {
		ok = ok && goodSegment(s)
		segments--
	}
	return res, ok && segments == 0
}

// rootKinds are the kinds of what has a name of its own at the root.
var rootKinds = map[string]kind{
	"nix-cache-info": kindCacheInfo, "metrics": kindMetrics, "healthz": kindHealth, "readyz": kindReady,
	"": kindPage, "search": kindPage,
}

// parseRoot is parsePath for what is not in a directory.
func parseRoot(name string) (resource, bool) {
	if kind, ok := rootKinds[name]; ok {
		return resource{kind: kind, name: name}, true
	}
	hashPart, ext, _ := strings.Cut(name, ".")
	res := resource{name: name, id: hashPart}
	switch ext {
	case "narinfo":
		res.kind = kindNarInfo
	case "ls":
		res.kind = kindListing
	default:
		res.kind, res.id = kindFlatNAR, name
		return res, (ext == "nar" || strings.HasPrefix(ext, "nar.")) && goodSegment(name)
	}
	return res, narinfo.IsHashPart(hashPart)
}

const (
	maxName    = 1024 // bytes of a name
	maxSegment = 255  // bytes of a part of it
	maxInside  = 8192 // bytes of the path of a file in a store path
)

// goodSegment says whether s may be a part of a file's name: the characters of store
// paths, and those that occur in the IDs of realisations, which are
// "sha256:<digest>!<output>".
func goodSegment(s string) bool {
	if s == "" || s[0] == '.' || len(s) > maxSegment {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case strings.IndexByte("+-._?=:!^", c) >= 0:
		default:
			return false
		}
	}
	return true
}
