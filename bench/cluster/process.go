package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Process is one node: `ostraka server` with a data directory of its own.
type Process struct {
	ID      string
	DataDir string
	// LogPath is the file that the process's output is appended to.
	LogPath string
	// Address and HTTPAddress may be changed between a Kill and a Start; HTTPAddress may be empty.
	Address     string
	HTTPAddress string
	// Peers is given as --peers where it is set.
	Peers string

	binary string
	args   []string
	wrap   []string // see Options.Wrap

	mu sync.Mutex
	// cmd is set while the process runs; exited is closed once it has ended.
	cmd    *exec.Cmd
	exited chan struct{}
	state  *os.ProcessState
}

// ErrRunning: the process was to be started, but runs.
var ErrRunning = errors.New("the process is running")

// Start runs the process; its output is appended to a log file. It does not wait until the node listens. The
// process dies with its parent.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return fmt.Errorf("%w: %s", ErrRunning, p.ID)
	}
	log, err := os.OpenFile(p.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own
	args := []string{"server", "--id", p.ID, "--data-dir", p.DataDir, "--listen", p.Address}
	if p.HTTPAddress != "" {
		args = append(args, "--http-listen", p.HTTPAddress)
	}
	if p.Peers != "" {
		args = append(args, "--peers", p.Peers)
	}
	line := slices.Concat(p.wrap, []string{p.binary}, args, p.args)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own, so that a Ctrl-C at the terminal reaches it only through whoever started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	p.cmd, p.exited, p.state = cmd, exited, nil
	go func() { // ends with the process
		cmd.Wait()
		p.mu.Lock()
		p.cmd, p.state = nil, cmd.ProcessState
		p.mu.Unlock()
		close(exited)
	}()
	return nil
}

// AwaitListening waits until the node's port takes connections.
func (p *Process) AwaitListening(ctx context.Context) error {
	for {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", p.Address)
		if err == nil {
			return conn.Close()
		}
		if !p.Running() {
			return fmt.Errorf("%s ended before it listened: %s", p.ID, tail(p.LogPath, 2000))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen: %w: %s", p.ID, err, tail(p.LogPath, 2000))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Running reports whether the process has been started and has not ended.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd != nil
}

// Kill ends the process with SIGKILL, as kill -9 does, and waits for its end. A process that does not run is fine.
func (p *Process) Kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	p.wait()
	return nil
}

// Terminate asks the process to end with SIGTERM and returns its exit status.
func (p *Process) Terminate(ctx context.Context) (int, error) {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	p.mu.Lock()
	exited := p.exited
	p.mu.Unlock()
	select {
	case <-exited:
		return p.state.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s goes on after SIGTERM: %w", p.ID, ctx.Err())
	}
}

// Pause stops the process with SIGSTOP; Resume lets it go on.
func (p *Process) Pause() error  { return p.signal(syscall.SIGSTOP) }
func (p *Process) Resume() error { return p.signal(syscall.SIGCONT) }

// Pid returns the process's id; 0 if it does not run.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

func (p *Process) signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (p *Process) wait() {
	p.mu.Lock()
	exited := p.exited
	p.mu.Unlock()
	if exited != nil {
		<-exited
	}
}
