package compression

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// nixCommands are the ways to start nix-store: the one in PATH and, for other versions, the wrappers
// nix-* in the directory that the environment variable DEDUPD_NIX_DIR names. A wrapper takes the
// program's name as its first argument.
func nixCommands(t *testing.T) [][]string {
	var cmds [][]string
	if p, err := exec.LookPath("nix-store"); err == nil {
		cmds = append(cmds, []string{p})
	}
	if dir := os.Getenv("DEDUPD_NIX_DIR"); dir != "" {
		wrappers, err := filepath.Glob(filepath.Join(dir, "nix-*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wrappers {
			cmds = append(cmds, []string{w, "nix-store"})
		}
	}
	if len(cmds) == 0 {
		missing(t, "nix-store")
	}
	return cmds
}

// narOf returns the NAR of one regular file.
func narOf(contents []byte) []byte {
	var b []byte
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents", string(contents), ")"} {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
		b = append(b, make([]byte, -len(s)&7)...)
	}
	return b
}

// Nix itself substitutes from NARs in every stored mode.
func TestNixAcceptsStored(t *testing.T) {
	for _, cmd := range nixCommands(t) {
		for _, typ := range storedTypes {
			t.Run(filepath.Base(cmd[0])+"/"+string(typ), func(t *testing.T) {
				block := int(newStored(t, typ, nil).block)
				for i, size := range []int{0, 300_000, min(2*block, 1<<20) - len(narOf(nil))} {
					substitute(t, cmd, typ, i, noise(size))
				}
			})
		}
	}
}

// substitute makes a binary cache of one path, a file of the given contents, and has Nix fetch it.
func substitute(t *testing.T, command []string, typ Type, i int, contents []byte) {
	t.Helper()
	dir := t.TempDir()
	nar := narOf(contents)
	hash := strings.Repeat("0123456789abcdfg"[i:][:1], 32)
	storePath := "/nix/store/" + hash + "-stored"
	narinfo := fmt.Sprintf("StorePath: %s\nURL: nar/stored.nar%s\nCompression: %s\nNarHash: sha256:%x\nNarSize: %d\nReferences: \n",
		storePath, typ.Extension(), typ, sha256.Sum256(nar), len(nar))

	for name, b := range map[string][]byte{
		"cache/nix-cache-info":                   []byte("StoreDir: /nix/store\nPriority: 10\n"),
		"cache/" + hash + ".narinfo":             []byte(narinfo),
		"cache/nar/stored.nar" + typ.Extension(): store(t, typ, nar),
		"conf/nix.conf":                          []byte("sandbox = false\nbuild-users-group =\n"),
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	args := append(command[1:len(command):len(command)], "--store", dir+"/store", "-r", storePath,
		"--option", "substitute", "true", "--option", "substituters", "file://"+dir+"/cache",
		"--option", "require-sigs", "false")
	cmd := exec.Command(command[0], args...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CACHE_HOME="+dir+"/xdg", "NIX_CONF_DIR="+dir+"/conf")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nix-store -r: %v\n%s", err, out)
	}
	got, err := os.ReadFile(dir + "/store" + storePath)
	if err != nil || !bytes.Equal(got, contents) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(contents))
	}
}
