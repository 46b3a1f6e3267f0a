package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// MessageBytesMax is the largest gRPC message that the transport sends or takes: an entry with the largest value that can
// be configured (64 MiB) and what surrounds it. The gRPC server must allow it (grpc.MaxRecvMsgSize).
const MessageBytesMax = 80 << 20

// Config is what a Transport needs. Zero numbers take the defaults named at each field.
type Config struct {
	Self shard.NodeID
	// ClusterID is asked at every handshake. While it is empty (a blank node), streams are refused both ways.
	ClusterID func() string
	// Address is where this node listens, for the handshake. May be nil.
	Address func() string
	// Incarnation counts this node's starts, for the handshake. May be nil.
	Incarnation func() uint64

	// Resolve is the address book, asked at every dial.
	Resolve func(shard.NodeID) (address string, ok bool)
	// Known tells whether a node is of this cluster. Streams of others are refused before anything is kept about them, so
	// that invented node ids cost no memory. Nil: any node that names the cluster is.
	Known func(shard.NodeID) bool
	// Outlived tells that a node has been replaced since it was in that incarnation: its streams are refused, and it is not
	// spoken to. May be nil.
	Outlived func(node shard.NodeID, incarnation uint64) bool
	// Learned is told each accepted peer's handshake, so that the address book learns. Called on stream goroutines; must
	// not block. May be nil.
	Learned func(*ostrakapb.Handshake)
	// Confirmer answers a peer's Confirm: true where this node's replica of the group is still in the term. Called on a
	// stream's receiving goroutine, before which the messages of all groups queue: it must not block. Nil answers no.
	Confirmer func([]ConfirmItem) []bool
	// Dial opens a connection. Nil: a net.Dialer over TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// HeartbeatGather is how long a heartbeat, or an append without entries to a replica at rest, may wait for others to the
	// same node; answers wait that long at most. Default 50 ms. More means fewer messages on an idle cluster, and leaders that
	// notice lost contact later by this: it should be at most a twentieth of the election timeout.
	HeartbeatGather time.Duration
	// AppendTimeout bounds an append with content, the wait for a link that is down included. Default 10 s: raft doubles
	// its pause with every failed append, up to ten seconds, so a follower that returns after an outage is served
	// sooner if few appends failed. It must be longer than the log's own limit for a hung disk.
	AppendTimeout time.Duration
	// VoteTimeout bounds votes, heartbeats and TimeoutNow. Default 2 s.
	VoteTimeout time.Duration
	// SnapshotProgressTimeout is how long a snapshot may stand still, on either end. Default 30 s. The receiver may take
	// that long again for every 256 MiB that it installs.
	SnapshotProgressTimeout time.Duration
	// DialTimeout bounds connecting and the handshake, and on the other end the wait for it. Default 2 s.
	DialTimeout time.Duration
	// RedialMax is the longest pause between attempts to reach a peer. The first is a twentieth of it. Default 1 s.
	RedialMax time.Duration
	// Pulse is the beat at which a quiet stream is tried; after three without a byte the peer counts as gone. Default 1 s.
	Pulse time.Duration

	// FrameBytesMax bounds the messages joined into one frame, and the entries of one append. A larger single entry goes
	// alone. Default 1 MiB.
	FrameBytesMax int
	// QueueMessagesMax bounds what waits for one stream. A request over it fails at once; an answer over it is dropped,
	// so the request times out. Default 4096.
	QueueMessagesMax int

	// Logger must be given.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	c.HeartbeatGather = cmp.Or(c.HeartbeatGather, 50*time.Millisecond)
	c.AppendTimeout = cmp.Or(c.AppendTimeout, 10*time.Second)
	c.VoteTimeout = cmp.Or(c.VoteTimeout, 2*time.Second)
	c.SnapshotProgressTimeout = cmp.Or(c.SnapshotProgressTimeout, 30*time.Second)
	c.DialTimeout = cmp.Or(c.DialTimeout, 2*time.Second)
	c.RedialMax = cmp.Or(c.RedialMax, time.Second)
	c.Pulse = cmp.Or(c.Pulse, time.Second)
	c.FrameBytesMax = cmp.Or(c.FrameBytesMax, 1<<20)
	c.QueueMessagesMax = cmp.Or(c.QueueMessagesMax, 4096)
	if c.Address == nil {
		c.Address = func() string { return "" }
	}
	if c.Incarnation == nil {
		c.Incarnation = func() uint64 { return 0 }
	}
	if c.Outlived == nil {
		c.Outlived = func(shard.NodeID, uint64) bool { return false }
	}
	if c.Known == nil {
		c.Known = func(shard.NodeID) bool { return true }
	}
	if c.Learned == nil {
		c.Learned = func(*ostrakapb.Handshake) {}
	}
	if c.Confirmer == nil {
		c.Confirmer = func(items []ConfirmItem) []bool { return make([]bool, len(items)) }
	}
	if c.Dial == nil {
		var dialer net.Dialer
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	switch {
	case c.Self == "" || c.ClusterID == nil || c.Resolve == nil || c.Logger == nil:
		return c, errors.New("transport: Config needs Self, ClusterID, Resolve and Logger")
	case c.FrameBytesMax < 0 || c.FrameBytesMax > MessageBytesMax/2:
		return c, fmt.Errorf("transport: Config.FrameBytesMax %d is not within [1, %d]", c.FrameBytesMax, MessageBytesMax/2)
	case c.HeartbeatGather < 0 || c.HeartbeatGather >= c.VoteTimeout:
		return c, fmt.Errorf("transport: Config.HeartbeatGather %s is not below VoteTimeout %s", c.HeartbeatGather, c.VoteTimeout)
	case min(c.AppendTimeout, c.VoteTimeout, c.SnapshotProgressTimeout, c.DialTimeout, c.RedialMax, c.Pulse) < 0 || c.QueueMessagesMax < 0:
		return c, errors.New("transport: Config has a negative duration or bound")
	}
	return c, nil
}
