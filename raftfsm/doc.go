// Package raftfsm replicates: it runs this node's replicas of every shard, and of the meta group, each with a raft
// instance of its own.
//
// It owns the way of a write from a caller to a majority and back, the way of a linearizable read, the formats of
// log entries and snapshots, shard time, and the periodic work of a node's replicas. It refuses to know of gRPC
// statuses, of who asks, and of where nodes live. hashicorp/raft is imported here and in the packages below, and its
// types go no further.
//
//	           write                                        read
//	             │                                            │
//	Group ─► proposer ─► raft.Apply ─► log, replication       ├─► confirmer: a majority is still in this term
//	             ▲                         │ committed        │      (asked after the read arrived)
//	             └──── results ◄── fsm ◄───┘                  └─► fsm has applied what was committed then
//	                                │                                         │
//	                           shardMachine ──────────► store ◄───────────────┘
//
// A Host has all of it. Below a Group or Meta stands a replica, which is the same for both; below a replica its
// current life, one raft instance with all that belongs to it: a stuck group is ended and begun again inside the
// process.
//
// # Goroutines
//
// Exported methods may be called from any goroutine. Per life: raft's own, two of the proposer, and one that
// follows leadership. Per Host: the scheduler's jobs, and the confirmer's workers for each peer. Machines are
// driven by raft's FSM goroutine alone; what freeze returns is written out beside it.
//
// # What holds
//
//   - An error says either that nothing was done, or that the outcome is unknown (errors.go).
//   - Nothing on the apply path reads a clock, a random source or map order (shardmachine.go).
//   - A read never uses a confirmation that was asked for before it arrived (confirm.go).
//   - What this build can't read stops the replica.
//
// Start reading at group.go, then proposer.go for writes and confirm.go for reads; watch.go leads to those who follow changes.
// docs/raft-edges.md lists what raft leaves to us.
package raftfsm
