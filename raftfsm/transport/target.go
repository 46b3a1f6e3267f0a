package transport

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka-db/ostraka/shard"
)

// target is what a Facade keeps about a replica that it sends to.
type target struct {
	replica shard.ReplicaID
	peer    *peer
	// entriesAt is when the last append with entries began, in nanoseconds since the Transport did.
	entriesAt atomic.Int64
}

// targets are as many as raft's configurations name while the Facade lives.
type targets struct {
	mu    sync.RWMutex
	known map[raft.ServerAddress]*target
}

// target finds what is kept about an address, or begins it.
func (f *Facade) target(address raft.ServerAddress) (*target, error) {
	f.targets.mu.RLock()
	to := f.targets.known[address]
	f.targets.mu.RUnlock()
	if to != nil {
		return to, nil
	}
	node, replica, err := ParseAddress(address)
	if err != nil {
		return nil, err
	}
	p, err := f.t.peer(node)
	if err != nil {
		return nil, err
	}
	f.targets.mu.Lock()
	defer f.targets.mu.Unlock()
	if to := f.targets.known[address]; to != nil {
		return to, nil
	}
	if f.targets.known == nil {
		f.targets.known = make(map[raft.ServerAddress]*target)
	}
	to = &target{replica: replica, peer: p}
	f.targets.known[address] = to
	return to, nil
}

// restMin is how long no entries must have been sent to a replica before an append without any may wait for others. Under
// load raft sends those too, now and then, and its next entries wait behind them.
const restMin = 100 * time.Millisecond

// rests tells whether a target has been sent no entries for a while, and notes the sending of some.
func (t *target) rests(now time.Duration, entries int) bool {
	if entries > 0 {
		t.entriesAt.Store(int64(now))
		return false
	}
	return now-time.Duration(t.entriesAt.Load()) >= restMin
}

// Hurry is called before entries are given to raft. An append without any that waits for others to the same node goes now,
// and for a while none waits: raft sends a replica one append at a time, so the entries would wait behind it.
func (f *Facade) Hurry() {
	f.hurriedAt.Store(int64(time.Since(f.t.began)))
	if f.unhurried.Load() == 0 {
		return
	}
	f.eachDialed(func(d *dialed) { d.pipe.outbox.hurry() })
}

// hurried tells whether entries were lately, or are about to be, given to raft.
func (f *Facade) hurried(now time.Duration) bool {
	return now-time.Duration(f.hurriedAt.Load()) < restMin
}

// eachDialed visits the links that are up.
func (f *Facade) eachDialed(visit func(*dialed)) {
	f.targets.mu.RLock()
	defer f.targets.mu.RUnlock()
	for _, to := range f.targets.known {
		if d := to.peer.link.up(); d != nil {
			visit(d)
		}
	}
}

// sender is a replica that sends requests here, as raft's headers spell it.
type sender struct {
	node        shard.NodeID
	id, address []byte // not to be changed
}

// sendersMax bounds what is kept; a group has a handful of replicas.
const sendersMax = 64

type senders struct {
	mu    sync.Mutex
	known map[shard.ReplicaID]sender
}

// of returns a replica of a node.
func (s *senders) of(node shard.NodeID, replica shard.ReplicaID) sender {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.known[replica]; ok && known.node == node {
		return known
	}
	if s.known == nil || len(s.known) >= sendersMax {
		s.known = make(map[shard.ReplicaID]sender)
	}
	made := sender{node, []byte(ServerID(replica)), []byte(Address(node, replica))}
	s.known[replica] = made
	return made
}
