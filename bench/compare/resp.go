package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// This is as much of Redis's protocol (RESP2) as the benchmark needs, so that the client costs Redis little:
//
//	request   *2 CRLF $3 CRLF GET CRLF $1 CRLF k CRLF
//	reply     +OK CRLF | -ERR why CRLF | :17 CRLF | $5 CRLF hello CRLF | $-1 CRLF (nothing) | *2 CRLF reply reply

const (
	// respTimeout bounds one round trip.
	respTimeout = 10 * time.Second
	// respBufferBytes of a connection's reader.
	respBufferBytes = 4 << 10
	// respBulkMax and respElementsMax bound what a reply may announce: Redis's own limit, and more than is ever asked for.
	respBulkMax     = 512 << 20
	respElementsMax = 1 << 20
)

var (
	// errRedis wraps what the server refused.
	errRedis = errors.New("redis")
	// errRESP: the server does not speak the protocol; the connection is of no more use.
	errRESP = errors.New("not a reply in Redis's protocol")
)

// reply is a value that the server sent.
type reply struct {
	kind byte // one of + - : $ *
	// text of + - $; nil for the $ that is nothing.
	text []byte
	// number of :.
	number int64
	// elements of *.
	elements []reply
}

// err is what a - says.
func (r reply) err() error {
	if r.kind == '-' {
		return fmt.Errorf("%w: %s", errRedis, r.text)
	}
	return nil
}

// respConn is a connection for one goroutine. Requests gather until flush.
type respConn struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

func dialRESP(ctx context.Context, address string) (*respConn, error) {
	conn, err := (&net.Dialer{Timeout: respTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return newRESPConn(conn), nil
}

func newRESPConn(conn net.Conn) *respConn {
	return &respConn{conn: conn, in: bufio.NewReaderSize(conn, respBufferBytes)}
}

func (c *respConn) close() error { return c.conn.Close() }

// add puts a request with its arguments into the buffer.
func (c *respConn) add(name string, arguments ...[]byte) {
	c.out = appendCount(c.out, '*', 1+len(arguments))
	c.out = appendCount(c.out, '$', len(name))
	c.out = append(append(c.out, name...), "\r\n"...)
	for _, a := range arguments {
		c.out = appendCount(c.out, '$', len(a))
		c.out = append(append(c.out, a...), "\r\n"...)
	}
}

func appendCount(b []byte, kind byte, n int) []byte {
	return append(strconv.AppendInt(append(b, kind), int64(n), 10), "\r\n"...)
}

// flush sends what has gathered, and begins the time within which the replies must come.
func (c *respConn) flush() error {
	if err := c.conn.SetDeadline(time.Now().Add(respTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(c.out)
	c.out = c.out[:0]
	return err
}

// do sends one request and returns its reply. An error that wraps errRedis leaves the connection good.
func (c *respConn) do(name string, arguments ...string) (reply, error) {
	raw := make([][]byte, len(arguments))
	for i, a := range arguments {
		raw[i] = []byte(a)
	}
	c.add(name, raw...)
	if err := c.flush(); err != nil {
		return reply{}, err
	}
	r, err := c.reply()
	if err != nil {
		return reply{}, err
	}
	return r, r.err()
}

// reply reads the next one.
func (c *respConn) reply() (reply, error) {
	line, err := c.line()
	if err != nil {
		return reply{}, err
	}
	r := reply{kind: line[0]}
	switch r.kind {
	case '+', '-':
		r.text = append([]byte{}, line[1:]...)
		return r, nil
	case ':':
		if r.number, err = strconv.ParseInt(string(line[1:]), 10, 64); err != nil {
			return reply{}, fmt.Errorf("%w: %q", errRESP, line)
		}
		return r, nil
	case '$':
		n, err := count(line, respBulkMax)
		if err != nil || n < 0 {
			return r, err
		}
		r.text, err = c.bulk(n)
		return r, err
	case '*':
		n, err := count(line, respElementsMax)
		if err != nil {
			return reply{}, err
		}
		for range n { // none for -1
			e, err := c.reply()
			if err != nil {
				return reply{}, err
			}
			r.elements = append(r.elements, e)
		}
		return r, nil
	}
	return reply{}, fmt.Errorf("%w: %q", errRESP, line)
}

// line reads up to CRLF and returns at least the kind; valid until the next read.
func (c *respConn) line() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return nil, fmt.Errorf("%w: %q", errRESP, line)
	}
	return line[:len(line)-2], nil
}

// count reads the number in a line, -1 to most.
func count(line []byte, most int64) (int, error) {
	n, err := strconv.ParseInt(string(line[1:]), 10, 64)
	if err != nil || n < -1 || n > most {
		return 0, fmt.Errorf("%w: %q", errRESP, line)
	}
	return int(n), nil
}

// bulk reads n bytes and their CRLF.
func (c *respConn) bulk(n int) ([]byte, error) {
	text := make([]byte, n+2)
	if _, err := io.ReadFull(c.in, text); err != nil {
		return nil, err
	}
	if text[n] != '\r' || text[n+1] != '\n' {
		return nil, fmt.Errorf("%w: %d bytes without an end", errRESP, n)
	}
	return text[:n], nil
}
