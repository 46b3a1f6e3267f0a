package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
)

// connTo is a connection on which a server says what it was told to, and everything else ends.
func connTo(says string) *respConn {
	return newRESPConn(&scripted{in: strings.NewReader(says)})
}

// scripted is the server's side, for bytes that no server sends on demand. Only reads, writes and deadlines are asked of it.
type scripted struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (s *scripted) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *scripted) Write(b []byte) (int, error) { return s.out.Write(b) }
func (s *scripted) SetDeadline(time.Time) error { return nil }
func (s *scripted) Close() error                { return nil }

func TestReplies(t *testing.T) {
	for says, want := range map[string]reply{
		"+OK\r\n":                        {kind: '+', text: []byte("OK")},
		"-ERR no\r\n":                    {kind: '-', text: []byte("ERR no")},
		":-17\r\n":                       {kind: ':', number: -17},
		"$5\r\nhe\r\no\r\n":              {kind: '$', text: []byte("he\r\no")},
		"$0\r\n\r\n":                     {kind: '$', text: []byte{}},
		"$-1\r\n":                        {kind: '$'},
		"*-1\r\n":                        {kind: '*'},
		"*0\r\n":                         {kind: '*'},
		"*2\r\n:1\r\n*1\r\n$1\r\nx\r\n":  {kind: '*', elements: []reply{{kind: ':', number: 1}, {kind: '*', elements: []reply{{kind: '$', text: []byte("x")}}}}},
		"*1\r\n-ERR within\r\nremains\n": {kind: '*', elements: []reply{{kind: '-', text: []byte("ERR within")}}},
	} {
		got, err := connTo(says).reply()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v, want %+v", says, got, err, want)
		}
	}
}

func TestWhatIsNoReply(t *testing.T) {
	for _, says := range []string{"?what\r\n", "\r\n", "+OK\n", ":x\r\n", "$x\r\n", "$-2\r\n", "$1\r\nabc", "*9999999999\r\n", "*1\r\n!\r\n", "$99999999999\r\n"} {
		if got, err := connTo(says).reply(); !errors.Is(err, errRESP) {
			t.Errorf("%q: %+v, %v", says, got, err)
		}
	}
	for _, says := range []string{"", "+OK", "$5\r\nhe", "*2\r\n:1\r\n", strings.Repeat("x", respBufferBytes+1)} {
		if got, err := connTo(says).reply(); err == nil {
			t.Errorf("%q: %+v", says, got)
		}
	}
}

func TestRequests(t *testing.T) {
	c := connTo("+PONG\r\n-ERR unknown\r\n")
	if r, err := c.do("PING"); err != nil || string(r.text) != "PONG" {
		t.Errorf("PING: %+v, %v", r, err)
	}
	if _, err := c.do("GET", "a\r\nb", ""); !errors.Is(err, errRedis) || !strings.Contains(err.Error(), "ERR unknown") {
		t.Errorf("GET: %v", err)
	}
	sent := c.conn.(*scripted).out.String()
	if want := "*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n$0\r\n\r\n"; sent != want {
		t.Errorf("sent %q, want %q", sent, want)
	}
}

// Writes count only if the wait behind them says so; a reply to one call is not taken for another's.
func TestRoundTrip(t *testing.T) {
	calls := func() []*redisCall {
		return []*redisCall{
			{keys: [][]byte{[]byte("a")}, values: [][]byte{[]byte("1")}},
			{keys: [][]byte{[]byte("b")}},
			{keys: [][]byte{[]byte("c"), []byte("d")}, values: [][]byte{[]byte("3"), []byte("4")}},
		}
	}
	for _, c := range []struct {
		says   string
		await  *replicated
		failed []int
	}{
		{"+OK\r\n$-1\r\n+OK\r\n+OK\r\n:1\r\n", waitMemory, []int{0, 0, 0}},
		{"+OK\r\n$-1\r\n+OK\r\n+OK\r\n:0\r\n", waitMemory, []int{1, 0, 2}},
		{"+OK\r\n$-1\r\n+OK\r\n-OOM\r\n:2\r\n", waitMemory, []int{0, 0, 1}},
		{"+OK\r\n-LOADING\r\n+OK\r\n+OK\r\n-ERR no\r\n", waitMemory, []int{1, 1, 2}},
		{"+OK\r\n$-1\r\n+OK\r\n+OK\r\n*2\r\n:1\r\n:2\r\n", waitAOF, []int{0, 0, 0}},
		{"+OK\r\n$-1\r\n+OK\r\n+OK\r\n*2\r\n:1\r\n:0\r\n", waitAOF, []int{1, 0, 2}},
		{"+OK\r\n$-1\r\n+OK\r\n+OK\r\n*2\r\n:0\r\n:1\r\n", waitAOF, []int{1, 0, 2}},
		{"+OK\r\n$-1\r\n+OK\r\n+OK\r\n:1\r\n", waitAOF, []int{1, 0, 2}},
	} {
		conn, all := connTo(c.says), calls()
		if err := roundTrip(conn, c.await, all); err != nil {
			t.Errorf("%q: %v", c.says, err)
			continue
		}
		for i, call := range all {
			if call.failed != c.failed[i] || (call.err != nil) != (call.failed > 0) {
				t.Errorf("%q: call %d: %d failed, %v; want %d", c.says, i, call.failed, call.err, c.failed[i])
			}
		}
		if sent := conn.conn.(*scripted).out.String(); strings.Count(sent, c.await.name+"\r\n") != 1 || !strings.Contains(sent, "SET\r\n$1\r\na") {
			t.Errorf("sent %q", sent)
		}
	}
	reading := connTo("$1\r\nx\r\n")
	if err := roundTrip(reading, waitAOF, calls()[1:2]); err != nil || strings.Contains(reading.conn.(*scripted).out.String(), "WAIT") {
		t.Errorf("reads alone: %v, sent %q", err, reading.conn.(*scripted).out.String())
	}
	if err := roundTrip(connTo("+OK\r\n"), waitAOF, calls()); err == nil {
		t.Error("a connection that ended in between is no error")
	}
}

func FuzzReply(f *testing.F) {
	for _, seed := range []string{"+OK\r\n", "$5\r\nhello\r\n", "*2\r\n:1\r\n$-1\r\n", "*1\r\n*1\r\n-E\r\n", "$9999\r\nx"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, says string) {
		r, err := connTo(says).reply()
		if err == nil && !strings.ContainsRune("+-:$*", rune(r.kind)) {
			t.Errorf("%q was read as %+v", says, r)
		}
	})
}
