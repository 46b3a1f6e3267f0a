package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/store"
)

// Limits bound what callers may ask of a node. Zero fields take the defaults. What is over a limit is refused
// with a typed error that names the limit, and nothing of it is done.
type Limits struct {
	// KeyBytesMax: a key, 1 to 32 KiB. Default 32 KiB.
	KeyBytesMax int
	// ValueBytesMax: a value, 1 B to 64 MiB, the result of an append included. Default 8 MiB. Memory for a
	// few values of this size is needed per call that carries one. It is checked by the node that leads the
	// key's shard: give all nodes the same.
	ValueBytesMax int
	// BatchOpsMax: operations of one batch. Default 1024.
	BatchOpsMax int
	// BatchBytesMax: one batch's message, and the values of its answer, where the first value always passes.
	// Default 16 MiB; at least a key and a value fit.
	BatchBytesMax int
	// ScanItemsMax and ScanBytesMax: one page of a scan. The item that reaches ScanBytesMax is the page's last.
	// Defaults 1000 and 1 MiB.
	ScanItemsMax int
	ScanBytesMax int
	// WatchesMax: watches on this node, one for each shard that a watch of a client's needs. Default 65536. A quiet one takes half a
	// kilobyte, one that is not read from 2 KiB more.
	WatchesMax int
	// WatchBytesMax: those half kilobytes and the keys that the watches name, together. Default 64 MiB.
	WatchBytesMax int
	// ConnectionsMax: open connections of clients and other nodes together. Default 16384. One more is closed
	// as soon as it is accepted.
	ConnectionsMax int
	// StreamsPerConnectionMax: calls under way on one connection. Default 4096. gRPC clients hold back what is
	// over it.
	StreamsPerConnectionMax int
	// RequestTimeout is given to a call that came without a deadline. Default 10 s.
	RequestTimeout time.Duration
}

// Names of limits, as configuration and errors give them; those of keys and values are store's.
const (
	limitBatchOps   = "batch_ops_max"
	limitBatchBytes = "batch_bytes_max"
	// limitCompareAndSet bounds a compare-and-set's old and new value together: what one log entry carries.
	limitCompareAndSet = "compare_and_set_bytes_max"
	// limitShardBytes bounds the keys and values of one shard together. It comes up where their number is over its limit, too.
	limitShardBytes = "shard_bytes_max"
	// limitMemory bounds what all replicas of a node take: Config.MaxMemory.
	limitMemory = "max_memory"
)

var compareAndSetBytesMax = store.MaxLimits().ValueBytesMax

// errLimit is over a limit other than store's own.
var errLimit = errors.New("over a limit")

// limitError names the limit that a request broke. It is errLimit.
type limitError struct {
	limit    string
	max, got int // got 0: not known
}

func (e *limitError) Error() string {
	if e.got == 0 {
		return fmt.Sprintf("over the limit: %s is %d", e.limit, e.max)
	}
	return fmt.Sprintf("over the limit: %s is %d, got %d", e.limit, e.max, e.got)
}

func (e *limitError) Is(target error) bool { return target == errLimit }

// withDefaults fills in what was left out and says which field is out of its range.
func (l Limits) withDefaults() (Limits, error) {
	byDefault := store.DefaultLimits()
	if l.KeyBytesMax == 0 {
		l.KeyBytesMax = byDefault.KeyBytesMax
	}
	if l.ValueBytesMax == 0 {
		l.ValueBytesMax = byDefault.ValueBytesMax
	}
	for _, f := range []struct {
		field    *int
		fallback int
	}{
		{&l.BatchOpsMax, 1024},
		{&l.BatchBytesMax, max(16<<20, l.leastBatchBytes())},
		{&l.ScanItemsMax, 1000},
		{&l.ScanBytesMax, 1 << 20},
		{&l.WatchesMax, 65536},
		{&l.WatchBytesMax, 64 << 20},
		{&l.ConnectionsMax, 16384},
		{&l.StreamsPerConnectionMax, 4096},
	} {
		if *f.field == 0 {
			*f.field = f.fallback
		}
	}
	if l.RequestTimeout == 0 {
		l.RequestTimeout = 10 * time.Second
	}
	return l, l.validate()
}

