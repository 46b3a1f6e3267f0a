package records

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// LineBytesMaxDefault bounds a record's text: the largest value that a cluster takes by default, 8 MiB, with each of
// its bytes escaped in JSON.
const LineBytesMaxDefault = 64 << 20

// ErrColumn: a column that was asked for cannot be found.
var ErrColumn = errors.New("no such column")

// ErrDelimiter: the delimiter cannot be one.
var ErrDelimiter = errors.New("delimiter must be one ASCII character other than a quote, a letter, a digit or a line end")

// ReadOptions say how to understand an input.
type ReadOptions struct {
	Format Format
	// KeyColumn and ValueColumn choose the parts of a record. In CSV and TSV: a name in the header, or a number
	// from 1; in JSON lines: the name of a member. "0" is the whole line as it stands, without its end. Empty:
	// key or key_base64, value or value_base64; without a header columns 1 and 2.
	KeyColumn, ValueColumn string
	// NoHeader: the first line of a CSV or TSV is a record.
	NoHeader bool
	// Delimiter of a CSV; 0: ','.
	Delimiter byte
	// LineBytesMax bounds the text of a record; 0: LineBytesMaxDefault.
	LineBytesMax int
}

// decoder turns lines into records. first is the record's first line; more are read for a record that goes on.
type decoder interface {
	// decode returns a record whose slices the caller may keep. Errors are about the record, except those of
	// reading, which are wrapped in readError.
	decode(first []byte, lines *lineReader) (Record, error)
}

// readError is a failure of the input itself, after which reading cannot go on.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// Reader reads records.
type Reader struct {
	lines   *lineReader
	decoder decoder
}

// NewReader reads the header, where there is one. Errors: ErrColumn, ErrDelimiter, ErrEncoding, ErrFormat, those of
// the header's line, and the input's. An empty input is no error.
func NewReader(r io.Reader, o ReadOptions) (*Reader, error) {
	if o.LineBytesMax == 0 {
		o.LineBytesMax = LineBytesMaxDefault
	}
	lines, err := newLineReader(r, o.LineBytesMax)
	if err != nil {
		return nil, err
	}
	reader := &Reader{lines: lines}
	switch o.Format {
	case JSONLines:
		reader.decoder = newJSONDecoder(o)
	case CSV, TSV:
		reader.decoder, err = newTableDecoder(lines, o)
	default:
		_, err = ParseFormat(string(o.Format))
	}
	if err != nil {
		return nil, err
	}
	return reader, nil
}

// Next returns the next record; empty lines are passed over. io.EOF: there is none. After a *LineError reading may
// go on with the record behind it; any other error is the input's and final. The record is the caller's.
func (r *Reader) Next() (Record, error) {
	for {
		line, err := r.lines.next()
		first := r.lines.at.Line
		switch {
		case errors.Is(err, ErrLineTooLong):
			return Record{}, &LineError{First: first, Last: first, Err: err}
		case err != nil:
			return Record{}, err
		case len(content(line)) == 0:
			continue
		}
		record, err := r.decoder.decode(line, r.lines)
		if err == nil && len(record.Key) == 0 {
			err = ErrEmptyKey
		}
		if failed, ok := errors.AsType[readError](err); ok {
			return Record{}, failed.error
		}
		if err != nil {
			return Record{}, &LineError{First: first, Last: r.lines.at.Line, Err: err}
		}
		return record, nil
	}
}

// Position is where the Reader stands: behind the record that Next returned last, or complained of.
func (r *Reader) Position() Position { return r.lines.at }

// SkipTo goes on at a Position that an earlier Reader of the same input and options had. What is skipped is read and
// its checksum compared. Errors: ErrChanged, or the input's.
func (r *Reader) SkipTo(p Position) error { return r.lines.skipTo(p) }

// wholeLine is the column that is the line itself.
const wholeLine = -2

// absent is a column that is not there.
const absent = -1

// columns are the places of a record's parts in a row, from 0; absent or wholeLine.
type columns struct {
	key, keyBase64, value, valueBase64, ttl int
}

// resolveColumns finds the columns that the options ask for. header is nil where there is none.
func resolveColumns(header []string, o ReadOptions) (columns, error) {
	c := columns{key: absent, keyBase64: absent, value: absent, valueBase64: absent, ttl: absent}
	var err error
	switch {
	case o.KeyColumn != "":
		c.key, err = findColumn(header, o.KeyColumn)
	case header == nil:
		c.key = 0
	default:
		c.key, c.keyBase64 = slices.Index(header, nameKey), slices.Index(header, nameKeyBase64)
	}
	if err != nil {
		return c, err
	}
	switch {
	case o.ValueColumn != "":
		c.value, err = findColumn(header, o.ValueColumn)
	case header == nil:
		c.value = 1
	default:
		c.value, c.valueBase64 = slices.Index(header, nameValue), slices.Index(header, nameValueBase64)
	}
	if err != nil {
		return c, err
	}
	if o.KeyColumn == "" && o.ValueColumn == "" {
		c.ttl = slices.Index(header, nameTTL)
	}
	if c.key == absent && c.keyBase64 == absent {
		return c, fmt.Errorf("%w: no column is named %q; the header has %q", ErrColumn, nameKey, header)
	}
	if c.value == absent && c.valueBase64 == absent {
		return c, fmt.Errorf("%w: no column is named %q; the header has %q", ErrColumn, nameValue, header)
	}
	return c, nil
}
