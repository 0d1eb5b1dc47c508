package chart_test

import (
	"fmt"
	"strings"

	"github.com/dedupd/dedupd/chart"
)

func Example() {
	c := chart.Bars{
		Title: "What is stored for each package", Parts: []string{"its own", "shared"}, Format: chart.Bytes,
		Bars: []chart.Bar{{Label: "gcc", Values: []float64{62e6, 3e6}}, {Label: "git", Values: []float64{16e6, 1e6}}},
	}
	svg := string(c.HTML())
	fmt.Println(strings.Count(svg, "<svg"), strings.Contains(svg, chart.Size(65_000_000)), chart.Times(530, 65))
	// Output: 2 true 8.15 ×
}
