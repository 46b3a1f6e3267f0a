// Package cluster runs clusters of real ostraka processes on loopback, for tests and benchmarks that mean
// what they say: a killed node is a killed process, a paused one a stopped one, and its disk is a directory.
//
// It owns ports, directories and processes. It knows of Ostraka only what a user does: the command line and the
// client library. A Cluster is used by one goroutine; its processes' Kill, Pause and Resume by any.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ostraka-db/ostraka/client"
)

// Options describe a cluster. Zero values take the defaults named.
type Options struct {
	// Binary is the ostraka executable.
	Binary string
	// Dir holds a data directory and a log file for each node.
	Dir string
	// Nodes is how many; default 3. They are called n1, n2, ….
	Nodes int
	// Shards and Replicas of the bootstrap; 0: the binary's defaults.
	Shards, Replicas int
	// ServerArgs are given to every `ostraka server`.
	ServerArgs []string
	// HTTP gives every node an HTTP listener.
	HTTP bool
	// Hosts are the nodes' IP addresses, on which they use the same two ports; nil: loopback, each with ports of its own.
	Hosts []string
	// Wrap returns a command that runs a node's process, such as one that puts it into a network namespace; it must
	// become that process, since that is what is killed. nil: none.
	Wrap func(id string) []string
}

// Cluster is a set of processes that were made one cluster.
type Cluster struct {
	opts  Options
	nodes []*Process
}

// Start runs the processes and bootstraps them. On an error nothing is left running.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	c, err := Blank(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := c.Bootstrap(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Blank runs the processes without making them a cluster.
func Blank(ctx context.Context, opts Options) (*Cluster, error) {
	if opts.Nodes == 0 {
		opts.Nodes = 3
	}
	addresses, err := opts.addresses()
	if err != nil {
		return nil, err
	}
	c := &Cluster{opts: opts}
	for i := range opts.Nodes {
		id := fmt.Sprintf("n%d", i+1)
		p := &Process{ID: id, Address: addresses[2*i], binary: opts.Binary, args: opts.ServerArgs,
			DataDir: filepath.Join(opts.Dir, id), LogPath: filepath.Join(opts.Dir, id+".log")}
		if opts.HTTP {
			p.HTTPAddress = addresses[2*i+1]
		}
		if opts.Wrap != nil {
			p.wrap = opts.Wrap(id)
		}
		if err := p.Start(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.nodes = append(c.nodes, p)
	}
	for _, p := range c.nodes {
		if err := p.AwaitListening(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// hostPort is the port of nodes that have a host of their own; the next one is that of HTTP.
const hostPort = 7400

// addresses returns two for each node.
func (o *Options) addresses() ([]string, error) {
	if o.Hosts == nil {
		return FreeAddresses(2 * o.Nodes)
	}
	if len(o.Hosts) != o.Nodes {
		return nil, fmt.Errorf("%d hosts for %d nodes", len(o.Hosts), o.Nodes)
	}
	var addresses []string
	for _, host := range o.Hosts {
		addresses = append(addresses, fmt.Sprintf("%s:%d", host, hostPort), fmt.Sprintf("%s:%d", host, hostPort+1))
	}
	return addresses, nil
}

// FreeAddresses returns loopback addresses that were free a moment ago. All are held at once, so that they differ.
func FreeAddresses(n int) ([]string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}

// FreeAddress returns one loopback address that was free a moment ago.
func FreeAddress() (string, error) {
	addresses, err := FreeAddresses(1)
	if err != nil {
		return "", err
	}
	return addresses[0], nil
}

// Bootstrap makes the running processes one cluster and waits until every shard has a leader.
func (c *Cluster) Bootstrap(ctx context.Context) error {
	spec := client.BootstrapSpec{Shards: c.opts.Shards, Replicas: c.opts.Replicas}
	for _, p := range c.nodes {
		spec.Nodes = append(spec.Nodes, client.NodeSpec{ID: p.ID, Address: p.Address})
	}
	admin, err := client.NewAdmin(c.Endpoints())
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.Bootstrap(ctx, spec); err != nil {
		return err
	}
	_, err = c.AwaitStatus(ctx, Led)
	return err
}

// Led holds for a status in which every shard has a leader.
func Led(s *client.Status) bool {
	return len(s.Shards) > 0 && !slices.ContainsFunc(s.Shards, func(sh client.ShardStatus) bool { return sh.Leader == "" })
}

// Converged holds for a status in which every replica of every shard was reached, has applied the same index
// and has the same contents.
func Converged(s *client.Status) bool {
	if !Led(s) {
		return false
	}
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			first := sh.Replicas[0]
			if r.Role == "" || r.AppliedIndex != first.AppliedIndex || r.Checksum != first.Checksum || r.Keys != first.Keys {
				return false
			}
		}
	}
	return true
}

// Healthy holds for a status in which every node is up, every shard has a leader, and all replicas run, vote and are whole,
// those of the cluster's own state too.
func Healthy(s *client.Status) bool {
	if !Led(s) {
		return false
	}
	for _, n := range s.Nodes {
		if n.State != "up" || n.MetaReplica != "ok" {
			return false
		}
	}
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			if !r.Voter || r.State != "ok" || r.Role != "leader" && r.Role != "follower" {
				return false
			}
		}
	}
	return true
}

