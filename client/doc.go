// Package client is the Go client of an Ostraka cluster.
//
//	c, err := client.New(ctx, []string{"127.0.0.1:7400"})
//	if err != nil { … }
//	defer c.Close()
//	_, err = c.Set(ctx, []byte("greeting"), []byte("hello"), client.WithTTL(time.Hour))
//	v, err := c.Get(ctx, []byte("greeting")) // v.Value, v.Version, v.TTL
//
// Any node's address will do as an endpoint: the client fetches the cluster's map from it, and then sends each
// key to the leader of its shard directly. One Client serves a whole process; all methods may be called from
// many goroutines, and a context that ends, ends the call.
//
// # Reads
//
// Reads are linearizable: they see every write that was acknowledged before they began, whoever made it. With
// [Stale], they see some past state from any replica, which costs less and works without a leader. Reads are
// sent again as often as the deadline allows.
//
// # Writes, and the two ways in which they fail
//
// A write that returns nil is on the disks of a majority. A write that fails is one of two things, which are
// never merged:
//
//   - not done: [ErrUnavailable], or an error that says what was wrong with it ([ErrLimit], [ErrInvalid],
//     [ErrNotInteger], …). Nothing was changed. The client has tried again itself until the deadline; the
//     caller may too.
//   - [ErrOutcomeUnknown]: a request was sent, and what became of it could not be learnt: the deadline came first, or
//     the cluster does not know any more. It may have been done, or may yet be. What to do depends on the write: a
//     plain Set or Delete can be repeated if nobody else writes the key; otherwise read the key, or make the write
//     conditional ([IfVersion], [Client.CompareAndSet]), so that a repetition cannot do it twice.
//
// # Exactly once
//
// A write whose answer did not come, because its connection broke, its node fell silent or its leader lost office, is
// sent again by the client until the deadline, and yet done once: the shard knows it by its number, and answers what
// the first sending came to. That holds for every write, an Increment and an Append too, and for a condition that was
// not met, whatever the key holds by then.
//
// A shard keeps a client for an hour after its last write, or shorter where more than 65,536 clients wrote to it
// meanwhile, and for each the results that it waits for: up to 16,384, and 16 MiB for all clients together. Of a Set or
// Delete that returns a previous value of more than 64 KiB it keeps only that it was done. A write that is sent again
// later than that is reported as [ErrOutcomeUnknown]; it is never done twice. What a caller repeats itself is another
// write to the cluster, and so is what it does after its process was started again.
//
// A condition that was not met is an error of its own, [ErrConditionNotMet], so that it cannot be overlooked; as
// a [*ConditionError] it tells the version that the key has.
//
// # Many keys
//
// [Client.MultiGet], [Client.MultiSet] and [Client.MultiDelete] send one request to each node and report for
// each key; they are not atomic. [Client.Scan] merges the shards' keys into one ordered sequence with a page of
// each shard in memory, and is resumed with [After].
//
// # Changes
//
// [Client.Watch] follows the keys of a range: every change once, those of a key in order, over failures of nodes and changes of leaders. A
// [Token] says how far a watch is, and another watch goes on from it. Nodes hold the latest changes only: a watch that is
// too late ends with a [*CompactedError], which tells where to begin again.
//
// # Time
//
// A call ends at its context's deadline, or after [WithTimeout] if it has none. Within it, a read that a node
// leaves unanswered for [WithAttemptTimeout] goes to another replica, a write only if the node says nothing at all;
// retries pause with jitter and draw from one budget ([WithRetryBudget]).
//
// # Inside
//
// The package owns routing, retries and the client's end of sessions (session.go). It refuses to know what nodes do with
// requests: everything it learns comes from answers, and of errors it reads the typed detail (errors.go),
// never the text. Read routes.go for the map and the leaders, then call.go for the way of one operation;
// multi.go and scan.go build on both; watch.go and watchfeed.go follow changes; node.go has the connections, and how the client
// knows that a request has left.
//
// Goroutines: calls run on their callers'. Fetching a newer map has one of its own (routes.go), and each shard that is
// watched two (watchfeed.go), all joined by Close; multi-operations and scans start some that end before they return. A
// Client's mutable state is the pointer to the immutable routes with an atomic leader for each shard, the pool of connections,
// the feeds of its watches, the sessions' numbers and the retry budget, the last four behind mutexes of their own, none held during
// a call.
package client
