package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

const (
	// suspectFor is how long a node is passed over, while others can be asked, that can't be reached or broke off: to find out
	// whether it is back costs little.
	suspectFor = 500 * time.Millisecond
	// A node that takes calls and says nothing, one that is paused for instance, costs every write that finds out all its time.
	// So it is passed over for longer than an election takes, and on as long as calls wait for it, until it answers anything.
	suspectSilentFor = 2 * time.Second
	// keepaliveTime is gRPC's lower bound. A silent connection under a waiting call is probed after it and
	// closed keepaliveTimeout later; bytes that nobody acknowledges close it after keepaliveTimeout alone.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 2 * time.Second
	// connectTimeout bounds one try to connect, redialMax the pause between tries.
	connectTimeout = 2 * time.Second
	redialMax      = time.Second
	// beatMin and beatMax bound how often a pipeline looks whose patience is over.
	beatMin = time.Millisecond
	beatMax = 50 * time.Millisecond
	// messageBytesMax bounds an answer. The server's own limits are lower: this keeps a broken peer from
	// taking all memory.
	messageBytesMax = 256 << 20
)

// node is the client's end of one address: a connection, made at its first use, shared by all calls.
type node struct {
	address string
	conn    *grpc.ClientConn
	kv      ostrakapb.KVClient
	// pipeline carries the small operations.
	pipeline *pipeline
	admin    ostrakapb.AdminClient
	// suspectUntil is a Unix time in nanoseconds up to which other nodes are preferred; 0: trusted.
	suspectUntil atomic.Int64
}

// close ends the calls under way.
func (n *node) close() {
	n.conn.Close()
	n.pipeline.close()
}

// hurry is for a node that another one says leads: it runs, whatever it did when it was tried last. So one that has no connection
// (true) is not suspected for that any more, and the pause between two tries to connect, up to redialMax, ends. One that is
// connected and silent stays a suspect: its followers may be the last to learn of it.
func (n *node) hurry() (down bool) {
	switch n.conn.GetState() {
	case connectivity.Ready, connectivity.Shutdown:
		return false
	case connectivity.TransientFailure:
		n.conn.ResetConnectBackoff()
	}
	n.trust()
	return true
}

func (n *node) suspect() { n.suspectNow(suspectFor) }

// suspectSilent suspects a node that has taken calls and says nothing. It is called again and again while that is so.
func (n *node) suspectSilent() { n.suspectNow(suspectSilentFor) }

// suspectNow suspects it for that long, or for longer where it is suspected already.
func (n *node) suspectNow(d time.Duration) {
	until := time.Now().Add(d).UnixNano()
	for {
		old := n.suspectUntil.Load()
		if old >= until || n.suspectUntil.CompareAndSwap(old, until) {
			return
		}
	}
}

func (n *node) suspected() bool {
	until := n.suspectUntil.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// trust is called for every answer: it writes only where there is something to change.
func (n *node) trust() {
	if n.suspectUntil.Load() != 0 {
		n.suspectUntil.Store(0)
	}
}

// pool holds the nodes by address. A node outlives map changes as long as its address is in use, so that a
// new map costs no connections.
type pool struct {
	options []grpc.DialOption
	// header and beat are for the nodes' pipelines. Without a header there must be no calls over them.
	header func() *ostrakapb.Header
	beat   time.Duration
	// silence is how long a node may say nothing to calls that it was sent.
	silence time.Duration

	mu     sync.Mutex
	nodes  map[string]*node
	closed bool
}

func newPool(cfg *config) *pool {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(sendWatch{}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // gRPC's own transparent retries stay: they resend only what nobody saw
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(messageBytesMax), grpc.MaxCallSendMsgSize(messageBytesMax)),
		grpc.WithStaticStreamWindowSize(ostrakapb.StreamWindowBytes),
		grpc.WithStaticConnWindowSize(ostrakapb.ConnWindowBytes),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax},
			MinConnectTimeout: connectTimeout,
		}),
	}
	if cfg.dialer != nil {
		options = append(options, grpc.WithContextDialer(cfg.dialer))
	}
	return &pool{options: options, nodes: make(map[string]*node),
		beat: min(max(min(cfg.attemptTimeout, cfg.timeout)/10, beatMin), beatMax), silence: cfg.attemptTimeout}
}

// node returns the node of an address, known or new. It connects to nothing yet.
func (p *pool) node(address string) (*node, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.nodes[address]; n != nil {
		return n, nil
	}
	if p.closed {
		return nil, ErrClosed
	}
	conn, err := grpc.NewClient("passthrough:///"+address, p.options...)
	if err != nil {
		return nil, &InvalidError{Field: "address " + address, Message: err.Error()}
	}
	n := &node{
		address: address,
		conn:    conn,
		kv:      ostrakapb.NewKVClient(conn),
		admin:   ostrakapb.NewAdminClient(conn),
	}
	n.pipeline = &pipeline{kv: n.kv, header: p.header, beat: p.beat, suspect: func(sr *shardRoute) { doubt(n, sr) },
		silence: p.silence, silent: n.suspectSilent, spoke: n.trust}
	p.nodes[address] = n
	return n, nil
}

// keep closes the nodes whose address is not in use any more. Calls that are still under way on one of them
// end as if the connection had broken.
func (p *pool) keep(inUse map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for address, n := range p.nodes {
		if !inUse[address] {
			n.close()
			delete(p.nodes, address)
		}
	}
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for address, n := range p.nodes {
		n.close()
		delete(p.nodes, address)
	}
}

// sendMark tells whether a request may have reached its node. It travels in the context of one call.
//
// gRPC's status codes don't say: Unavailable stands for a refused connection as well as for one that broke
// after the server had read the request. The stats events do. A unary handler runs only once it has the whole
// request message, and OutPayload is reported, before the call returns, for every message that was handed to
// the connection's write queue. No OutPayload: not a byte of the request left, the write is not done.
//
// gRPC sends a call again by itself only if no stream was created, or if the peer vouched (GOAWAY,
// REFUSED_STREAM) that it had not processed the first one. The second try then begins with a Begin event that
// says so, and the mark is cleared.
type sendMark struct{ sent atomic.Bool }

type sendMarkKey struct{}

func withSendMark(ctx context.Context) (context.Context, *sendMark) {
	mark := new(sendMark)
	return context.WithValue(ctx, sendMarkKey{}, mark), mark
}

// sendWatch is the stats handler that keeps the marks.
type sendWatch struct{}

func (sendWatch) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (sendWatch) HandleRPC(ctx context.Context, event stats.RPCStats) {
	var sent bool
	switch e := event.(type) {
	case *stats.OutPayload:
		sent = true
	case *stats.Begin:
		if !e.IsTransparentRetryAttempt {
			return
		}
	default:
		return
	}
	if mark, ok := ctx.Value(sendMarkKey{}).(*sendMark); ok {
		mark.sent.Store(sent)
	}
}

func (sendWatch) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (sendWatch) HandleConn(context.Context, stats.ConnStats) {}
