package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm/disk"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// testCluster is a few Hosts in one process, with the real transport over pipes and the real stores in memory,
// so that it runs in a testing/synctest bubble: time is virtual, and a network can be cut between any two.
//
// raft draws its election timeouts from the global random source, so a test fixes faults, not an exact run.
type testCluster struct {
	t      *testing.T
	shards []shard.ID
	voters int // of len(nodes); the rest are non-voters
	nodes  []*testNode

	linkBytes atomic.Int64 // what a stream that is dialed sends a second; 0: any number

	mu  sync.Mutex
	cut map[[2]shard.NodeID]bool // from, to
	// conns are the open pipes by dialling and listening node, to be broken by a cut.
	conns map[net.Conn][2]shard.NodeID
}

// testNode is one node. Its memory and files outlive a crash, as a disk would.
type testNode struct {
	c      *testCluster
	id     shard.NodeID
	memory *storage.Memory
	files  *disk.Mem
	// slow is files with syncs that take their time; made anew at each open.
	slow      *slowDisk
	syncTakes func() time.Duration
	clock     Clock
	// lives counts starts; while dying, from before what is left is taken, it is negative.
	lives  atomic.Int32
	adjust func(*Config)

	mu    sync.Mutex
	fatal error

	listener  *bufconn.Listener
	server    *grpc.Server
	transport *transport.Transport
	disks     *storage.Node
	host      *Host
	// answering is host for the transport's goroutines.
	answering atomic.Pointer[Host]
}

// raftServer is the Raft service of a test node: only the streams.
type raftServer struct {
	ostrakapb.UnimplementedRaftServer
	t *transport.Transport
}

func (s *raftServer) Exchange(stream ostrakapb.Raft_ExchangeServer) error {
	return s.t.Exchange(stream)
}
func (s *raftServer) InstallSnapshot(stream ostrakapb.Raft_InstallSnapshotServer) error {
	return s.t.InstallSnapshot(stream)
}

func newTestCluster(t *testing.T, nodes, voters, shards int, adjust func(*Config)) *testCluster {
	t.Helper()
	return newTestClusterWith(t, nodes, voters, shards, adjust, func(*testNode) {})
}

// newTestClusterWith has its nodes prepared before they are opened.
func newTestClusterWith(t *testing.T, nodes, voters, shards int, adjust func(*Config), prepare func(*testNode)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, voters: voters, cut: make(map[[2]shard.NodeID]bool), conns: make(map[net.Conn][2]shard.NodeID)}
	for i := range shards {
		c.shards = append(c.shards, shard.ID(i+1))
	}
	for i := range nodes {
		n := &testNode{c: c, id: shard.NodeID(fmt.Sprintf("n%d", i+1)), memory: storage.NewMemory(), files: disk.NewMem(), adjust: adjust}
		prepare(n)
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		n.open()
		for _, id := range c.shards {
			if err := n.host.Bootstrap(id, c.replicaOn(id, n.id), c.members(id)); err != nil {
				t.Fatal(err)
			}
		}
		n.start()
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.stop()
		}
	})
	return c
}

// replicaOn numbers replicas: shard 3 on n2 is 302.
func (c *testCluster) replicaOn(id shard.ID, node shard.NodeID) shard.ReplicaID {
	var n int
	fmt.Sscanf(string(node), "n%d", &n)
	return shard.ReplicaID(int(id)*100 + n)
}

func (c *testCluster) members(id shard.ID) []Member {
	var members []Member
	for i, n := range c.nodes {
		members = append(members, Member{Node: n.id, Replica: c.replicaOn(id, n.id), Voter: i < c.voters})
	}
	return members
}

// slotsOf gives each shard an equal share.
func (c *testCluster) slotsOf(id shard.ID) []shard.Range {
	return []shard.Range{shard.FreshRanges(len(c.shards))[id-1]}
}

