package server

import (
	"errors"
	"maps"
	"sync"

	"github.com/ostraka-db/ostraka/shard"
)

// incarnationLeapMax bounds how far ahead of what is known a node may say that it is in its starts. Incarnations count
// starts of a process, so an honest node comes nowhere near. Nodes don't prove yet who they are, so that whoever
// reaches the port can claim to be one of them: the bound doesn't prevent that, but it keeps one message from setting
// an incarnation that the true node could never outgrow.
const incarnationLeapMax = 1 << 20

// errIncarnationLeap: a node claims more starts than it can have made.
var errIncarnationLeap = errors.New("implausible incarnation")

// addressBook is where this node believes the others listen. It learns from the map and from every handshake;
// of two addresses of a node the one of its later start is true.
type addressBook struct {
	self shard.NodeID
	// changed is called, without mu, after an address changed. It must not block: handshakes wait for it.
	changed func()

	mu sync.RWMutex
	// members are the nodes that may be in the book: those of the plan and of every map seen. They only grow, for
	// while a log is replayed the map goes through its earlier states.
	members map[shard.NodeID]bool
	entries map[shard.NodeID]bookEntry
}

// newAddressBook begins with what the node last knew.
func newAddressBook(self shard.NodeID, known map[shard.NodeID]bookEntry, changed func()) *addressBook {
	b := &addressBook{self: self, changed: changed, members: make(map[shard.NodeID]bool), entries: make(map[shard.NodeID]bookEntry)}
	for id, e := range known {
		b.members[id], b.entries[id] = true, e
	}
	return b
}

// setSelf notes where this node itself listens: it alone knows.
func (b *addressBook) setSelf(address string, incarnation uint64) {
	b.mu.Lock()
	moved := b.putLocked(b.self, address, incarnation)
	b.mu.Unlock()
	if moved {
		b.changed()
	}
}

// learn notes what somebody says about where a node listens since the given start of its. Who is no member, or is
// this node, and what can't be true, is passed over.
func (b *addressBook) learn(node shard.NodeID, address string, incarnation uint64) {
	if node == b.self || checkReachable("address", address) != nil {
		return
	}
	b.mu.Lock()
	known, ok := b.entries[node]
	news := b.members[node] && (!ok || incarnation > known.Incarnation) && plausible(incarnation, known.Incarnation)
	moved := news && b.putLocked(node, address, incarnation)
	b.mu.Unlock()
	if moved {
		b.changed()
	}
}

// plausible tells whether a node last known from one start may be in another now.
func plausible(claimed, known uint64) bool {
	return claimed <= known || claimed-known <= incarnationLeapMax
}

// learnMap notes the members and addresses of a map. The cluster has agreed on it, so its incarnations are not judged.
func (b *addressBook) learnMap(m *shard.Map) {
	moved := false
	b.mu.Lock()
	for _, n := range m.Nodes() {
		b.members[n.ID] = true
		if known, ok := b.entries[n.ID]; n.ID != b.self && (!ok || n.Incarnation > known.Incarnation) {
			moved = b.putLocked(n.ID, n.Address, n.Incarnation) || moved
		}
	}
	b.mu.Unlock()
	if moved {
		b.changed()
	}
}

// putLocked enters news, and tells whether the address is another than before.
func (b *addressBook) putLocked(node shard.NodeID, address string, incarnation uint64) (moved bool) {
	moved = b.entries[node].Address != address
	b.entries[node] = bookEntry{Address: address, Incarnation: incarnation}
	return moved
}

// isMember implements transport's Known.
func (b *addressBook) isMember(node shard.NodeID) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.members[node]
}

// address implements transport's Resolve.
func (b *addressBook) address(node shard.NodeID) (string, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	e, ok := b.entries[node]
	return e.Address, ok
}

func (b *addressBook) snapshot() map[shard.NodeID]bookEntry {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return maps.Clone(b.entries)
}
