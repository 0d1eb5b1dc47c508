package narinfo_test

import (
	"fmt"
	"log"

	"github.com/dedupd/dedupd/narinfo"
)

func Example() {
	const text = `StorePath: /nix/store/1g2bhd3h665y7z9ph01lwsmi7ymiv995-xz-5.2.5
URL: nar/1pwkgfxxy2bpchv823gjksrshh9zmdppxfrhpcg6llqfwhbbj589.nar.xz
Compression: xz
NarHash: sha256:0kdlkkdnsgaxlh2d8w8qsdi3snhy978wswcjwax4djzs6fiy7r3d
NarSize: 489808
References: 1g2bhd3h665y7z9ph01lwsmi7ymiv995-xz-5.2.5 7fz6dhhriwv6n4kdg05qi8cwf7mfqza9-glibc-2.35-163
`
	const storeDir = "/nix/store"
	info, err := narinfo.Parse([]byte(text), storeDir)
	if err != nil {
		log.Fatal(err)
	}
	key, err := narinfo.GenerateKey("example-1")
	if err != nil {
		log.Fatal(err)
	}
	info.URL = "nar/elsewhere.nar.xz" // not signed
	info.Sign(storeDir, key)

	signer, ok := info.Verify(storeDir, []narinfo.PublicKey{key.Public()})
	fmt.Println(info.StorePath.Name(), info.StorePath.HashPart()+".narinfo")
	fmt.Println(ok, signer.Name)
	fmt.Println(info.Fingerprint(storeDir))
	// Output:
	// xz-5.2.5 1g2bhd3h665y7z9ph01lwsmi7ymiv995.narinfo
	// true example-1
	// 1;/nix/store/1g2bhd3h665y7z9ph01lwsmi7ymiv995-xz-5.2.5;sha256:0kdlkkdnsgaxlh2d8w8qsdi3snhy978wswcjwax4djzs6fiy7r3d;489808;/nix/store/1g2bhd3h665y7z9ph01lwsmi7ymiv995-xz-5.2.5,/nix/store/7fz6dhhriwv6n4kdg05qi8cwf7mfqza9-glibc-2.35-163
}

func ExampleParseHash() {
	h, err := narinfo.ParseHash("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(h)
	// Output: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
}
