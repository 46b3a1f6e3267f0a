package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	// stopMax is how long a node may take to end after SIGTERM.
	stopMax = 5 * time.Second
	// logTailBytes of a dead node's log go into the error.
	logTailBytes = 2000
	// pollEvery is the pause between two looks at a condition.
	pollEvery = 20 * time.Millisecond
)

// child is a node's process. It dies with this one.
type child struct {
	name    string
	logPath string
	cmd     *exec.Cmd
	// exited is closed once the process has ended.
	exited chan struct{}
}

// startChild runs a command with its output in a file.
func startChild(name, dir, logPath, command string, args ...string) (*child, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	c := &child{name: name, logPath: logPath, cmd: exec.Command(command, args...), exited: make(chan struct{})}
	c.cmd.Dir = dir
	c.cmd.Stdout, c.cmd.Stderr = log, log
	// A group of its own: a Ctrl-C at the terminal reaches it only through us, and its forks can be counted with it.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() { // ends with the process
		_ = c.cmd.Wait() // its end is what matters, not how
		close(c.exited)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// alive returns an error with the end of the log if the process has ended.
func (c *child) alive() error {
	select {
	case <-c.exited:
		return fmt.Errorf("%s has ended (%s): %s", c.name, c.cmd.ProcessState, tail(c.logPath))
	default:
		return nil
	}
}

// stop asks the process to end, and makes it and its forks.
func (c *child) stop() error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.exited:
	case <-time.After(stopMax):
	}
	if err := syscall.Kill(-c.pid(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	<-c.exited
	return nil
}

// children are a system's nodes.
type children []*child

func (all children) pids() []int {
	pids := make([]int, len(all))
	for i, c := range all {
		pids[i] = c.pid()
	}
	return pids
}

func (all children) alive() error {
	for _, c := range all {
		if err := c.alive(); err != nil {
			return err
		}
	}
	return nil
}

func (all children) stop() error {
	var failed error
	for _, c := range all {
		failed = errors.Join(failed, c.stop())
	}
	return failed
}

// await calls holds until it is true, a node has ended, or ctx has. what names the condition for the error.
func (all children) await(ctx context.Context, what string, holds func(context.Context) (bool, error)) error {
	for {
		ok, err := holds(ctx)
		if ok {
			return nil
		}
		if dead := all.alive(); dead != nil {
			return dead
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %w)", what, ctx.Err(), orNone(err))
		}
	}
}

var errNone = errors.New("no error")

func orNone(err error) error {
	if err == nil {
		return errNone
	}
	return err
}

// tail returns the end of a file, or why it cannot be read.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-logTailBytes), io.SeekStart) // the whole file then
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
