package transport

import (
	"sync"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// agreement is how far a replica's log is known to be its leader's. Commit indexes that come with heartbeats are lowered to
// it, as those of appends are to the entries that the append speaks of (lowerCommit), and for the same reason: raft applies up
// to a commit index whatever its own log holds.
//
// raft's answer to an append says that both logs are alike up to the append's last entry. They stay so as long as the term
// does: only the leader of a newer term makes raft cut its log, and after that it refuses this leader's heartbeats. An install
// of this leader's snapshot leaves nothing but this leader's entries. It is not known of another life of the replica, whose raft
// may have lost what was not durable: so it belongs to the Facade.
type agreement struct {
	mu    sync.Mutex
	from  shard.ReplicaID
	term  uint64
	index uint64
}

// note takes a successful answer to an append.
func (a *agreement) note(request *ostrakapb.Envelope) {
	m := request.GetAppend()
	if m == nil {
		return
	}
	from, term, index := shard.ReplicaID(request.GetFromReplica()), m.GetTerm(), m.GetPrevLogEntry()+uint64(len(m.GetEntries()))
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case term > a.term:
		a.from, a.term, a.index = from, term, index
	case term == a.term && from == a.from:
		a.index = max(a.index, index)
	}
}

// lower returns the part of a leader's commit index that this replica may apply.
func (a *agreement) lower(from shard.ReplicaID, term, commit uint64) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if term != a.term || from != a.from {
		return 0
	}
	return min(commit, a.index)
}
