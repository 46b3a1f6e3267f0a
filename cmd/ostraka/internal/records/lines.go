package records

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

var (
	// ErrChanged: what stands before a Position is not what stood there when it was taken.
	ErrChanged = errors.New("the input has changed")
	// ErrEncoding: the input is no text in UTF-8 or bytes, but UTF-16.
	ErrEncoding = errors.New("the input is UTF-16, convert it to UTF-8 first")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const utf8BOM = "\xef\xbb\xbf"

// Position is a place between two records.
type Position struct {
	// Line is the number of lines before it, Offset their bytes, and CRC their CRC-32C.
	Line   int64  `json:"line"`
	Offset int64  `json:"offset"`
	CRC    uint32 `json:"crc32c"`
}

// lineReader cuts its input into lines and knows where it stands.
type lineReader struct {
	in *bufio.Reader
	// max bounds a line's bytes with its end.
	max int
	at  Position
	// long collects a line that is larger than in's buffer.
	long []byte
}

func newLineReader(r io.Reader, max int) (*lineReader, error) {
	l := &lineReader{in: bufio.NewReaderSize(r, 64<<10), max: max}
	start, err := l.in.Peek(len(utf8BOM))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if bytes.HasPrefix(start, []byte("\xff\xfe")) || bytes.HasPrefix(start, []byte("\xfe\xff")) {
		return nil, ErrEncoding
	}
	if string(start) == utf8BOM {
		l.in.Discard(len(utf8BOM)) // cannot fail: it was peeked
		l.count(start)
	}
	return l, nil
}

func (l *lineReader) count(b []byte) {
	l.at.Offset += int64(len(b))
	l.at.CRC = crc32.Update(l.at.CRC, castagnoli, b)
}

// next returns a line with its end ("\n", "\r\n", or none at the end of the input), valid until the next call.
// A line over the limit is read to its end and dropped: ErrLineTooLong, and reading may go on. io.EOF: no line.
func (l *lineReader) next() ([]byte, error) {
	l.long = l.long[:0]
	for length := 0; ; {
		piece, err := l.in.ReadSlice('\n')
		l.count(piece)
		length += len(piece)
		if errors.Is(err, bufio.ErrBufferFull) {
			if length <= l.max {
				l.long = append(l.long, piece...)
			}
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if length == 0 {
			return nil, io.EOF
		}
		l.at.Line++
		if length > l.max {
			l.long = nil // it may be large; the next long line grows its own
			return nil, fmt.Errorf("%w: %d bytes, at most %d allowed", ErrLineTooLong, length, l.max)
		}
		if length == len(piece) {
			return piece, nil
		}
		l.long = append(l.long, piece...)
		return l.long, nil
	}
}

// skipTo reads on to a position taken earlier in the same input. Errors: ErrChanged.
func (l *lineReader) skipTo(p Position) error {
	if p.Offset < l.at.Offset {
		return fmt.Errorf("%w: it goes on at byte %d, but records begin at byte %d", ErrChanged, p.Offset, l.at.Offset)
	}
	_, err := io.CopyN(counter{l}, l.in, p.Offset-l.at.Offset)
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it ends at byte %d, before byte %d", ErrChanged, l.at.Offset, p.Offset)
	case err != nil:
		return err
	case l.at.CRC != p.CRC:
		return fmt.Errorf("%w before line %d", ErrChanged, p.Line+1)
	}
	l.at.Line = p.Line
	return nil
}

// counter counts what is skipped.
type counter struct{ l *lineReader }

func (c counter) Write(b []byte) (int, error) {
	c.l.count(b)
	return len(b), nil
}

// content is a line without its end.
func content(line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r"))
}
