package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrPort: a port cannot be used.
var ErrPort = errors.New("port")

// Ports of a node, counted from its first.
const (
	portsPerNode = 10
	portHTTP     = 1
)

// Node is a node to run.
type Node struct {
	ID, DataDir string
	// Address and HTTP are the host:port of the gRPC port and of metrics.
	Address, HTTP string
}

// Plan lays out nodes n1, n2, … with directories below dir and ports from basePort on. Errors: ErrPort.
func Plan(dir string, nodes, basePort int) ([]Node, error) {
	last := basePort + portsPerNode*nodes - 1
	if nodes < 1 || basePort < 1 || last > 65535 {
		return nil, fmt.Errorf("%w: %d nodes from port %d on need ports up to %d", ErrPort, nodes, basePort, last)
	}
	plan := make([]Node, nodes)
	for i := range plan {
		id := fmt.Sprintf("n%d", i+1)
		first := basePort + portsPerNode*i
		plan[i] = Node{ID: id, DataDir: filepath.Join(dir, id), Address: loopback(first), HTTP: loopback(first + portHTTP)}
	}
	return plan, nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Endpoints returns the nodes' gRPC addresses.
func Endpoints(nodes []Node) []string {
	endpoints := make([]string, len(nodes))
	for i, n := range nodes {
		endpoints[i] = n.Address
	}
	return endpoints
}

// checkPorts finds a taken port before any process is started: the reason is then told once, and by name.
func checkPorts(nodes []Node) error {
	for _, n := range nodes {
		for _, address := range []string{n.Address, n.HTTP} {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return fmt.Errorf("%w: %s is needed by node %s: %w", ErrPort, address, n.ID, err)
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Children are the running nodes. Set the fields, Start once, Stop once. The methods may be called from any goroutine.
//
// Goroutines: one that starts the processes and stays until all have ended (see Start), and two for each process, that
// wait for its end and copy its output. Stop joins them all.
type Children struct {
	Executable string
	// Args are given to every node.
	Args []string
	// Log receives what the nodes write, line by line, with the node's name before it.
	Log io.Writer

	mu sync.Mutex
	// running holds the processes that have not ended, by node id.
	running map[string]*exec.Cmd
	started []NodeLine

	log     sync.Mutex
	ended   chan Ended
	waiting sync.WaitGroup
	nodes   []Node
	// allRun ends with the first process that does; its cause says which.
	allRun   context.Context
	oneEnded context.CancelCauseFunc
}

// Ended tells that a node's process has ended, and how.
type Ended struct {
	Node  Node
	State string
}

// NodeLine is a started node, for people and scripts.
type NodeLine struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	HTTP    string `json:"http"`
	DataDir string `json:"data_dir"`
	PID     int    `json:"pid"`
}

// Start starts a process for each node. Errors: ErrPort, or those of starting; nothing runs then.
func (c *Children) Start(nodes []Node) error {
	if err := checkPorts(nodes); err != nil {
		return err
	}
	c.nodes = nodes
	c.running = make(map[string]*exec.Cmd)
	c.ended = make(chan Ended, len(nodes)) // never full: each node ends once
	c.allRun, c.oneEnded = context.WithCancelCause(context.Background())
	outcome := make(chan error)
	allEnded := make(chan struct{})
	go func() {
		// Linux tells a child of its parent's death when the thread that started it ends. This one is kept until
		// there is no child left; a thread of the runtime's choice could end at any time, and take the nodes along.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		for _, n := range nodes {
			if err = c.start(n); err != nil {
				break
			}
		}
		outcome <- err
		<-allEnded
	}()
	err := <-outcome
	go func() {
		c.waiting.Wait()
		close(allEnded)
	}()
	if err != nil {
		c.Kill()
		c.waiting.Wait()
	}
	return err
}

// Command is the command line of a node.
func (c *Children) Command(n Node) []string {
	line := []string{c.Executable, "server", "--id", n.ID, "--data-dir", n.DataDir, "--listen", n.Address, "--http-listen", n.HTTP}
	if others := c.others(n); others != "" {
		line = append(line, "--peers", others)
	}
	return append(line, c.Args...)
}

// others are the addresses of the other nodes: a kept cluster may come back on other ports, and its nodes find each
// other by these.
func (c *Children) others(n Node) string {
	others := slices.DeleteFunc(Endpoints(c.nodes), func(address string) bool { return address == n.Address })
	return strings.Join(others, ",")
}

func (c *Children) start(n Node) error {
	line := c.Command(n)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = withoutSettings(os.Environ())
	cmd.SysProcAttr = childAttributes()
	out := &prefixer{prefix: []byte("[" + n.ID + "] "), to: c.Log, mu: &c.log}
	cmd.Stdout, cmd.Stderr = out, out // the same writer: exec then uses one pipe and one goroutine
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", n.ID, err)
	}
	c.mu.Lock()
	c.running[n.ID] = cmd
	c.started = append(c.started, NodeLine{ID: n.ID, Address: n.Address, HTTP: n.HTTP, DataDir: n.DataDir, PID: cmd.Process.Pid})
	c.mu.Unlock()
	c.waiting.Go(func() {
		cmd.Wait() // how it ended is in ProcessState
		out.flush()
		c.mu.Lock()
		delete(c.running, n.ID)
		c.mu.Unlock()
		state := cmd.ProcessState.String()
		c.oneEnded(fmt.Errorf("node %s ended: %s", n.ID, state))
		c.ended <- Ended{Node: n, State: state}
	})
	return nil
}

// withoutSettings drops the settings of this process: OSTRAKA_DATA_DIR is dev's, not that of each node.
func withoutSettings(environment []string) []string {
	return slices.DeleteFunc(environment, func(v string) bool { return strings.HasPrefix(v, "OSTRAKA_") })
}

// Ended delivers nodes whose processes have ended.
func (c *Children) Ended() <-chan Ended { return c.ended }

// WhileAllRun returns a context that ends, with a cause that says why, when a process does.
func (c *Children) WhileAllRun(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.allRun, func() { cancel(context.Cause(c.allRun)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// Running returns how many processes have not ended.
func (c *Children) Running() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.running)
}

// Lines returns the nodes that were started.
func (c *Children) Lines() []NodeLine {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.started)
}

// Stop asks all processes to end, kills those that have not after the grace, and returns their names when all have
// ended.
func (c *Children) Stop(grace time.Duration) (killed []string) {
	c.signal(syscall.SIGTERM)
	all := make(chan struct{})
	go func() {
		c.waiting.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-time.After(grace):
		killed = c.signal(syscall.SIGKILL)
		<-all
	}
	return killed
}

// Kill ends all processes at once.
func (c *Children) Kill() { c.signal(syscall.SIGKILL) }

func (c *Children) signal(s syscall.Signal) (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, cmd := range c.running {
		if cmd.Process.Signal(s) == nil { // else it has ended, and nobody has noted it yet
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// prefixer puts a prefix before every line.
type prefixer struct {
	prefix []byte
	to     io.Writer
	// mu guards to, which the prefixers of all nodes share.
	mu   *sync.Mutex
	rest []byte
}

// lineMax is where a line that does not end is cut.
const lineMax = 64 << 10

func (p *prefixer) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		end := bytes.IndexByte(p.rest, '\n')
		switch {
		case end >= 0:
			p.line(p.rest[:end])
			p.rest = p.rest[end+1:]
			continue
		case len(p.rest) > lineMax:
			p.line(p.rest)
			p.rest = p.rest[:0]
		}
		return len(b), nil // whatever became of it: a closed terminal must not stop the node
	}
}

func (p *prefixer) flush() {
	if len(p.rest) > 0 {
		p.line(p.rest)
		p.rest = nil
	}
}

func (p *prefixer) line(text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.to, "%s%s\n", p.prefix, text)
}
