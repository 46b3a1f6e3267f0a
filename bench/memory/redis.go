package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"time"
)

// redisFigure is what the same data costs in Redis.
type redisFigure struct {
	RSSBytesPerKey       float64 `json:"rss_bytes_per_key"`
	LoadSeconds          float64 `json:"load_seconds"` // of an RDB file, from the start of the process until it answers
	LoadedRSSBytesPerKey float64 `json:"loaded_rss_bytes_per_key"`
}

type redisServer struct {
	cmd  *exec.Cmd
	conn net.Conn
	in   *bufio.Reader
}

// startRedis starts a server and waits until it answers, which is after it has read its RDB file.
func startRedis(o options, path string) (*redisServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // finds a free port
	if err != nil {
		return nil, err
	}
	address := listener.Addr().String()
	listener.Close()
	_, port, _ := strings.Cut(address, ":")
	r := &redisServer{cmd: exec.Command(path, "--bind", "127.0.0.1", "--port", port, "--dir", o.dir, "--save", "", "--appendonly", "no")}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if r.conn == nil {
			if r.conn, err = net.Dial("tcp", address); err != nil {
				continue
			}
			r.in = bufio.NewReader(r.conn)
		}
		answer, err := r.call("PING")
		if err != nil {
			break
		}
		if strings.HasPrefix(answer, "+PONG") {
			return r, nil
		}
	}
	r.stop()
	return nil, fmt.Errorf("no answer at %s", address)
}

// call sends a command and returns the first line of the answer.
func (r *redisServer) call(command string) (string, error) {
	if _, err := io.WriteString(r.conn, command+"\r\n"); err != nil {
		return "", err
	}
	return r.in.ReadString('\n')
}

func (r *redisServer) stop() {
	if r.conn != nil {
		r.conn.Close()
	}
	r.cmd.Process.Kill()
	r.cmd.Wait()
}

func measureRedis(o options, path string) (f redisFigure, err error) {
	r, err := startRedis(o, path)
	if err != nil {
		return f, err
	}
	defer func() { r.stop() }()
	if err := r.fill(o); err != nil {
		return f, err
	}
	if f.RSSBytesPerKey, err = r.residentPerKey(o); err != nil {
		return f, err
	}
	if answer, err := r.call("SAVE"); err != nil || !strings.HasPrefix(answer, "+OK") {
		return f, fmt.Errorf("SAVE: %q, %v", answer, err)
	}
	r.stop()
	start := time.Now()
	if r, err = startRedis(o, path); err != nil {
		r = &redisServer{cmd: exec.Command(path)}
		return f, err
	}
	f.LoadSeconds = time.Since(start).Seconds()
	if answer, err := r.call("DBSIZE"); err != nil || strings.TrimSpace(answer) != fmt.Sprintf(":%d", o.keys) {
		return f, fmt.Errorf("DBSIZE after a restart: %q, %v", answer, err)
	}
	f.LoadedRSSBytesPerKey, err = r.residentPerKey(o)
	return f, err
}

// fill writes all keys in pipelines of a thousand.
func (r *redisServer) fill(o options) error {
	const pipeline = 1000
	out := bufio.NewWriterSize(r.conn, 256<<10)
	key, value := make([]byte, keyBytes), make([]byte, o.valueBytes)
	for i := 0; i < o.keys; {
		n := min(pipeline, o.keys-i)
		for range n {
			keyOf(key, i)
			fillValue(value, i)
			fmt.Fprintf(out, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(key), key, len(value), value)
			i++
		}
		if err := out.Flush(); err != nil {
			return err
		}
		for range n {
			if answer, err := r.in.ReadString('\n'); err != nil || answer != "+OK\r\n" {
				return fmt.Errorf("SET: %q, %v", answer, err)
			}
		}
	}
	return nil
}

func (r *redisServer) residentPerKey(o options) (float64, error) {
	rss, err := residentBytes(r.cmd.Process.Pid)
	return rss / float64(o.keys), err
}
