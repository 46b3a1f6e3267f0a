package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

var (
	// ErrClosed: the Transport or the Facade was closed.
	ErrClosed = errors.New("transport: closed")
	// ErrTimeout: the deadline passed. Whether the peer took the request is not known.
	ErrTimeout = errors.New("transport: no answer in time")
	// ErrUnknownNode: the address book has no address for the node.
	ErrUnknownNode = errors.New("transport: no address for the node")
	// ErrAlreadyOpen: the group has a Facade already.
	ErrAlreadyOpen = errors.New("transport: the group is open already")
)

// Transport is a node's end of all its peer streams, and hands out one Facade per group. Any goroutine may call it.
type Transport struct {
	cfg Config
	// ctx ends with Close, and everything under it.
	ctx    context.Context
	cancel context.CancelFunc
	// running counts the goroutines started here and the gRPC handlers inside this package; Close waits for it.
	running sync.WaitGroup
	began   time.Time
	gone    atomic.Pointer[func(context.Context, shard.NodeID)] // see OnGone

	memory      atomic.Pointer[MemoryReport]                     // this node's; nil: it says nothing
	heardMemory atomic.Pointer[func(shard.NodeID, MemoryReport)] // see OnMemory

	mu        sync.RWMutex
	closed    bool // running grows only under mu and while this is false
	facades   map[shard.ID]*Facade
	histories map[localReplica]*history // one for each replica ever opened, kept until Close
	peers     map[shard.NodeID]*peer

	// What calls wait at, kept for further calls. Here and not in the package, so that Transports share nothing.
	calls     waiters[*ostrakapb.Envelope]
	beats     channels[beatAnswer]
	responses channels[raft.RPCResponse]
}

type localReplica struct {
	group   shard.ID
	replica shard.ReplicaID
}

// New checks the configuration. It dials nobody: a peer is dialed when something is to be sent to it.
func New(cfg Config) (*Transport, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &Transport{
		cfg:       cfg,
		began:     time.Now(),
		facades:   make(map[shard.ID]*Facade),
		histories: make(map[localReplica]*history),
		peers:     make(map[shard.NodeID]*peer),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Close closes every Facade, stream and connection and waits for all goroutines. It may be repeated.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	facades := make([]*Facade, 0, len(t.facades))
	for _, f := range t.facades {
		facades = append(facades, f)
	}
	t.mu.Unlock()

	var failed error
	for _, f := range facades {
		failed = errors.Join(failed, f.Close())
	}
	t.cancel()
	t.running.Wait()
	for _, p := range t.peers { // nothing adds one any more
		failed = errors.Join(failed, p.closeBulk())
	}
	return failed
}

// Open gives a group its raft.Transport. gate holds its answers until the log is durable. A group that was closed may be
// opened again, under the same replica or another; while it is open, another Open is ErrAlreadyOpen.
func (t *Transport) Open(group shard.ID, replica shard.ReplicaID, gate Gate) (*Facade, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if open := t.facades[group]; open != nil {
		return nil, fmt.Errorf("%w: group %d as replica %d", ErrAlreadyOpen, group, open.replica)
	}
	key := localReplica{group, replica}
	if t.histories[key] == nil {
		t.histories[key] = newHistory()
	}
	f := newFacade(t, group, replica, gate, t.histories[key])
	t.facades[group] = f
	t.running.Go(f.collect)
	return f, nil
}

// facade finds the Facade for an arriving message, or ErrNoReplica.
func (t *Transport) facade(group shard.ID, replica shard.ReplicaID) (*Facade, error) {
	t.mu.RLock()
	f := t.facades[group]
	t.mu.RUnlock()
	if f == nil || f.replica != replica {
		return nil, fmt.Errorf("%w: group %d, replica %d", ErrNoReplica, group, replica)
	}
	return f, nil
}

// start runs a function in a goroutine that Close waits for; after Close, not at all.
func (t *Transport) start(run func()) bool {
	if !t.enter() {
		return false
	}
	go func() {
		defer t.running.Done()
		run()
	}()
	return true
}

// enter makes Close wait for running.Done; false after Close.
func (t *Transport) enter() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return false
	}
	t.running.Add(1)
	return true
}

// peer is all that this node keeps about another.
type peer struct {
	node     shard.NodeID
	counters peerCounters
	link     *link
	asked    atomic.Bool // whether its process has ended: see broke
	stalling atomic.Bool // who is told that its disk does not answer is at it: see stalled

	mu          sync.Mutex
	bulk        *grpc.ClientConn // for snapshots and unary calls, nil until used
	bulkAddress string           // where bulk goes
	bulkHeard   *lastHeard       // of bulk
	accepted    *pipe            // the newest stream that the peer has opened, or nil
	incarnation uint64           // of accepted
}

