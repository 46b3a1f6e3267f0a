package store

import (
	"github.com/ostraka-db/ostraka/store/internal/arena"
	"github.com/ostraka-db/ostraka/store/internal/hashindex"
)

// Compaction goes in slices: every write moves a few items, nodes or blocks from pages with many holes. The more of the memory
// is holes, the more it moves, so that deleting most of a store does not leave its memory behind. What it does depends on
// memory layout and shows in nothing but memory.

// movesMax bounds a slice.
const movesMax = 16

// compactLocked does one slice.
func (s *Store) compactLocked() {
	for moves := s.movesLocked(); moves > 0; moves-- {
		if !s.moveItemLocked() && !s.index.Compact(owners{s}) && !s.byKey.Compact() && !s.deadlines.Compact() {
			return
		}
	}
}

// movesLocked is 1 and 64 times the share of holes.
func (s *Store) movesLocked() int {
	u := s.items.cells.Usage()
	return min(1+int(64*(u.Cells-u.Used)/max(u.Cells, 1)), movesMax)
}

// moveItemLocked moves one item, if one should.
func (s *Store) moveItemLocked() bool {
	ref, ok := s.items.cells.NextMove()
	if !ok {
		return false
	}
	held := s.items.record(ref)
	hash := s.index.Hash(held.key)
	t := s.tables.of(held.slot)
	if t == nil || s.index.Find(&t.keys, hash, held.key) != ref || s.readingLocked(held.slot) {
		s.items.cells.SkipMove(ref) // kept for a view, or just being read by one
		return true
	}
	cell := s.items.cells.Bytes(ref)
	to, err := s.items.cells.Alloc(len(cell))
	if err != nil {
		s.items.cells.SkipMove(ref)
		return true
	}
	copy(s.items.cells.Bytes(to), cell)
	next := held
	next.ref = to
	s.repointLocked(t, hash, &held, &next)
	s.items.cells.Free(ref)
	return true
}

// owners implements hashindex.Owners.
type owners struct{ *Store }

// Table returns the table that an item in use is in.
func (s owners) Table(ref arena.Ref) *hashindex.Table {
	r := decodeItem(s.items.cells.Bytes(ref))
	return &s.tables.of(r.slot).keys
}

// MemoryStats are the bytes that a store takes, in the order of how they come about. Layout is each replica's own: replicas with
// equal contents have different ones.
type MemoryStats struct {
	Items    int64 // of items in memory, with their headers and padding; without large values
	Index    int64 // of what finds keys, orders them and orders expiry times
	Reserved int64 // of both, with holes and spare pages
	Large    int64 // of values too large to lie with their items
}

// Taken is what the store takes of the system's memory.
func (m MemoryStats) Taken() int64 { return m.Reserved + m.Large }

// MemoryStats returns the figures as they are now.
func (s *Store) MemoryStats() MemoryStats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := MemoryStats{Large: s.items.largeBytes}
	u := s.items.cells.Usage()
	m.Items, m.Reserved = u.Used, u.Resident
	for _, u := range []arena.Usage{s.index.Usage(), s.byKey.Usage(), s.deadlines.Usage()} {
		m.Index += u.Used
		m.Reserved += u.Resident
	}
	return m
}
