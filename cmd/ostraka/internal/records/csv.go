package records

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// csvSplitter is a state machine over the bytes of a record. encoding/csv is not used for three reasons: it turns
// "\r\n" inside quotes into "\n", so values would change on their way through; it has no bound on a record; and it
// reads ahead, so that nobody could tell the place between two records.
//
//	             "                       "
//	fieldStart ─────► quoted ◄────────────────► quoteSeen ──delimiter──► fieldStart
//	    │ other                                     │ line end ─► record complete
//	    ▼                                           │ other ─► syntax error
//	 unquoted ──delimiter──► fieldStart
//	    │ line end ─► record complete
type csvSplitter struct {
	table     *tableDecoder
	delimiter byte

	state csvState
	// text holds all fields of the record one after the other, field i in text[ends[i-1]:ends[i]).
	text   []byte
	ends   []int
	fields [][]byte
}

type csvState int

const (
	fieldStart csvState = iota
	unquoted
	quoted
	// quoteSeen: a quote inside quotes, which ends the field or is the first of a doubled one.
	quoteSeen
)

func (c *csvSplitter) split(first []byte, lines *lineReader) ([][]byte, error) {
	c.state, c.text, c.ends = fieldStart, c.text[:0], c.ends[:0]
	line, size := first, 0
	for {
		c.table.keep(line)
		if size += len(line); size > lines.max {
			return nil, fmt.Errorf("%w: over %d bytes; a quote may be missing", ErrLineTooLong, lines.max)
		}
		if err := c.feed(line); err != nil {
			return nil, err
		}
		if c.state != quoted {
			return c.finish(), nil
		}
		var err error
		if line, err = lines.next(); err != nil {
			return nil, c.cutShort(err)
		}
	}
}

// cutShort explains a failure to read the rest of a quoted field.
func (c *csvSplitter) cutShort(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: a quoted field has no closing quote", ErrSyntax)
	case errors.Is(err, ErrLineTooLong):
		return err
	}
	return readError{err}
}

// feed takes a line with its end. The record is complete unless the state is quoted afterwards.
func (c *csvSplitter) feed(line []byte) error {
	body := content(line)
	for i, b := range body {
		switch {
		case c.state == quoted && b == '"':
			c.state = quoteSeen
		case c.state == quoted:
			c.text = append(c.text, b)
		case b == c.delimiter:
			c.ends = append(c.ends, len(c.text))
			c.state = fieldStart
		case c.state == fieldStart && b == '"':
			c.state = quoted
		case c.state == quoteSeen && b == '"':
			c.text = append(c.text, b)
			c.state = quoted
		case c.state == quoteSeen:
			return fmt.Errorf("%w: byte %d of the line follows a closing quote", ErrSyntax, i+1)
		default:
			c.text = append(c.text, b)
			c.state = unquoted
		}
	}
	if c.state == quoted {
		c.text = append(c.text, line[len(body):]...) // the line end is part of the field
	}
	return nil
}

func (c *csvSplitter) finish() [][]byte {
	c.ends = append(c.ends, len(c.text))
	c.fields = c.fields[:0]
	from := 0
	for _, end := range c.ends {
		c.fields = append(c.fields, c.text[from:end:end])
		from = end
	}
	return c.fields
}

// appendCSV appends a field, quoted if it must be.
func appendCSV(to []byte, field []byte, delimiter byte) []byte {
	special := string([]byte{delimiter, '"', '\r', '\n'})
	if !bytes.ContainsAny(field, special) {
		return append(to, field...)
	}
	to = append(to, '"')
	to = append(to, bytes.ReplaceAll(field, []byte(`"`), []byte(`""`))...)
	return append(to, '"')
}
