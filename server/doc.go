// Package server is a node: one process with one gRPC port that holds many replicas.
//
// It owns the node's life (identity, bootstrap, start, drain), the gRPC services KV, Admin and Raft, the HTTP
// listener, and the one place where errors become gRPC statuses (status.go). It knows nothing of how a write
// reaches a majority: that is raftfsm's, and of how keys are kept: that is store's.
//
// The life of a Node:
//
//		New ─► Run ─► blank ──Adopt──► adopting ─► member ─► serving ─► draining ─► Run returns
//		                      (node.json holds the plan)
//
//	  - blank: Raft and Admin answer, KV refuses and says what to do.
//	  - adopting: the plan is on disk; first configurations of all local replicas are being written, and no
//	    raft instance runs, so that a crash here may simply repeat the step.
//	  - member: from here on no replica of this node is ever bootstrapped again. One whose data is gone must not
//	    vote under its old id.
//	  - draining: leaderships are handed over, running calls end, new connections are refused.
//
// Start reading at node.go for the life, kv.go for a request.
package server
