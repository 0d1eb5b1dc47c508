package nixexport_test

import (
	"fmt"
	"io"
	"os"

	"github.com/dedupd/dedupd/nixexport"
)

func ExampleReader() {
	file, err := os.Open("testdata/nix-2.26.export")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer file.Close()
	for r := nixexport.NewReader(file, "/nix/store"); ; {
		nar, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			fmt.Println(err)
			return
		}
		size, err := io.Copy(io.Discard, nar)
		if err != nil {
			fmt.Println(err)
			return
		}
		p, err := r.Path() // which comes behind the NAR
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(p.StorePath.Name(), size, len(p.References))
	}
	// Output:
	// a 120 0
	// b 376 2
}
