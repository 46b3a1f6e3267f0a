package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ostraka-db/ostraka/client"
	"github.com/ostraka-db/ostraka/cmd/ostraka/internal/records"
)

// printJSON prints one value on one line.
func (a *app) printJSON(value any) error {
	return encodeJSON(a.out, value)
}

func encodeJSON(out io.Writer, value any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false) // a terminal is no web page
	return e.Encode(value)
}

// print prints a line of text.
func (a *app) print(text string) error {
	_, err := fmt.Fprintln(a.out, text)
	return err
}

// written is what a write prints with --json.
type written struct {
	Version uint64 `json:"version"`
}

// printWritten prints OK, or the key's new version with --json.
func (a *app) printWritten(asJSON bool, version uint64) error {
	if asJSON {
		return a.printJSON(written{version})
	}
	return a.print("OK")
}

// printItem prints a key and its value, as JSON line or as "key<TAB>value".
func printItem(out io.Writer, asJSON bool, key []byte, v client.Value) error {
	if asJSON {
		return encodeJSON(out, records.NewLine(records.Record{Key: key, Value: v.Value, Version: v.Version, TTL: v.TTL}))
	}
	_, err := fmt.Fprintf(out, "%s\t%s\n", printable(key), printable(v.Value))
	return err
}

// printKey prints a key without its value as a JSON line.
func printKey(out io.Writer, item client.Item) error {
	line := records.NewLine(records.Record{Key: item.Key, Version: item.Version, TTL: item.TTL})
	line.Value = nil
	return encodeJSON(out, line)
}

// printable is bytes as a terminal and a line of text can take them: as they are, if all of it is printable UTF-8 and
// could not be mistaken for the other form, else as a quoted Go string.
func printable(b []byte) string {
	s := string(b)
	if s == "" || s[0] == '"' || !utf8.Valid(b) {
		return strconv.Quote(s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) { // of white space, it lets only the plain space pass
			return strconv.Quote(s)
		}
	}
	return s
}

// readableTTL is a remaining life for people.
func readableTTL(ttl time.Duration) string {
	if ttl == 0 {
		return "none"
	}
	return ttl.String()
}

// readableBytes is a size for people.
func readableBytes(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	size, prefix := float64(n)/unit, 0
	for size >= unit {
		size /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %ciB", size, "KMGTPE"[prefix])
}
