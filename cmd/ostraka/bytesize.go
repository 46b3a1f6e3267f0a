package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// byteSize is a flag's number of bytes: "1073741824", "512MiB", "1.5 GiB", "2GB". Units are those of 1024 with an i, and those of 1000
// without; a bare K, M or G is refused, for it means either.
type byteSize int64

var byteUnits = map[string]float64{"": 1, "B": 1,
	"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
	"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}

// Set implements pflag.Value.
func (b *byteSize) Set(text string) error {
	at := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if at < 0 {
		at = len(text)
	}
	factor, known := byteUnits[strings.ToUpper(strings.TrimSpace(text[at:]))]
	number, err := strconv.ParseFloat(text[:at], 64)
	if err != nil || !known || number*factor >= math.MaxInt64 {
		return fmt.Errorf("%q: want a number of bytes, as in 536870912, 512MiB, 4GiB or 4GB", text)
	}
	if whole, err := strconv.ParseInt(text[:at], 10, 64); err == nil && factor == 1 { // exact over 2^53 too
		*b = byteSize(whole)
		return nil
	}
	*b = byteSize(number * factor)
	return nil
}

// String implements pflag.Value.
func (b *byteSize) String() string { return strconv.FormatInt(int64(*b), 10) }

// Type implements pflag.Value.
func (b *byteSize) Type() string { return "bytes" }
