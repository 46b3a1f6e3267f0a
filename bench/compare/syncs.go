package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// syncCount tells how often a system's nodes synced while one caller wrote key after key. It is seen from outside and
// in the same way for all: by strace, in the system calls of their processes.
type syncCount struct {
	// Counted is false where strace cannot: Why says it.
	Counted bool   `json:"counted"`
	Why     string `json:"why,omitempty"`
	// Writes were made, each after the answer to the one before; PerNode is each node's syncs meanwhile.
	Writes  int   `json:"writes,omitempty"`
	PerNode []int `json:"per_node,omitempty"`
}

// onMajority reports whether there were enough syncs for each write to have been on a majority when it was answered. It
// need not be the same majority each time, and a node that is behind takes two writes with one sync; but each answer waited
// for that many syncs which had begun after its write, and a node's further syncs stand for nobody else's.
func (c syncCount) onMajority() bool {
	enough := 0
	for _, n := range c.PerNode {
		enough += min(n, c.Writes)
	}
	return enough >= majority*c.Writes
}

// String says what was seen.
func (c syncCount) String() string {
	if !c.Counted {
		return "not counted: " + c.Why
	}
	var perNode []string
	for _, n := range c.PerNode {
		perNode = append(perNode, strconv.Itoa(n))
	}
	seen := fmt.Sprintf("during %d writes, one after the other, its nodes synced %s times", c.Writes, strings.Join(perNode, ", "))
	if !c.onMajority() {
		seen += ": NOT enough for each write to be on a majority's disks"
	}
	return seen
}

const (
	// syncWrites are made while syncs are counted.
	syncWrites = 20
	// syncCalls are the system calls that count.
	syncCalls = "fsync,fdatasync,sync_file_range,msync"
	// straceMax is how long strace may take to attach.
	straceMax = 10 * time.Second
)

// countSyncs writes keys one after the other and counts. That strace is not there or not allowed is no error.
func countSyncs(ctx context.Context, s system, opts *options, dir string) (syncCount, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return syncCount{Why: "strace is not installed"}, nil
	}
	key, value := [][]byte{bytes.Repeat([]byte("0"), keySize)}, [][]byte{make([]byte, opts.valueSize)}
	write := func() error {
		_, err := s.target().Write(ctx, key, value)
		return err
	}
	if err := write(); err != nil { // the connection is there from here on, so that what follows is writes alone
		return syncCount{}, err
	}
	var traces children
	defer func() { _ = traces.stop() }()
	pids := s.pids()
	outputs := make([]string, len(pids))
	for i, pid := range pids {
		outputs[i] = filepath.Join(dir, fmt.Sprintf("syncs-%d", i+1))
		c, err := startChild("strace", dir, filepath.Join(dir, "strace.log"), strace,
			"-f", "-e", "trace="+syncCalls, "-e", "signal=none", "-o", outputs[i], "-p", strconv.Itoa(pid))
		if err != nil {
			return syncCount{}, err
		}
		traces = append(traces, c)
	}
	attached, cancel := context.WithTimeout(ctx, straceMax)
	defer cancel()
	err = traces.await(attached, "strace attaches", func(context.Context) (bool, error) { return traced(pids) })
	if err != nil {
		if ctx.Err() != nil {
			return syncCount{}, err
		}
		return syncCount{Why: "strace could not attach: " + firstLine(err.Error())}, nil
	}
	for range syncWrites {
		if err := write(); err != nil {
			return syncCount{}, err
		}
	}
	if err := traces.stop(); err != nil { // what it has seen is in its file then
		return syncCount{}, err
	}
	count := syncCount{Counted: true, Writes: syncWrites}
	for _, path := range outputs {
		data, err := os.ReadFile(path)
		if err != nil {
			return syncCount{}, err
		}
		count.PerNode = append(count.PerNode, countCalls(data))
	}
	return count, nil
}

// traced reports whether every thread of the processes has a tracer.
func traced(pids []int) (bool, error) {
	for _, pid := range pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(threads) == 0 {
			return false, errors.Join(err, syscall.ESRCH)
		}
		for _, path := range threads {
			status, err := os.ReadFile(path)
			if err != nil || bytes.Contains(status, []byte("\nTracerPid:\t0\n")) {
				return false, err
			}
		}
	}
	return true, nil
}

// countCalls counts the calls in strace's output. A call that another thread interrupted comes on two lines, of which the
// second begins with "<...".
func countCalls(trace []byte) int {
	n := 0
	for line := range bytes.Lines(trace) {
		_, call, ok := bytes.Cut(line, []byte(" ")) // after the thread's id
		call = bytes.TrimLeft(call, " ")
		if !ok || bytes.HasPrefix(call, []byte("<...")) {
			continue
		}
		name, _, ok := bytes.Cut(call, []byte("("))
		if ok && strings.Contains(","+syncCalls+",", ","+string(name)+",") {
			n++
		}
	}
	return n
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
