package chart

import (
	"fmt"
	"strconv"
	"strings"
)

// Count writes a number with commas between groups of three digits.
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Size writes a number of bytes with three digits and a decimal unit.
func Size(n int64) string { return Bytes(float64(n)) }

// Bytes is Size for what may be a part of a byte.
func Bytes(f float64) string {
	if f < 999.5 {
		return fmt.Sprintf("%.0f\u00a0B", f)
	}
	for _, unit := range []string{"kB", "MB", "GB", "TB", "PB", "EB"} {
		f /= 1000
		if f < 999.5 || unit == "EB" {
			return threeDigits(f) + "\u00a0" + unit
		}
	}
	panic("unreachable")
}

// Dollars writes an amount with as many digits as it is worth.
func Dollars(f float64) string {
	switch {
	case f == 0:
		return "$0"
	case f < 0.01:
		return fmt.Sprintf("$%.4f", f)
	case f < 100:
		return fmt.Sprintf("$%.2f", f)
	}
	return "$" + Count(int64(f+0.5))
}

// Times writes how many times as large as b a is.
func Times(a, b int64) string {
	if b == 0 {
		return "–"
	}
	return threeDigits(float64(a)/float64(b)) + "\u00a0×"
}

// Percent writes which part of b a is.
func Percent(a, b int64) string {
	if b == 0 {
		return "–"
	}
	return threeDigits(100*float64(a)/float64(b)) + "\u00a0%"
}

// threeDigits writes 1.23, 12.3, 123, and nothing after the point that is only zeros.
func threeDigits(f float64) string {
	decimals := 0
	switch {
	case f < 9.995:
		decimals = 2
	case f < 99.95:
		decimals = 1
	}
	s := strconv.FormatFloat(f, 'f', decimals, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}
