package transport

import (
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// Traffic counts one direction. Bytes are of encoded messages and snapshot data, without gRPC's framing.
type Traffic struct {
	Frames     uint64 // messages on Exchange streams, empty ones that try a quiet stream included
	Envelopes  uint64 // raft's messages and Confirms, requests and answers; snapshots count two
	Heartbeats uint64 // of the envelopes, requests that are heartbeats
	Bytes      uint64
}

// PeerStats counts what went to and came from one peer node since New.
type PeerStats struct {
	Sent, Received Traffic
	// Dials counts attempts to connect the Exchange stream.
	Dials uint64
	// Dropped counts answers lost to a full queue.
	Dropped uint64
	// Connected tells whether a stream with the peer stands at the moment, whoever opened it.
	Connected bool
}

type trafficCounters struct {
	frames, envelopes, heartbeats, bytes atomic.Uint64
}

func (c *trafficCounters) snapshot() Traffic {
	return Traffic{
		Frames: c.frames.Load(), Envelopes: c.envelopes.Load(),
		Heartbeats: c.heartbeats.Load(), Bytes: c.bytes.Load(),
	}
}

// count adds what a frame holds.
func (c *trafficCounters) count(frame *ostrakapb.Frame) {
	beats := len(frame.GetHeartbeats().GetGroup())
	envelopes := len(frame.Envelopes) + beats
	for _, r := range frame.HeartbeatReplies {
		envelopes += len(r.Row) + len(r.Refused)
	}
	c.envelopes.Add(uint64(envelopes))
	c.heartbeats.Add(uint64(beats))
}

// heartbeatBytes is what a frame holds beside envelopes.
func heartbeatBytes(frame *ostrakapb.Frame) int {
	bytes := proto.Size(frame.Heartbeats) + proto.Size(frame.Memory)
	for _, r := range frame.HeartbeatReplies {
		bytes += proto.Size(r)
	}
	return bytes
}

type peerCounters struct {
	sent, received trafficCounters
	dials, dropped atomic.Uint64
}

// Stats counts per peer node ever met or dialed. Any goroutine may call it.
func (t *Transport) Stats() map[shard.NodeID]PeerStats {
	t.mu.RLock()
	defer t.mu.RUnlock()
	stats := make(map[shard.NodeID]PeerStats, len(t.peers))
	for node, p := range t.peers {
		stats[node] = PeerStats{
			Sent: p.counters.sent.snapshot(), Received: p.counters.received.snapshot(),
			Dials: p.counters.dials.Load(), Dropped: p.counters.dropped.Load(),
			Connected: p.link.up() != nil || p.acceptedNow(),
		}
	}
	return stats
}