// peer returns the record of a node, and starts its link at first use.
func (t *Transport) peer(node shard.NodeID) (*peer, error) {
	t.mu.RLock()
	p := t.peers[node]
	t.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, ErrClosed
	case node == t.cfg.Self:
		return nil, fmt.Errorf("%w: %q is this node", ErrWrongNode, node)
	case t.peers[node] != nil:
		return t.peers[node], nil
	}
	p = &peer{node: node}
	p.link = newLink(t, p)
	t.peers[node] = p
	t.running.Go(p.link.run)
	return p, nil
}

// Reach connects to a node before there is something to send. A node that has just started does so: those that had given its
// links up hear from it, and try again before a vote of theirs would fail for it.
func (t *Transport) Reach(node shard.NodeID) {
	if p, err := t.peer(node); err == nil && p.link.up() == nil {
		signal(p.link.demand)
	}
}

// resolve asks the address book.
func (t *Transport) resolve(node shard.NodeID) (string, error) {
	address, ok := t.cfg.Resolve(node)
	if !ok || address == "" {
		return "", fmt.Errorf("%w: %q", ErrUnknownNode, node)
	}
	return address, nil
}

// connect prepares a connection; gRPC dials when it is used, and again when it broke.
func (t *Transport) connect(dial func(context.Context) (net.Conn, error)) (*grpc.ClientConn, error) {
	// The target is only a name: an address need not be spelled as gRPC wants it.
	return grpc.NewClient("passthrough:///node",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: t.redial(), MinConnectTimeout: t.cfg.DialTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MessageBytesMax), grpc.MaxCallSendMsgSize(MessageBytesMax)),
		grpc.WithDisableServiceConfig(),
		grpc.WithStaticStreamWindowSize(ostrakapb.StreamWindowBytes),
		grpc.WithStaticConnWindowSize(ostrakapb.ConnWindowBytes),
		grpc.WithIdleTimeout(0),
	)
}

// Conn returns the connection that this node shares for everything but the Exchange stream: snapshots, and the server's
// own calls to the peer (Status, Announce). It is dialed at first use, through the same dialer, and belongs to the
// Transport: don't close it. When the address book names another address, the next Conn goes there and calls on the old
// connection fail. Errors: ErrUnknownNode, ErrWrongNode for this node itself, ErrClosed.
func (t *Transport) Conn(node shard.NodeID) (*grpc.ClientConn, error) {
	p, err := t.peer(node)
	if err != nil {
		return nil, err
	}
	address, err := t.resolve(node)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case t.ctx.Err() != nil: // under p.mu: Close looks for connections after it ended ctx
		return nil, ErrClosed
	case p.bulk != nil && p.bulkAddress == address:
		return p.bulk, nil
	case p.bulk != nil:
		p.bulk.Close()
		p.bulk = nil
	}
	heard := newLastHeard()
	p.bulk, err = t.connect(func(ctx context.Context) (net.Conn, error) {
		conn, err := t.cfg.Dial(ctx, address)
		heard.touch() // silence counts from here
		return hearingConn{conn, heard}, err
	})
	p.bulkAddress, p.bulkHeard = address, heard
	return p.bulk, err
}

// dropSilent gives up a connection of Conn's over which an answer was due and nothing was heard for a while, so that the next
// Conn dials anew. gRPC takes a connection for good as long as nobody says otherwise, even one whose packets are lost for ever.
func (p *peer) dropSilent(silent *grpc.ClientConn, while time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bulk == silent && p.bulkHeard.silence() >= while {
		p.bulk.Close()
		p.bulk = nil
	}
}

func (p *peer) closeBulk() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bulk == nil {
		return nil
	}
	closing := p.bulk
	p.bulk = nil
	return closing.Close()
}

// receive waits for a stream's first message. A peer that opens a stream and says nothing costs a goroutine until the
// caller ends the stream, which it must do after an error.
func receive[T any](t *Transport, recv func() (T, error)) (T, error) {
	type received struct {
		message T
		err     error
	}
	var none T
	arrived := make(chan received, 1)
	if !t.start(func() {
		message, err := recv()
		arrived <- received{message, err}
	}) {
		return none, ErrClosed
	}
	patience := time.NewTimer(t.cfg.DialTimeout)
	defer patience.Stop()
	select {
	case r := <-arrived:
		return r.message, r.err
	case <-patience.C:
		return none, fmt.Errorf("%w: no first message", ErrTimeout)
	case <-t.ctx.Done():
		return none, ErrClosed
	}
}
