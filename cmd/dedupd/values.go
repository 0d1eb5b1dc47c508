package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bytes is a number of bytes. As text it may have a unit: KiB, MiB, GiB, or KB, MB, GB.
type Bytes int64

var units = []struct {
	name string
	size int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1}}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	digits, size := string(text), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(digits, u.name); ok {
			digits, size = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > 1<<62/size {
		return fmt.Errorf("%q is not a size like 64MiB", text)
	}
	*b = Bytes(n * size)
	return nil
}

// String writes the size with the largest unit that needs no fraction.
func (b Bytes) String() string {
	for _, u := range units[:3] {
		if n := int64(b); n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// Duration is a time.Duration whose text always has a unit.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration like 30s", text)
	}
	*d = Duration(v)
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }

// List is a list of strings without commas: in TOML an array or, as elsewhere, one
// string with commas.
type List []string

// UnmarshalText implements encoding.TextUnmarshaler. "none" is the empty list.
func (l *List) UnmarshalText(text []byte) error {
	*l = nil
	if string(text) == "none" {
		return nil
	}
	for s := range strings.SplitSeq(string(text), ",") {
		if s = strings.TrimSpace(s); s != "" {
			*l = append(*l, s)
		}
	}
	return nil
}

// UnmarshalTOML implements toml.Unmarshaler.
func (l *List) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case string:
		return l.UnmarshalText([]byte(v))
	case []any:
		*l = nil
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return errors.New("not a list of strings")
			}
			*l = append(*l, s)
		}
		return nil
	}
	return errors.New("not a list of strings")
}

func (l List) String() string {
	if len(l) == 0 {
		return "none"
	}
	return strings.Join(l, ",")
}
