package server

import (
	"maps"
	"sync"

	"github.com/ostraka-db/ostraka/shard"
)

// addressBook is where this node believes the others listen. It learns from the map and from every handshake;
// of two addresses of a node the one of its later start is true.
type addressBook struct {
	mu      sync.RWMutex
	entries map[shard.NodeID]bookEntry
	// changed is called, without mu, after an entry changed.
	changed func()
}

func newAddressBook(known map[shard.NodeID]bookEntry, changed func()) *addressBook {
	entries := maps.Clone(known)
	if entries == nil {
		entries = make(map[shard.NodeID]bookEntry)
	}
	return &addressBook{entries: entries, changed: changed}
}

// learn notes where a node listens since the given start of its.
func (b *addressBook) learn(node shard.NodeID, address string, incarnation uint64) {
	if node == "" || address == "" {
		return
	}
	b.mu.Lock()
	known, ok := b.entries[node]
	news := !ok || incarnation > known.Incarnation
	if news {
		b.entries[node] = bookEntry{Address: address, Incarnation: incarnation}
	}
	b.mu.Unlock()
	if news && known.Address != address {
		b.changed()
	}
}

// learnMap notes the addresses of a map.
func (b *addressBook) learnMap(m *shard.Map) {
	for _, n := range m.Nodes() {
		b.learn(n.ID, n.Address, n.Incarnation)
	}
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
