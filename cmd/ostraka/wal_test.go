package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ostraka-db/ostraka/raftfsm/wal"
)

// writeLog makes a node's log with one replica's entries, and returns the data directory.
func writeLog(t *testing.T) string {
	t.Helper()
	data := t.TempDir()
	dir := filepath.Join(data, "wal")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := wal.Open(wal.Config{Dir: dir, SegmentBytes: 64 << 10, Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	r := l.Replica(wal.ID{Shard: 2, Replica: 7})
	if err := r.SetRecord("term", []byte("\xff3")); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(3, func(i int) wal.Entry { return wal.Entry{Index: uint64(i + 1), Term: 3, Data: []byte("hello")} }); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return data
}

func runWAL(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var stdout, stderr strings.Builder
	a := &app{in: strings.NewReader(""), out: &stdout, err: &stderr, lookupEnv: func(string) (string, bool) { return "", false }}
	code = a.run(t.Context(), append([]string{"wal"}, args...))
	return code, stdout.String(), stderr.String()
}

func TestWALCommands(t *testing.T) {
	dir := writeLog(t)
	for _, c := range []struct {
		args string
		code int
		out  []string // contained in stdout
		not  string
	}{
		{"verify DIR", exitDone, []string{"SHARD  REPLICA  FIRST  LAST  FRAMES  SEGMENTS  LIVE   DEAD  STATE", "2      7        1      3     4       1         288 B  0 B   ok", "; closed"}, "ROT"},
		{"verify DIR/wal --json", exitDone, []string{`"rotten":false`, `"replica":7,"first":1,"last":3,"frames":4,"live_bytes":288,"dead_bytes":0,"segments":1`, `"closed":true`}, "damage"},
		{"dump DIR", exitDone, []string{"mark", "summary", "seal", "record\t2/7 #1\tindex 0 term 0 term\t2 bytes", "entry\t2/7 #4\tindex 3 term 3\t5 bytes"}, "hello"},
		{"dump DIR --kind entry --from 2 --to 2 --data", exitDone, []string{"index 2 term 3\t5 bytes\t\"hello\""}, "index 3"},
		{"dump DIR --shard 3", exitDone, nil, "entry"},
		{"dump DIR --replica 7 --kind record --json --data", exitDone, []string{`"kind":"record"`, `"data_base64":"/zM="`}, "entry"},
		{"verify DIR/meta", exitError, nil, ""},
		{"verify", exitUsage, nil, ""},
	} {
		code, out, errOut := runWAL(t, strings.Fields(strings.ReplaceAll(c.args, "DIR", dir))...)
		if code != c.code {
			t.Errorf("%s: code %d, %s", c.args, code, errOut)
		}
		for _, want := range c.out {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q is not in\n%s", c.args, want, out)
			}
		}
		if c.not != "" && strings.Contains(out, c.not) {
			t.Errorf("%s: %q is in\n%s", c.args, c.not, out)
		}
	}
}

func TestWALVerifyFindsRot(t *testing.T) {
	dir := writeLog(t)
	segments, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), "hello")
	b[at] ^= 1
	if err := os.WriteFile(segments[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errOut := runWAL(t, "verify", dir)
	if code != exitError || !strings.Contains(out, "ROT: "+segments[0]) || !strings.Contains(errOut, "docs/operations.md") {
		t.Errorf("code %d\n%s\n%s", code, out, errOut)
	}
	if code, out, _ = runWAL(t, "verify", dir, "--json"); code != exitError || !strings.Contains(out, `"rotten":true`) {
		t.Errorf("code %d\n%s", code, out)
	}
}

// A running node's log can be read; its user is told.
func TestWALOfARunningNode(t *testing.T) {
	dir := writeLog(t)
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, held := range []bool{false, true} {
		if held {
			if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
				t.Fatal(err)
			}
		}
		for _, args := range [][]string{{"verify", dir}, {"dump", filepath.Join(dir, "wal")}} {
			code, _, errOut := runWAL(t, args...)
			if code != exitDone || strings.Contains(errOut, "holds this directory") != held {
				t.Errorf("%v, held %v: code %d, %q", args, held, code, errOut)
			}
		}
	}
}
