package storage

import (
	"bytes"
	"sync"

	"github.com/hashicorp/raft"
)

// Memory stands in for the bolt files of one node in a simulation, and outlives the Node as files would. A crash loses
// nothing of it, since a write that returned counts as durable.
type Memory struct {
	mu      sync.Mutex
	entries map[identity]*raft.InmemStore
	meta    memoryRecords
}

// NewMemory returns an empty one.
func NewMemory() *Memory {
	return &Memory{entries: make(map[identity]*raft.InmemStore), meta: memoryRecords{values: make(map[string][]byte)}}
}

// Clone returns a copy: what a process that ends now leaves behind, whatever its goroutines still do.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMemory()
	for who, store := range m.entries {
		c.entries[who] = cloneEntries(store)
	}
	m.meta.mu.Lock()
	defer m.meta.mu.Unlock()
	for key, value := range m.meta.values {
		c.meta.values[key] = bytes.Clone(value)
	}
	return c
}

func cloneEntries(store *raft.InmemStore) *raft.InmemStore {
	c := raft.NewInmemStore()
	first, _ := store.FirstIndex() // never an error
	last, _ := store.LastIndex()
	for i := first; i <= last && i > 0; i++ {
		var e raft.Log
		if store.GetLog(i, &e) == nil {
			_ = c.StoreLog(&e)
		}
	}
	return c
}

func (m *Memory) openEntries(who identity) (entryStore, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	store := m.entries[who]
	if store == nil {
		store = raft.NewInmemStore()
		m.entries[who] = store
	}
	return memoryEntries{InmemStore: store}, nil
}

func (m *Memory) removeEntries(who identity) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, who)
	return nil
}

func (m *Memory) records() recordStore { return &m.meta }

func (m *Memory) close() error { return nil }

// memoryEntries is a log in memory.
type memoryEntries struct {
	*raft.InmemStore
	durable
}

func (e memoryEntries) compact(first, to uint64) error   { return e.DeleteRange(first, to) }
func (e memoryEntries) truncate(from, last uint64) error { return e.DeleteRange(from, last) }
func (e memoryEntries) clear(first, last uint64) error   { return e.DeleteRange(first, last) }

// StoreLogs copies the entries: raft's own are parts of futures that would be kept alive.
func (e memoryEntries) StoreLogs(entries []*raft.Log) error {
	copies := make([]*raft.Log, len(entries))
	for i, entry := range entries {
		c := *entry
		copies[i] = &c
	}
	return e.InmemStore.StoreLogs(copies)
}

// Close keeps everything: the next open finds it.
func (memoryEntries) Close() error { return nil }

// memoryRecords is the second copy of the records.
type memoryRecords struct {
	mu     sync.Mutex
	values map[string][]byte
}

func (r *memoryRecords) name() string { return "memory" }

func (r *memoryRecords) get(who identity, name string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.values[recordKey(who, name)]), nil
}

func (r *memoryRecords) set(who identity, name string, value []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.values[recordKey(who, name)] = bytes.Clone(value)
	return nil
}
