package access_test

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/dedupd/dedupd/access"
)

func Example() {
	dir, err := os.MkdirTemp("", "access")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "tokens.json")
	text, err := access.Create(file, &access.Token{Name: "ci", Rights: access.Read | access.Write, Match: []string{"hello-*"}})
	if err != nil {
		panic(err)
	}
	tokens, err := access.Open(file, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	policy := &access.Policy{Anyone: access.Read, Tokens: tokens}

	r := httptest.NewRequest("PUT", "/log/x", nil)
	_, err = policy.Allow(r, access.Write)
	fmt.Println(err)
	r.SetBasicAuth("anybody", text)
	who, err := policy.Allow(r, access.Write)
	fmt.Println(who.Name, err, who.Covers("hello-2.12"), who.Covers("glibc-2.40"))
	// Output:
	// credentials that this cache knows are needed
	// token:ci <nil> true false
}
