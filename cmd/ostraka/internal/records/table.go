package records

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tableDecoder reads the rows of a CSV or TSV.
type tableDecoder struct {
	columns columns
	// split cuts the record that begins with a line into fields, valid until the next call.
	split func(first []byte, lines *lineReader) ([][]byte, error)
	// raw is the record as it stands, kept only if a column asks for it.
	raw     []byte
	keepRaw bool
}

func newTableDecoder(lines *lineReader, o ReadOptions) (*tableDecoder, error) {
	d := new(tableDecoder)
	switch {
	case o.Format == TSV && o.Delimiter != 0:
		return nil, fmt.Errorf("%w: a TSV has tabs; for another delimiter the format is csv", ErrDelimiter)
	case o.Format == TSV:
		d.split = d.splitTSV
	default:
		if o.Delimiter == 0 {
			o.Delimiter = ','
		}
		if !validDelimiter(o.Delimiter) {
			return nil, ErrDelimiter
		}
		d.split = (&csvSplitter{table: d, delimiter: o.Delimiter}).split
	}
	var header []string
	if !o.NoHeader {
		var err error
		if header, err = d.readHeader(lines); err != nil {
			return nil, err
		}
		if header == nil {
			return d, nil // an empty input has no records either
		}
	}
	var err error
	d.columns, err = resolveColumns(header, o)
	d.keepRaw = d.columns.key == wholeLine || d.columns.value == wholeLine
	return d, err
}

func validDelimiter(b byte) bool {
	letter := b|0x20 >= 'a' && b|0x20 <= 'z'
	digit := b >= '0' && b <= '9'
	return b != 0 && b < 0x80 && b != '"' && b != '\n' && b != '\r' && !letter && !digit
}

// readHeader returns the names of the first line that is not empty; nil: there is none.
func (d *tableDecoder) readHeader(lines *lineReader) ([]string, error) {
	for {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("header: %w", err)
		case len(content(line)) == 0:
			continue
		}
		fields, err := d.split(line, lines)
		if err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
		header := make([]string, len(fields))
		for i, f := range fields {
			header[i] = strings.TrimSpace(string(f))
		}
		return header, nil
	}
}

// findColumn finds a column by its name in the header, or by its number from 1.
func findColumn(header []string, name string) (int, error) {
	if i := slices.Index(header, name); i >= 0 {
		return i, nil
	}
	n, err := strconv.Atoi(name)
	switch {
	case err != nil && header == nil:
		return 0, fmt.Errorf("%w: %q is no number, and there is no header to look it up in", ErrColumn, name)
	case err != nil:
		return 0, fmt.Errorf("%w: %q is neither a number nor in the header, which has %q", ErrColumn, name, header)
	case n < 0 || n > len(header) && header != nil:
		return 0, fmt.Errorf("%w: %d, the header has %d columns", ErrColumn, n, len(header))
	case n == 0:
		return wholeLine, nil
	}
	return n - 1, nil
}

func (d *tableDecoder) decode(first []byte, lines *lineReader) (Record, error) {
	d.raw = d.raw[:0]
	fields, err := d.split(first, lines)
	if err != nil {
		return Record{}, err
	}
	var r Record
	c := d.columns
	if r.Key, err = d.cell(fields, c.key, c.keyBase64); err != nil {
		return Record{}, fmt.Errorf("key: %w", err)
	}
	if r.Value, err = d.cell(fields, c.value, c.valueBase64); err != nil {
		return Record{}, fmt.Errorf("value: %w", err)
	}
	if c.ttl >= 0 && c.ttl < len(fields) && len(fields[c.ttl]) > 0 {
		if r.TTL, err = parseTTL(string(fields[c.ttl])); err != nil {
			return Record{}, err
		}
	}
	return r, nil
}

// cell copies a part of a row that stands in one of two columns, plain or in base64: where both are there, the one
// that is not empty.
func (d *tableDecoder) cell(fields [][]byte, plain, coded int) ([]byte, error) {
	if plain == wholeLine {
		return bytes.Clone(content(d.raw)), nil
	}
	var text []byte
	if coded != absent && coded < len(fields) {
		text = fields[coded]
	}
	switch {
	case plain == absent && coded >= len(fields):
		return nil, fmt.Errorf("%w: column %d of a row of %d", ErrMissing, coded+1, len(fields))
	case plain != absent && plain >= len(fields):
		return nil, fmt.Errorf("%w: column %d of a row of %d", ErrMissing, plain+1, len(fields))
	case len(text) > 0 && plain != absent && len(fields[plain]) > 0:
		return nil, fmt.Errorf("%w: in columns %d and %d", ErrContradicted, plain+1, coded+1)
	case len(text) > 0 || plain == absent:
		return decodeBase64(string(text))
	}
	return append([]byte{}, fields[plain]...), nil
}

func decodeBase64(text string) ([]byte, error) {
	decoded, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: base64: %w", ErrSyntax, err)
	}
	return decoded, nil
}

// ttlMillisMax keeps a TTL within time.Duration.
const ttlMillisMax = int64(1<<63-1) / int64(time.Millisecond)

func parseTTL(text string) (time.Duration, error) {
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil || ms < 1 || ms > ttlMillisMax {
		return 0, fmt.Errorf("%w: %s %q is no positive number of milliseconds", ErrSyntax, nameTTL, text)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func (d *tableDecoder) keep(line []byte) {
	if d.keepRaw {
		d.raw = append(d.raw, line...)
	}
}

func (d *tableDecoder) splitTSV(first []byte, _ *lineReader) ([][]byte, error) {
	d.keep(first)
	fields := bytes.Split(content(first), []byte("\t"))
	for i, f := range fields {
		fields[i] = unescapeTSV(f)
	}
	return fields, nil
}

// unescapeTSV works in place. A backslash before anything but t, n, r and \ stands for itself: files that know
// nothing of escapes are full of those.
func unescapeTSV(f []byte) []byte {
	from := bytes.IndexByte(f, '\\')
	if from < 0 {
		return f
	}
	out := f[:from]
	for i := from; i < len(f); i++ {
		if f[i] == '\\' && i+1 < len(f) {
			if plain, ok := tsvUnescapes[f[i+1]]; ok {
				out = append(out, plain)
				i++
				continue
			}
		}
		out = append(out, f[i])
	}
	return out
}

var tsvUnescapes = map[byte]byte{'t': '\t', 'n': '\n', 'r': '\r', '\\': '\\'}

var tsvEscaper = strings.NewReplacer("\t", `\t`, "\n", `\n`, "\r", `\r`, `\`, `\\`)
