package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testCluster = "cluster-a"

// network is a set of in-memory listeners, by address, and an address book. It needs no sockets, so it works inside a
// synctest bubble.
type network struct {
	t  *testing.T
	mu sync.Mutex
	// book holds node → address.
	book      map[shard.NodeID]string
	listeners map[string]*bufconn.Listener
	// isolated nodes dial and are dialed, but no byte gets through: a partition that drops packets.
	isolated map[shard.NodeID]bool
	conns    []*faultyConn
	// bytesPerSecond bounds connections made from now on; 0: no bound.
	bytesPerSecond int
}

func newNetwork(t *testing.T) *network {
	return &network{t: t, book: make(map[shard.NodeID]string),
		listeners: make(map[string]*bufconn.Listener), isolated: make(map[shard.NodeID]bool)}
}

func (n *network) resolve(node shard.NodeID) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	address, ok := n.book[node]
	return address, ok
}

func (n *network) dial(ctx context.Context, from shard.NodeID, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	conn, err := l.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &faultyConn{Conn: conn, from: from, address: address, bytesPerSecond: n.bytesPerSecond}
	c.swallow.Store(n.cutOffLocked(c))
	n.conns = append(n.conns, c)
	return c, nil
}

func (n *network) cutOffLocked(c *faultyConn) bool {
	for node := range n.isolated {
		if c.from == node || c.address == n.book[node] {
			return true
		}
	}
	return false
}

// isolate begins the loss of all that a node sends or is sent, on standing connections too; heal ends it for new ones:
// what was lost stays lost.
func (n *network) isolate(node shard.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isolated[node] = true
	for _, c := range n.conns {
		if n.cutOffLocked(c) {
			c.swallow.Store(true)
		}
	}
}

func (n *network) heal(node shard.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.isolated, node)
}

type faultyConn struct {
	net.Conn
	from    shard.NodeID
	address string
	swallow atomic.Bool
	// bytesPerSecond, if set, is all that passes from the dialing end.
	bytesPerSecond int
}

func (c *faultyConn) Write(b []byte) (int, error) {
	if c.swallow.Load() {
		return len(b), nil
	}
	if c.bytesPerSecond > 0 {
		time.Sleep(time.Duration(len(b)) * time.Second / time.Duration(c.bytesPerSecond))
	}
	return c.Conn.Write(b)
}

// testNode is a Transport behind a gRPC server.
type testNode struct {
	*Transport
	network *network
	id      shard.NodeID
	address string
	server  *grpc.Server
	serving sync.WaitGroup
	// refusals are the errors with which Exchange and InstallSnapshot ended.
	refusals chan error
	learned  chan *ostrakapb.Handshake
	stopped  bool
}

// raftService is how the server embeds a Transport.
type raftService struct {
	ostrakapb.UnimplementedRaftServer
	node *testNode
}

func (s *raftService) Exchange(stream grpc.BidiStreamingServer[ostrakapb.Frame, ostrakapb.Frame]) error {
	return s.node.ended(s.node.Transport.Exchange(stream))
}

func (s *raftService) InstallSnapshot(stream grpc.ClientStreamingServer[ostrakapb.SnapshotChunk, ostrakapb.Envelope]) error {
	return s.node.ended(s.node.Transport.InstallSnapshot(stream))
}

func (n *testNode) ended(err error) error {
	if err != nil {
		select {
		case n.refusals <- err:
		default:
		}
	}
	return err
}

func (n *network) node(id shard.NodeID, adjust ...func(*Config)) *testNode {
	return n.nodeAt(id, "address-of-"+string(id), adjust...)
}