// AwaitStatus asks for the cluster's status until it is as wanted.
func (c *Cluster) AwaitStatus(ctx context.Context, wanted func(*client.Status) bool) (*client.Status, error) {
	admin, err := client.NewAdmin(c.Endpoints())
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	var last *client.Status
	var lastErr error
	for {
		asked, cancel := context.WithTimeout(ctx, 8*time.Second)
		s, err := admin.Status(asked)
		cancel()
		if err == nil {
			last = s
			if wanted(s) {
				return s, nil
			}
		}
		lastErr = err
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("the cluster's status did not become as wanted: %w (last answer: %s, %w)",
				ctx.Err(), describe(last), lastErr)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func describe(s *client.Status) string {
	if s == nil {
		return "none"
	}
	var b strings.Builder
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, "%s %s; ", n.ID, n.State)
	}
	for _, sh := range s.Shards {
		fmt.Fprintf(&b, "shard %d led by %q:", sh.ID, sh.Leader)
		for _, r := range sh.Replicas {
			fmt.Fprintf(&b, " %s %s applied %d keys %d sum %x", r.Node, r.Role, r.AppliedIndex, r.Keys, r.Checksum)
		}
		b.WriteString("; ")
	}
	return b.String()
}

// Nodes returns the processes in the order of their names.
func (c *Cluster) Nodes() []*Process { return c.nodes }

// Node returns the process with that id, or nil.
func (c *Cluster) Node(id string) *Process {
	for _, p := range c.nodes {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// Endpoints returns every node's address.
func (c *Cluster) Endpoints() []string {
	endpoints := make([]string, len(c.nodes))
	for i, p := range c.nodes {
		endpoints[i] = p.Address
	}
	return endpoints
}

// MostLeading returns the node that leads most shards, and how many.
func MostLeading(s *client.Status) (id string, shards int) {
	count := make(map[string]int)
	for _, sh := range s.Shards {
		count[sh.Leader]++
	}
	for _, n := range s.Nodes { // in order, so that ties are settled alike
		if count[n.ID] > shards {
			id, shards = n.ID, count[n.ID]
		}
	}
	return id, shards
}

// Close kills what still runs.
func (c *Cluster) Close() error {
	var failed error
	for _, p := range c.nodes {
		failed = errors.Join(failed, p.Kill())
	}
	return failed
}

// Logs returns the end of every node's log, for a failed test's report.
func (c *Cluster) Logs(bytesMax int64) string {
	var b strings.Builder
	for _, p := range c.nodes {
		fmt.Fprintf(&b, "--- %s (%s)\n%s\n", p.ID, p.Address, tail(p.LogPath, bytesMax))
	}
	return b.String()
}

func tail(path string, bytesMax int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		f.Seek(max(0, size-bytesMax), io.SeekStart)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
