// Package server is a node: one process with one gRPC port that holds many replicas.
//
// It owns the node's life (identity, bootstrap, start, drain), the gRPC services KV, Admin and Raft, the HTTP
// listener, and the one place where errors become gRPC statuses (status.go). It knows nothing of how a write
// reaches a majority: that is raftfsm's, and of how keys are kept: that is store's.
//
// The life of a Node:
//
//		New ─► Run ─► blank ──pass 1──► adopting ──pass 2──► member ─► serving ─► draining ─► Run returns
//		                      (node.json holds the plan)
//
//	  - blank: Raft and Admin answer, KV refuses and says what to do.
//	  - adopting: the plan and the first configurations of all local replicas are on disk. No raft instance runs, also
//	    after a restart, so that whatever was cut off may simply be repeated. The node waits for pass 2, which comes
//	    when every named node is adopting; KV refuses and says that the bootstrap is to be run again.
//	  - member: durable before the first replica starts. From here on no replica of this node is ever bootstrapped
//	    again. One whose data is gone must not vote under its old id, and so a blank node is no longer adopted into
//	    a cluster that has a member.
//	  - draining: leaderships are handed over, running calls end, new connections are refused.
//
// Start reading at node.go for the life, bootstrap.go for how a cluster begins, kv.go for a request.
package server
