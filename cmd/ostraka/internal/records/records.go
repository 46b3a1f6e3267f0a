// Package records reads and writes key-value pairs as text: JSON lines, CSV and TSV. It is what `ostraka import`
// and `ostraka export` speak, and the JSON lines of every other command.
//
// It owns the formats, their limits and line numbers. It knows nothing of a cluster: a Record is bytes.
//
//	bytes ─► lines (bounded, counted, checksummed) ─► fields (csv, tsv) or members (jsonl) ─► Record
//
// A Reader holds one record at a time, so a file of any size is read with bounded memory; a line over the
// limit is passed over and reported, never stored. A bad record is a *LineError that names its lines, after
// which reading may go on. A Position says where a Reader stands, and with a checksum of all before it, so that
// an interrupted import goes on at the right place or finds that the file has changed.
//
// Readers and Writers are for one goroutine. Start reading at reader.go.
package records

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Record is one key with its value.
type Record struct {
	Key, Value []byte
	// Version of the key; written where it is not 0, ignored on reading: the cluster gives versions.
	Version uint64
	// TTL is the life left, in whole milliseconds; 0: none.
	TTL time.Duration
}

// Format is one of the text forms.
type Format string

const (
	// JSONLines has one object a line: {"key":"…","value":"…"}, with key_base64 and value_base64 where bytes are
	// not UTF-8, and version and ttl_ms where known. Other members are ignored.
	JSONLines Format = "jsonl"
	// CSV is RFC 4180, read leniently: a quote inside an unquoted field stands for itself.
	CSV Format = "csv"
	// TSV has no quotes: \t \n \r \\ stand for the bytes that would break a line apart.
	TSV Format = "tsv"
)

// ErrFormat: the name of a format, or of a file, tells none of the formats.
var ErrFormat = errors.New("unknown format")

// ParseFormat knows a format by its name. Errors: ErrFormat.
func ParseFormat(name string) (Format, error) {
	switch f := Format(name); f {
	case JSONLines, CSV, TSV:
		return f, nil
	}
	return "", fmt.Errorf("%w %q: want jsonl, csv or tsv", ErrFormat, name)
}

// FormatOfFile knows a format by a file's name. Errors: ErrFormat.
func FormatOfFile(name string) (Format, error) {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".jsonl", ".ndjson", ".json":
		return JSONLines, nil
	case ".csv":
		return CSV, nil
	case ".tsv", ".tab":
		return TSV, nil
	}
	return "", fmt.Errorf("%w: the name %q does not tell it", ErrFormat, name)
}

// Names of members and columns.
const (
	nameKey         = "key"
	nameKeyBase64   = "key_base64"
	nameValue       = "value"
	nameValueBase64 = "value_base64"
	nameVersion     = "version"
	nameTTL         = "ttl_ms"
)

// LineError says what is wrong with the record on lines [First, Last], counted from 1. Reading may go on.
type LineError struct {
	First, Last int64
	Err         error
}

func (e *LineError) Error() string {
	if e.First == e.Last {
		return fmt.Sprintf("line %d: %v", e.First, e.Err)
	}
	return fmt.Sprintf("lines %d to %d: %v", e.First, e.Last, e.Err)
}

func (e *LineError) Unwrap() error { return e.Err }

// Reasons of a LineError.
var (
	ErrLineTooLong  = errors.New("record is too long")
	ErrSyntax       = errors.New("syntax")
	ErrEmptyKey     = errors.New("the key is empty")
	ErrMissing      = errors.New("missing")
	ErrContradicted = errors.New("given twice")
)