func (l Limits) validate() error {
	if err := l.store().Validate(); err != nil {
		return err
	}
	for _, f := range []struct {
		name     string
		got, min int
	}{
		{limitBatchOps, l.BatchOpsMax, 1},
		{limitBatchBytes, l.BatchBytesMax, l.leastBatchBytes()},
		{"scan_items_max", l.ScanItemsMax, 1},
		{"scan_bytes_max", l.ScanBytesMax, 1},
		{limitWatches, l.WatchesMax, 1},
		{limitWatchBytes, l.WatchBytesMax, 1},
		{"connections_max", l.ConnectionsMax, 1},
		{"streams_per_connection_max", l.StreamsPerConnectionMax, 1},
		{"request_timeout", int(l.RequestTimeout), 1},
	} {
		if f.got < f.min {
			return fmt.Errorf("%s is %d, want at least %d", f.name, f.got, f.min)
		}
	}
	return nil
}

// messageOverhead covers headers and field tags around keys and values.
const messageOverhead = 64 << 10

// leastBatchBytes lets any single operation travel in a batch; a compare-and-set carries two values.
func (l Limits) leastBatchBytes() int {
	return 2*l.ValueBytesMax + l.KeyBytesMax + messageOverhead
}

// store returns the limits of keys and values.
func (l Limits) store() store.Limits {
	return store.Limits{KeyBytesMax: l.KeyBytesMax, ValueBytesMax: l.ValueBytesMax}
}

// messageBytesMax bounds one message of KV either way: a batch, an answer to one, or a page of a scan whose
// last item is as large as can be.
func (l Limits) messageBytesMax() int {
	return max(l.BatchBytesMax, l.ScanBytesMax) + l.leastBatchBytes()
}

// Timers of connections. Clients and nodes may send keepalive pings from keepaliveMin on, calls or no calls.
const (
	keepaliveMin     = 5 * time.Second
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// handshakeTimeout bounds the time in which a connection must begin to speak HTTP/2.
	handshakeTimeout = 10 * time.Second
	headerBytesMax   = 16 << 10
)

// serverOptions returns what bounds and watches every call to the gRPC port.
func serverOptions(node nodeView, m *metrics, logger *slog.Logger) []grpc.ServerOption {
	l := node.Limits()
	g := &gate{limits: l, explain: explainer{node}, metrics: m, logger: logger}
	messageMax := max(l.messageBytesMax(), transport.MessageBytesMax)
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(ostrakapb.PipelineCodec{}),
		grpc.MaxRecvMsgSize(messageMax),
		grpc.MaxSendMsgSize(messageMax),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.StaticStreamWindowSize(ostrakapb.StreamWindowBytes),
		grpc.StaticConnWindowSize(ostrakapb.ConnWindowBytes),
		grpc.MaxConcurrentStreams(uint32(l.StreamsPerConnectionMax)),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
		// Stop returns once no handler runs, so that what handlers use can be closed after it.
		grpc.WaitForHandlers(true),
	}
}

// limitConnections bounds the connections that l has open at once. One more is accepted and closed before a
// byte is read, so that its client sees a broken connection at once, knows that nothing was done, and can go
// elsewhere; left in the kernel's queue it would hang until its own timeout.
func limitConnections(l net.Listener, connectionsMax int, m *metrics) net.Listener {
	return &limitListener{Listener: l, max: int64(connectionsMax), metrics: m}
}

type limitListener struct {
	net.Listener
	max     int64
	open    atomic.Int64
	metrics *metrics
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			l.metrics.connections.Inc()
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() {
				l.metrics.connections.Dec()
				l.open.Add(-1)
			})}, nil
		}
		l.open.Add(-1)
		l.metrics.refusedConnections.Inc()
		c.Close() // nothing was exchanged: there is nothing that its error could tell
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