func (n *testNode) open() {
	t := n.c.t
	t.Helper()
	logger := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})).With("node", n.id)
	fatal := func(err error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.fatal = errors.Join(n.fatal, err)
	}
	n.lives.Store(max(n.lives.Load(), -n.lives.Load()) + 1)
	var err error
	n.slow = newSlowDisk(n.files, n.syncTakes)
	n.disks, err = storage.Open(storage.Config{Dir: "/data", FS: n.slow, Memory: n.memory, SegmentBytes: 64 << 10, Fatal: fatal, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	n.transport, err = transport.New(transport.Config{Self: n.id, ClusterID: func() string { return "test" }, Incarnation: func() uint64 { return 1 },
		Resolve: func(id shard.NodeID) (string, bool) { return string(id), true },
		Confirmer: func(items []transport.ConfirmItem) []bool {
			if h := n.answering.Load(); h != nil {
				return h.AnswerConfirm(items)
			}
			return make([]bool, len(items))
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return n.c.dial(ctx, n.id, shard.NodeID(address))
		},
		Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Node: n.id, Storage: n.disks, Transport: n.transport, Clock: n.clock, Logger: logger, Fatal: fatal}
	if n.adjust != nil {
		n.adjust(&cfg)
	}
	if n.host, err = NewHost(cfg); err != nil {
		t.Fatal(err)
	}
	n.answering.Store(n.host)
	listener := bufconn.Listen(1 << 20)
	n.c.mu.Lock()
	n.listener = listener
	n.c.mu.Unlock()
	n.server = grpc.NewServer(grpc.MaxRecvMsgSize(transport.MessageBytesMax))
	ostrakapb.RegisterRaftServer(n.server, &raftServer{t: n.transport})
	go n.server.Serve(listener)
}

func (n *testNode) start() {
	n.c.t.Helper()
	for _, id := range n.c.shards {
		if _, err := n.host.StartGroup(GroupSpec{Shard: id, Replica: n.c.replicaOn(id, n.id), Ranges: n.c.slotsOf(id)}); err != nil {
			n.c.t.Fatal(err)
		}
	}
}

// stop ends the node in order, if it runs.
func (n *testNode) stop() {
	if n.host == nil {
		return
	}
	n.slow.release() // a test that fails must end too
	if err := n.host.Close(); err != nil {
		n.c.t.Errorf("%s: %v", n.id, err)
	}
	if err := n.transport.Close(); err != nil {
		n.c.t.Errorf("%s: %v", n.id, err)
	}
	n.server.Stop()
	if err := n.disks.Close(); err != nil {
		n.c.t.Errorf("%s: %v", n.id, err)
	}
	n.host = nil
}

// kill ends the node as SIGKILL does: what it wrote is in the kernel's memory.
func (n *testNode) kill() { n.die(n.files.Clone) }

// cutPower ends the node as a power cut does: only what was synced is left.
func (n *testNode) cutPower() { n.die(n.files.Crash) }

func (n *testNode) die(left func() *disk.Mem) {
	n.c.isolate(n.id)              // nothing leaves it any more, so the moment of death is the next line
	n.lives.Store(-n.lives.Load()) // what it still answers to callers in this process does not count
	n.files, n.memory = left(), n.memory.Clone()
	n.slow.release()
	n.stop()
	n.c.rejoin(n.id)
}

func (n *testNode) restart() {
	n.c.t.Helper()
	n.open()
	n.start()
}

func (n *testNode) group(id shard.ID) *Group {
	g, ok := n.host.Group(id)
	if !ok {
		n.c.t.Fatalf("%s holds no replica of shard %d", n.id, id)
	}
	return g
}

func (n *testNode) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fatal
}

// dial connects two nodes unless the network between them is cut, either way.
func (c *testCluster) dial(ctx context.Context, from, to shard.NodeID) (net.Conn, error) {
	c.mu.Lock()
	var listener *bufconn.Listener
	for _, n := range c.nodes {
		if n.id == to {
			listener = n.listener
		}
	}
	isCut := c.cut[[2]shard.NodeID{from, to}] || c.cut[[2]shard.NodeID{to, from}]
	c.mu.Unlock()
	if isCut || listener == nil {
		return nil, errors.New("no route")
	}
	conn, err := listener.DialContext(ctx)
	if err != nil { // it is closed: as a kernel says of a process that has ended
		return nil, fmt.Errorf("%w: %w", syscall.ECONNREFUSED, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns[conn] = [2]shard.NodeID{from, to}
	if limit := int(c.linkBytes.Load()); limit > 0 {
		return slowConn{conn, limit, make(chan struct{}, 1)}, nil
	}
	return conn, nil
}

// isolate cuts a node off from all others; heal ends all cuts.
func (c *testCluster) isolate(node shard.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.id != node {
			c.cut[[2]shard.NodeID{node, n.id}] = true
		}
	}
	for conn, ends := range c.conns {
		if ends[0] == node || ends[1] == node {
			conn.Close()
			delete(c.conns, conn)
		}
	}
}

// rejoin ends the cuts around a node.
func (c *testCluster) rejoin(node shard.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ends := range c.cut {
		if ends[0] == node || ends[1] == node {
			delete(c.cut, ends)
		}
	}
}

func (c *testCluster) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.cut)
}

