package records

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"io"
	"strconv"
	"unicode/utf8"
)

// Line is a record as JSON lines have it.
type Line struct {
	Key         *string `json:"key,omitempty"`
	KeyBase64   *string `json:"key_base64,omitempty"`
	Value       *string `json:"value,omitempty"`
	ValueBase64 *string `json:"value_base64,omitempty"`
	Version     uint64  `json:"version,omitempty"`
	TTLMillis   int64   `json:"ttl_ms,omitempty"`
}

// NewLine puts bytes that are not UTF-8 into base64.
func NewLine(r Record) Line {
	l := Line{Version: r.Version, TTLMillis: r.TTL.Milliseconds()}
	l.Key, l.KeyBase64 = plainOrCoded(r.Key)
	l.Value, l.ValueBase64 = plainOrCoded(r.Value)
	return l
}

func plainOrCoded(b []byte) (plain, coded *string) {
	if utf8.Valid(b) {
		s := string(b)
		return &s, nil
	}
	s := base64.StdEncoding.EncodeToString(b)
	return nil, &s
}

// Writer writes records in the form that a Reader with default options reads back, byte for byte. A CSV or TSV
// begins with the header key, value, key_base64, value_base64, version, ttl_ms.
type Writer struct {
	out    *bufio.Writer
	json   *json.Encoder
	row    func(cells [][]byte)
	line   []byte
	headed bool
}

// NewWriter buffers: call Flush at the end. Errors: ErrFormat.
func NewWriter(w io.Writer, f Format) (*Writer, error) {
	if _, err := ParseFormat(string(f)); err != nil {
		return nil, err
	}
	writer := &Writer{out: bufio.NewWriterSize(w, 64<<10)}
	switch f {
	case JSONLines:
		writer.json = json.NewEncoder(writer.out)
		writer.json.SetEscapeHTML(false)
	case CSV:
		writer.row = writer.rowCSV
	case TSV:
		writer.row = writer.rowTSV
	}
	return writer, nil
}

// Write writes a record. Errors are the output's.
func (w *Writer) Write(r Record) error {
	if w.json != nil {
		return w.json.Encode(NewLine(r))
	}
	if err := w.writeHeader(); err != nil {
		return err
	}
	l := NewLine(r)
	cells := [][]byte{cell(l.Key), cell(l.Value), cell(l.KeyBase64), cell(l.ValueBase64), nil, nil}
	if l.Version != 0 {
		cells[4] = strconv.AppendUint(nil, l.Version, 10)
	}
	if l.TTLMillis != 0 {
		cells[5] = strconv.AppendInt(nil, l.TTLMillis, 10)
	}
	return w.writeRow(cells)
}

// Flush hands on what is buffered, with the header even if there was no record.
func (w *Writer) Flush() error {
	if w.json == nil {
		if err := w.writeHeader(); err != nil {
			return err
		}
	}
	return w.out.Flush()
}

func (w *Writer) writeHeader() error {
	if w.headed {
		return nil
	}
	w.headed = true
	var names [][]byte
	for _, n := range []string{nameKey, nameValue, nameKeyBase64, nameValueBase64, nameVersion, nameTTL} {
		names = append(names, []byte(n))
	}
	return w.writeRow(names)
}

func (w *Writer) writeRow(cells [][]byte) error {
	w.line = w.line[:0]
	w.row(cells)
	_, err := w.out.Write(append(w.line, '\n'))
	return err
}

func cell(s *string) []byte {
	if s == nil {
		return nil
	}
	return []byte(*s)
}

func (w *Writer) rowCSV(cells [][]byte) {
	for i, c := range cells {
		if i > 0 {
			w.line = append(w.line, ',')
		}
		w.line = appendCSV(w.line, c, ',')
	}
}

func (w *Writer) rowTSV(cells [][]byte) {
	for i, c := range cells {
		if i > 0 {
			w.line = append(w.line, '\t')
		}
		w.line = append(w.line, tsvEscaper.Replace(string(c))...)
	}
}
