// Package storage keeps what the replicas of one node must remember for raft: their logs, their terms and
// votes, their snapshots.
//
// It owns the files below a data directory's meta/, wal/ and snap/, their formats, and the rules by which they
// agree with each other. It knows hashicorp/raft's store interfaces and what raft does with them, but runs no
// raft, never looks into an entry's data or a snapshot's state, and has no idea of keys.
//
//	data-dir/
//	  wal/                           the write-ahead log: entries of all shards' replicas, and of every replica its term,
//	                                 vote and minimum index (package wal)
//	  meta/meta.bolt                 second copy of terms, votes and minimum indexes; disagreement is how rot is found
//	  meta/log-<replica>.bolt        the log of the meta group's replica
//	  snap/<shard>/<term>-<index>-<replica>-<n>.snap   snapshots; the meta group's are in snap/0
//
// A Node is opened once per process and data directory. Its Open gives one Replica: three stores that go into
// raft.NewRaft, after Reconcile has said that they belong together. A Replica may be closed and opened again in
// the same process; that is how a group is restarted. Remove wipes one for good.
//
// # What holds
//
//   - Terms, votes, snapshots and the meta group's entries are durable when the call returns. A shard's entries become
//     durable later: Log.Appended and Log.Notify say when, and the transport holds every answer that vouches for them until
//     then. Where no answer is needed (one voter), StoreLogs waits.
//   - An error of a log or record write, or one that doesn't come back, is the end of the process: Config.Fatal
//     is called once and all later writes fail. raft itself would go on with a wrong idea of its log.
//   - The log has no gaps, and reaches back to the oldest kept snapshot (raft#85): from every kept snapshot
//     raft can go on by the log alone.
//   - A term and a vote once recorded never go back, and a vote is one record (raft#661).
//   - A replica never starts behind its minimum index, a durable fact: what it once held it may have vouched
//     for.
//   - Damage is named by file and offset. What can still be told for certain is used; otherwise the replica
//     doesn't start and is to be replaced under a fresh id.
//
// # Goroutines
//
// raft's main loop calls StoreLogs and DeleteRange, its snapshot goroutine DeleteRange and Create, its FSM
// goroutine Snapshots.Open, its replication goroutines GetLog; all exported methods may be called from any
// goroutine. The package starts none, but for the watchdog's timer when it fires.
//
// Start reading at Node, then Replica.Reconcile, then Log.DeleteRange.
package storage
