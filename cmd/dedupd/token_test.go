package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedupd/access"
)

// ask sends a request with a token, if it is not "", and returns the status.
func (p *process) ask(t *testing.T, client *http.Client, method, path, token string) int {
	t.Helper()
	req, err := http.NewRequest(method, p.url+path, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.SetBasicAuth("x", token)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestTokens makes, uses, lists and revokes a token while a server runs.
func TestTokens(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	if out, err := dedupd(t, "", "token", "list"); err != nil || !strings.Contains(out, "no tokens") {
		t.Errorf("list: got %q (%v)", out, err)
	}
	p := startServer(t, "--public-read=false", "--loopback-write=false")
	eventually := func(want int, token string) {
		t.Helper()
		got := 0
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if got = p.ask(t, http.DefaultClient, "PUT", "/log/x", token); got == want {
				return
			}
		}
		t.Errorf("got %d, want %d", got, want)
	}
	eventually(401, "")
	out, err := dedupd(t, "", "token", "create", "--name", "ci", "--rights", "read,write", "--expires", "90d", "--match", "a*", "--match", "b", "--max-nar", "1GiB", "--max-uploads", "4", "--rate", "10MB")
	token := strings.TrimSpace(out)
	if err != nil || !strings.HasPrefix(token, "dedupd_") || strings.ContainsAny(token, " \n") {
		t.Fatalf("create: got %q (%v)", out, err)
	}
	eventually(403, token) // of what it does not match
	second, err := dedupd(t, "", "token", "create", "--name", "second", "--rights", "read,write")
	if err != nil {
		t.Fatal(err)
	}
	second = strings.TrimSpace(second)
	eventually(200, second)
	if out, err := dedupd(t, "", "token", "create", "--name", "ci"); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second token of a name: got %q (%v)", out, err)
	}
	out, err = dedupd(t, "", "token", "list")
	if want := "may read and write store paths called a* or b, 4 NARs at a time, of 1GiB at most, 10000000 per second, until "; err != nil || !strings.Contains(out, want) || strings.Contains(out, token) {
		t.Errorf("list: got %q (%v), want %q", out, err, want)
	}
	out, err = dedupd(t, "", "token", "list", "--json")
	var list []access.Token
	if jsonErr := json.Unmarshal([]byte(out), &list); err != nil || jsonErr != nil || len(list) != 2 || list[0].Name != "ci" || list[0].MaxNAR != 1<<30 {
		t.Errorf("list: got %s (%v)", out, err)
	}
	if out, err := dedupd(t, "", "token", "revoke", list[1].ID); err != nil || !strings.Contains(out, "revoked: token second") {
		t.Errorf("revoke: got %q (%v)", out, err)
	}
	eventually(401, second)
	if out, err := dedupd(t, "", "token", "revoke", "second"); err == nil {
		t.Errorf("revoking again: got %q", out)
	}
	p.stop()
	if log := p.stderr.String(); strings.Contains(log, second[len(second)-52:]) || !strings.Contains(log, "by=token:second") {
		t.Error("the log has a token, or not whose it was")
	}
	file := filepath.Join(dataDir(), "state", "tokens.json")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := dedupd(t, "", "serve", "--listen", "127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("with a damaged token file: got %q, %v", out, err)
	}
}

func TestParseExpiry(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "90d": time.Date(2030, 4, 2, 3, 4, 5, 0, time.UTC), "12h": time.Date(2030, 1, 2, 15, 4, 5, 0, time.UTC),
		"2030-01-31": time.Date(2030, 2, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseExpiry(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %v (%v), want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"0d", "-1d", "d", "90", "2030-13-01", "99999999999999d", "1y"} {
		if got, err := parseExpiry(text, now); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}