func (n *network) nodeAt(id shard.NodeID, address string, adjust ...func(*Config)) *testNode {
	n.t.Helper()
	node := &testNode{network: n, id: id, address: address,
		refusals: make(chan error, 100), learned: make(chan *ostrakapb.Handshake, 100)}
	cfg := Config{
		Self:        id,
		ClusterID:   func() string { return testCluster },
		Address:     func() string { return address },
		Incarnation: func() uint64 { return 1 },
		Resolve:     n.resolve,
		Learned: func(hs *ostrakapb.Handshake) {
			select {
			case node.learned <- hs:
			default:
			}
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return n.dial(ctx, id, address)
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, a := range adjust {
		a(&cfg)
	}
	var err error
	if node.Transport, err = New(cfg); err != nil {
		n.t.Fatal(err)
	}
	node.listen()
	n.t.Cleanup(node.stop)
	return node
}

func (n *testNode) listen() {
	listener := bufconn.Listen(1 << 20)
	n.server = grpc.NewServer(grpc.MaxRecvMsgSize(MessageBytesMax), grpc.MaxSendMsgSize(MessageBytesMax))
	ostrakapb.RegisterRaftServer(n.server, &raftService{node: n})
	n.network.mu.Lock()
	n.network.listeners[n.address] = listener
	n.network.book[n.id] = n.address
	n.network.mu.Unlock()
	n.serving.Go(func() { n.server.Serve(listener) })
}

// unplug stops the gRPC server: the address refuses connections.
func (n *testNode) unplug() {
	n.network.mu.Lock()
	delete(n.network.listeners, n.address)
	n.network.mu.Unlock()
	n.server.Stop()
	n.serving.Wait()
}

func (n *testNode) stop() {
	if n.stopped {
		return
	}
	n.stopped = true
	if err := n.Close(); err != nil {
		n.network.t.Errorf("close %s: %v", n.id, err)
	}
	n.unplug()
}

func (n *testNode) open(group shard.ID, replica shard.ReplicaID) *Facade {
	n.network.t.Helper()
	return n.openGated(group, replica, durable{})
}

func (n *testNode) openGated(group shard.ID, replica shard.ReplicaID, gate Gate) *Facade {
	n.network.t.Helper()
	f, err := n.Open(group, replica, gate)
	if err != nil {
		n.network.t.Fatal(err)
	}
	return f
}

// header is what raft puts on top of each request of a replica.
func (f *Facade) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(ServerID(f.replica)), Addr: []byte(f.LocalAddr())}
}

// sendAppend plays the leader.
func (f *Facade) sendAppend(to *Facade, req raft.AppendEntriesRequest) (raft.AppendEntriesResponse, error) {
	req.RPCHeader = f.header()
	var resp raft.AppendEntriesResponse
	err := f.AppendEntries(ServerID(to.replica), to.LocalAddr(), &req, &resp)
	return resp, err
}

// heartbeat plays the leader's heartbeat goroutine.
func (f *Facade) heartbeat(to *Facade, term uint64) error {
	_, err := f.sendAppend(to, raft.AppendEntriesRequest{Term: term})
	return err
}

func entries(term uint64, from, to uint64) []*raft.Log {
	var logs []*raft.Log
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "%d of term %d", i, term)})
	}
	return logs
}

// acceptAll plays a raft that says yes to everything, until the Facade is closed.
func acceptAll(t *testing.T, f *Facade) {
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case rpc := <-f.Consumer():
				say(rpc)
			case <-f.ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { f.Close(); done.Wait() })
}

// say answers one request with a plain yes.
func say(rpc raft.RPC) {
	switch r := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		rpc.Respond(&raft.AppendEntriesResponse{Term: r.Term, LastLog: r.PrevLogEntry + uint64(len(r.Entries)), Success: true}, nil)
	case *raft.RequestVoteRequest:
		rpc.Respond(&raft.RequestVoteResponse{Term: r.Term, Granted: true}, nil)
	case *raft.RequestPreVoteRequest:
		rpc.Respond(&raft.RequestPreVoteResponse{Term: r.Term, Granted: true}, nil)
	case *raft.TimeoutNowRequest:
		rpc.Respond(&raft.TimeoutNowResponse{}, nil)
	case *raft.InstallSnapshotRequest:
		n, err := io.Copy(io.Discard, rpc.Reader)
		rpc.Respond(&raft.InstallSnapshotResponse{Term: r.Term, Success: n == r.Size}, err)
	}
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
