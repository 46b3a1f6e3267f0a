// Package transport carries raft's messages between nodes: all groups of a node pair share one stream each way, and
// every group sees an ordinary raft.Transport, its Facade.
//
// It owns the streams of the Raft service (Exchange and InstallSnapshot), the connections to peer nodes, and the
// translation between raft's structs and the wire. It refuses to know what a log entry holds, which replicas a group
// has, who leads, and where nodes live: addresses come from Config.Resolve at every dial, and go back through
// Config.Learned.
//
// # One request
//
//	raft ─► Facade ─► link ─► outbox ─► sender ══ Exchange ══► receiver ─► Facade's inbox ─► raft's main loop
//	 ▲ (waits, with a deadline)                                                                       │
//	 └──────────── receiver ◄══ Exchange, the other way ══ sender ◄─ outbox ◄─ Facade's collector ◄───┘
//
// A node dials each peer it has something to ask, and answers return on the same stream; so a pair of busy nodes has two
// streams. Snapshots and the server's own unary calls use a second connection (Transport.Conn), so that a snapshot never
// stands before an append.
//
// # What is done to raft's messages
//
//   - Heartbeats (appends that say nothing but "I lead") wait up to Config.HeartbeatGather for others to the same node,
//     travel as columns of numbers (heartbeat.go), and go into the inbox like everything else: raft's heartbeat fast path can
//     lose data (raft#695). Appends without entries to a replica at rest travel with them.
//   - No pipelining (raft#612); PreVote is there.
//   - A batch of entries is cut at Config.FrameBytesMax; raft has no such limit (cutBatch).
//   - The receiving end lowers a commit index to what the message itself vouches for (lowerCommit). Heartbeats tell one too,
//     lowered to what earlier appends have vouched for (agreement).
//   - Appends with content, snapshots and TimeoutNow carry a sequence per sender, receiver and term; one that a later
//     message has overtaken is refused (history).
//   - TimeoutNow carries the leader's term, and one of a deposed leader is refused.
//   - Answers by which raft counts a copy are held, on both ends, until the copies are durable (Gate).
//   - A replica whose disk hangs gives no sign of life.
//
// # Goroutines
//
// A Facade's raft methods are called from raft's goroutines and block until the answer, their deadline or Close. Per
// open Facade one goroutine collects raft's answers, which come in the order in which raft took the requests. Per peer
// there is one for the link, and two (sender, receiver) for each stream beside gRPC's own, three at its accepting end
// (gatherer: answers to heartbeats); a new stream has one more until its first message has come. None is started per
// message. Transport.Close joins all of them; call it before stopping the gRPC server gracefully, which waits for streams to
// end.
//
// Start reading at Transport, then Facade.call and pipe; gate.go says when answers may leave.
package transport
