package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The tests' binary is also an etcd member, as the command's is.
	if len(os.Args) == 3 && os.Args[1] == etcdNodeArgument {
		if err := runEtcdNode(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitError)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// nothingLeft fails if processes of this one still run, or files are left.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if fields[1] == fmt.Sprint(os.Getpid()) {
			t.Errorf("left running: %s", data)
		}
	}
}

// All systems that this machine has, from the command line to the files.
func TestSideBySide(t *testing.T) {
	if testing.Short() {
		t.Skip("starts nine processes")
	}
	dir, out := t.TempDir(), t.TempDir()
	systems := 3
	if _, err := exec.LookPath("redis-server"); err != nil {
		systems = 2
	}
	var stdout, stderr bytes.Buffer
	status := compare(t.Context(), []string{"-quick", "-callers", "4,16", "-keys", "250", "-rounds", "2", "-duration", "150ms", "-warm-up", "50ms", "-noise-max", "99",
		"-dir", dir, "-json", filepath.Join(out, "r.json"), "-plot", filepath.Join(out, "r.svg")}, &stdout, &stderr)
	if status != 0 {
		t.Fatalf("status %d\n%s\n%s", status, &stderr, &stdout)
	}
	nothingLeft(t, dir)
	data, err := os.ReadFile(filepath.Join(out, "r.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	if !r.Complete || !r.Verified || len(r.Systems) != systems || len(r.Measurements) != systems*2*2*2 || len(r.Ratios) != (systems-1)*4 {
		t.Errorf("complete %v, verified %v, %d systems, %d measurements, %d ratios\n%s", r.Complete, r.Verified, len(r.Systems), len(r.Measurements), len(r.Ratios), &stderr)
	}
	if (systems == 2) != strings.Contains(stderr.String(), "apt-get install redis-server") {
		t.Errorf("what is said of Redis:\n%s", &stderr)
	}
	for _, m := range r.Measurements {
		if m.Ops == 0 || m.Errors > 0 || m.CPU.Server <= 0 {
			t.Errorf("%+v", m)
		}
	}
	for _, s := range r.Systems {
		if s.Version == "" || s.Writes == "" || (s.Name == nameOstraka) != (s.Shards > 0) {
			t.Errorf("%+v", s)
		}
		if s.Syncs.Counted && !s.Syncs.onMajority() {
			t.Errorf("%s: %s", s.Name, s.Syncs)
		}
		if !strings.Contains(stdout.String(), s.Version) {
			t.Errorf("the version of %s is not in the output", s.Name)
		}
	}
	if picture, err := os.ReadFile(filepath.Join(out, "r.svg")); err != nil || !bytes.Contains(picture, []byte("</svg>")) {
		t.Errorf("picture: %v", err)
	}
}

// What an interruption finds is ended, and what was measured until then shown.
func TestInterruption(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes")
	}
	dir := t.TempDir()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var stdout bytes.Buffer
	stderr := &watched{text: "1/2, ", then: interrupt} // once one measurement is done
	status := compare(ctx, []string{"-quick", "-systems", "etcd", "-callers", "4", "-rounds", "1", "-dir", dir, "-noise-max", "99"}, &stdout, stderr)
	if status != exitError || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("status %d\n%s", status, stderr)
	}
	if got := stdout.String(); !strings.Contains(got, "INCOMPLETE: the run ended early, after 1 measurements") {
		t.Errorf("shown:\n%s", got)
	}
	nothingLeft(t, dir)
}

// watched calls a function once when a text was written.
type watched struct {
	bytes.Buffer
	text string
	then func()
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Buffer.Write(b)
	if bytes.Contains(w.Bytes(), []byte(w.text)) {
		w.then()
	}
	return n, err
}

func TestADeadNodeIsNoticed(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes")
	}
	dir := t.TempDir()
	c := &comparison{opts: &options{}}
	e := &etcd{connections: 1, endpointsOf: etcdAll}
	ctx, cancel := context.WithTimeout(t.Context(), startMax)
	defer cancel()
	if err := e.start(ctx, dir); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.stop(); err != nil {
			t.Error(err)
		}
	}()
	opts := options{keys: 10, valueSize: 8, duration: 50 * time.Millisecond}
	load := opts.load(cell{writes, 2}, 0)
	if _, err := c.drive(ctx, load, e); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(e.pids()[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-e.nodes[1].exited
	if _, err := c.drive(ctx, load, e); err == nil || !strings.Contains(err.Error(), "etcd n2 has ended (signal: killed)") {
		t.Errorf("driven with two nodes: %v", err)
	}
}

func TestWhatCannotBeMeasured(t *testing.T) {
	var stdout, stderr bytes.Buffer
	dir := t.TempDir()
	status := compare(t.Context(), []string{"-quick", "-systems", "redis", "-redis-server", "/nonexistent/redis-server", "-dir", dir}, &stdout, &stderr)
	if got := stderr.String(); status != exitError || !strings.Contains(got, "apt-get install redis-server") || !strings.Contains(got, "nothing to measure") {
		t.Errorf("without Redis: status %d\n%s", status, got)
	}
	nothingLeft(t, dir)

	stderr.Reset()
	if status := compare(t.Context(), []string{"-rounds", "x"}, &stdout, &stderr); status != exitUsage || !strings.Contains(stderr.String(), "-help") {
		t.Errorf("a wrong flag: status %d\n%s", status, &stderr)
	}

	var fs syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &fs); err != nil || fs.Type != tmpfsMagic {
		return // no memory to refuse
	}
	stderr.Reset()
	inMemory, err := os.MkdirTemp("/dev/shm", "")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(inMemory)
	if status := compare(t.Context(), []string{"-quick", "-dir", inMemory}, &stdout, &stderr); status != exitUsage || !strings.Contains(stderr.String(), "a sync costs nothing") {
		t.Errorf("in memory: status %d\n%s", status, &stderr)
	}
	nothingLeft(t, inMemory)
}

// Both systems lose their leader and take writes again.
func TestFailovers(t *testing.T) {
	if testing.Short() {
		t.Skip("starts six processes")
	}
	dir := t.TempDir()
	var stdout, stderr bytes.Buffer
	if status := compare(t.Context(), []string{"-dir", dir, "-failovers", "2"}, &stdout, &stderr); status != 0 {
		t.Fatalf("exit status %d: %s", status, &stderr)
	}
	for _, row := range []string{"| etcd | 2 |", "| Ostraka | 2 |"} {
		if !strings.Contains(stdout.String(), row) {
			t.Errorf("no %q in %s", row, &stdout)
		}
	}
	nothingLeft(t, dir)
}
