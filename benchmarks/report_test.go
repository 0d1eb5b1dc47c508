package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	// The median of the ratios, not the ratio of the medians.
	r := compare("x", "s", []float64{4, 1, 9}, "y", []float64{2, 1, 3}, atMost(2))
	if r.Value != 4 || r.YardstickValue != 2 || r.Ratio != 2 {
		t.Errorf("got %v against %v, ratio %v; want 4, 2, 2", r.Value, r.YardstickValue, r.Ratio)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		row  row
		want string
	}{
		{compare("", "", []float64{2}, "y", []float64{1}, atMost(2)), "yes"},
		{compare("", "", []float64{2}, "y", []float64{1}, atMost(1.9)), "**no**"},
		{compare("", "", []float64{2}, "y", []float64{4}, atLeast(0.5)), "yes"},
		{compare("", "", []float64{2}, "y", []float64{5}, atLeast(0.5)), "**no**"},
		{compare("", "", []float64{2}, "y", []float64{5}, nil), ""},
		{row{Value: 3, Target: atMost(3)}, "yes"},
		{row{Value: 3, Target: atLeast(4)}, "**no**"},
	} {
		c.row.judge()
		if got := yesNo(c.row.Met); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.row, got, c.want)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 3: "3", 0.03030303: "0.0303", 1.2345: "1.23", 12.345: "12.3", 123.456: "123.5", 1234567.8: "1234568",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v): got %q, want %q", v, got, want)
		}
	}
}

func TestReportIsATable(t *testing.T) {
	r := report{Name: "n", Rows: []row{
		compare("a", "s", []float64{1, 2}, "b", []float64{1, 1}, atMost(2)),
		{What: "c", Unit: "MB", Value: 5},
	}}
	var out bytes.Buffer
	if err := r.writeText(&out); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "|") && strings.Count(line, "|") != 7 {
			t.Errorf("not a line of six columns: %s", line)
		}
	}
}

func TestFields(t *testing.T) {
	got := fields([]byte("StorePath: /nix/store/x\nReferences: \nSig: a:b\n"))
	if got["StorePath"] != "/nix/store/x" || got["References"] != "" || got["Sig"] != "a:b" {
		t.Errorf("got %q", got)
	}
}
