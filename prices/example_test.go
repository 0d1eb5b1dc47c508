package prices_test

import (
	"fmt"

	"github.com/dedupd/dedupd/prices"
)

// What 400,000 store paths cost when each is two objects, as in a cache on S3 without
// dedupd, and when packs of 32 MiB hold 30,000 of them for each TB.
func Example() {
	table, err := prices.Load("")
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := table.Provider(prices.Default)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("plain: $%.2f\n", p.Cost(prices.Usage{Writes: 2 * 400_000}).Total())
	fmt.Printf("packs: $%.2f\n", p.Cost(prices.Usage{Writes: 30_000}).Total())
	// Output:
	// plain: $4.00
	// packs: $0.15
}
