package storage

import (
	"bytes"
	"sync"

	"github.com/hashicorp/raft"
)

// Memory is a backend for simulation: logs and records of one node that outlive the Node, as files would. A
// crash loses nothing of it, since a write that returned counts as durable.
type Memory struct {
	mu      sync.Mutex
	entries map[identity]*raft.InmemStore
	copies  [2]memoryRecords
}

// NewMemory returns an empty one.
func NewMemory() *Memory {
	m := &Memory{entries: make(map[identity]*raft.InmemStore)}
	m.copies[0] = memoryRecords{file: "votes", values: make(map[string][]byte)}
	m.copies[1] = memoryRecords{file: "meta", values: make(map[string][]byte)}
	return m
}

func (m *Memory) openEntries(who identity) (entryStore, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	store := m.entries[who]
	if store == nil {
		store = raft.NewInmemStore()
		m.entries[who] = store
	}
	return memoryEntries{store}, nil
}

func (m *Memory) removeEntries(who identity) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, who)
	return nil
}

func (m *Memory) recordCopies() [2]recordStore { return [2]recordStore{&m.copies[0], &m.copies[1]} }

func (m *Memory) close() error { return nil }

// memoryEntries is a log in memory.
type memoryEntries struct{ *raft.InmemStore }

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

// memoryRecords is one copy of the records.
type memoryRecords struct {
	file   string
	mu     sync.Mutex
	values map[string][]byte
}

func (r *memoryRecords) name() string { return r.file }

func (r *memoryRecords) get(key string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.values[key]), nil
}

func (r *memoryRecords) set(key string, value []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.values[key] = bytes.Clone(value)
	return nil
}
