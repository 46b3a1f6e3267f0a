package store

import (
	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// items are the cells that hold a store's items, and the values too large to lie in one.
type items struct {
	cells *arena.Arena

	// large holds the large values by number, from 1. A value is replaced, never modified: who has it may read on without
	// the lock. They are few and lie on the Go heap.
	large      [][]byte
	largeFree  []uint32
	largeBytes int64
}

// Key implements hashindex.Keys and order.Keys.
func (m *items) Key(ref arena.Ref) []byte { return keyOf(m.cells.Bytes(ref)) }

func (m *items) dueKey(ref arena.Ref) []byte { return dueKeyOf(m.cells.Bytes(ref)) }

// dueKeys are the keys of the order of reaping: slot, expiry time, key.
type dueKeys struct{ *items }

// Key implements order.Keys.
func (m dueKeys) Key(ref arena.Ref) []byte { return m.dueKey(ref) }

// record returns an item in use.
func (m *items) record(ref arena.Ref) record {
	r := decodeItem(m.cells.Bytes(ref))
	r.ref = ref
	m.load(&r)
	return r
}

// load fills in a value that is large.
func (m *items) load(r *record) {
	if r.large != 0 {
		r.value = m.large[r.large]
	}
}

// keepLarge gives a value a number, and keeps the slice itself.
func (m *items) keepLarge(value []byte) uint32 {
	m.largeBytes += int64(len(value))
	if n := len(m.largeFree); n > 0 {
		number := m.largeFree[n-1]
		m.largeFree = m.largeFree[:n-1]
		m.large[number] = value
		return number
	}
	if len(m.large) == 0 {
		m.large = append(m.large, nil)
	}
	m.large = append(m.large, value)
	return uint32(len(m.large) - 1)
}

func (m *items) dropLarge(number uint32) {
	m.largeBytes -= int64(len(m.large[number]))
	m.large[number] = nil
	m.largeFree = append(m.largeFree, number)
}

// free gives back an item's cell, and its value where that is large.
func (m *items) free(ref arena.Ref) {
	if r := decodeItem(m.cells.Bytes(ref)); r.large != 0 {
		m.dropLarge(r.large)
	}
	m.cells.Free(ref)
}
