package migrate

import (
	"bytes"
	"compress/bzip2"
	"encoding/hex"
	"io"
	"testing"
)

// bzip2NAR is what bzip2 1.0.8 makes of the NAR of a file with one line.
var bzip2NAR, _ = hex.DecodeString("" +
	"425a6839314159265359616e3e33000020f9806cd22000406230003be7df70200040d4d4f5190f4400064310c304c0980868" +
	"c9a619311b50b11112db894a003c9c41408861443a798c63a790a366b2a89c3e5dac7cd7192dd7d6466964a7f0ae57b41cd8" +
	"299fe2ee48a70a120c2dc7c660")

func bzip2Plain(t *testing.T) []byte {
	t.Helper()
	plain, err := io.ReadAll(bzip2.NewReader(bytes.NewReader(bzip2NAR)))
	if err != nil {
		t.Fatal(err)
	}
	return plain
}