// eventually waits, in virtual time, until a condition holds.
func (c *testCluster) eventually(what string, holds func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within two minutes: %s", what)
		}
		time.Sleep(10 * time.Millisecond) // virtual
	}
}

// leader waits for a node, among those that run and are not excluded, that leads the shard and is ready.
func (c *testCluster) leader(id shard.ID, except ...shard.NodeID) *testNode {
	c.t.Helper()
	var found *testNode
	c.eventually(fmt.Sprintf("shard %d has a leader", id), func() bool {
		for _, n := range c.nodes {
			excluded := false
			for _, e := range except {
				excluded = excluded || e == n.id
			}
			if n.host != nil && !excluded && n.group(id).IsLeader() {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

// follower returns a running voter that does not lead the shard.
func (c *testCluster) follower(id shard.ID) *testNode {
	lead := c.leader(id)
	for _, n := range c.nodes[:c.voters] {
		if n != lead && n.host != nil {
			return n
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func background() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 10*time.Second)
}

func (n *testNode) set(id shard.ID, key, value string) error {
	ctx, cancel := background()
	defer cancel()
	_, err := n.group(id).Write(ctx, &store.Op{Kind: store.OpSet, Key: []byte(key), Value: []byte(value)}, Session{})
	return err
}

func (n *testNode) mustSet(id shard.ID, key, value string) {
	n.c.t.Helper()
	if err := n.set(id, key, value); err != nil {
		n.c.t.Fatalf("set on %s: %v", n.id, err)
	}
}

func (n *testNode) get(id shard.ID, key string, level ReadLevel) (string, bool, error) {
	ctx, cancel := background()
	defer cancel()
	r, err := n.group(id).Read(ctx, level)
	if err != nil {
		return "", false, err
	}
	value, _, ok, err := r.Get([]byte(key), nil)
	return string(value), ok, err
}

// converged waits until all running replicas of the shard are equal and returns their number of keys.
func (c *testCluster) converged(id shard.ID) uint64 {
	c.t.Helper()
	keys := uint64(0)
	c.eventually("replicas are equal", func() bool {
		var first *Status
		for _, n := range c.nodes {
			if n.host == nil {
				continue
			}
			s := n.group(id).Status()
			if first == nil {
				first = &s
			}
			if s.Applied != first.Applied || s.Checksum != first.Checksum || s.Version != first.Version || s.Applied == 0 {
				return false
			}
			keys = s.Keys
		}
		return true
	})
	return keys
}

// testWriter sends logs to the test; what a background goroutine writes after its end is dropped.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}

var _ io.Writer = testWriter{}

// writeOn has writers write unique keys, with pauses, to whoever leads shard 1. The function it returns ends them, and returns what was
// acknowledged by a node that lived.
func (c *testCluster) writeOn(count int, pause time.Duration) (acknowledged func() []string) {
	ctx, stop := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	c.t.Cleanup(func() { stop(); writers.Wait() }) // before the nodes are stopped
	var mu sync.Mutex
	var acked []string
	for w := range count {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("w%d-%d", w, i)
				for _, n := range c.nodes {
					g, ok := n.answering.Load().Group(1)
					if !ok || !g.IsLeader() {
						continue
					}
					life := n.lives.Load()
					call, cancel := context.WithTimeout(ctx, 3*time.Second)
					_, err := g.Write(call, &store.Op{Kind: store.OpSet, Key: []byte(key), Value: []byte("v")}, Session{})
					cancel()
					if err == nil && life > 0 && n.lives.Load() == life {
						mu.Lock()
						acked = append(acked, key)
						mu.Unlock()
						break
					}
				}
				time.Sleep(pause)
			}
		})
	}
	return func() []string {
		stop()
		writers.Wait()
		return acked
	}
}
