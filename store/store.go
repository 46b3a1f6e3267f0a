package store

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"

	"github.com/ostraka-db/ostraka/store/internal/arena"
	"github.com/ostraka-db/ostraka/store/internal/hashindex"
	"github.com/ostraka-db/ostraka/store/internal/order"
)

// Store is the memory of one replica. See the package comment for who may call what.
type Store struct {
	limits Limits

	// mu guards all below. Only the writer modifies, so it reads without the lock; views is the
	// exception, since View.Close comes from elsewhere.
	mu      sync.RWMutex
	time    Time
	version Version // of the latest write; >= that of every record
	owned   slotSet
	tables  tableSet // of the owned slots, and no others

	items     *items
	index     *hashindex.Index // of the tables' items, by slot and hash of the key
	byKey     *order.Tree      // of all items
	deadlines *order.Tree      // of the items that expire, by slot, expiry time and key

	// schedule holds (table.nextExpiry, slot) of every table that has one.
	schedule *btree.BTreeG[slotDeadline]

	stats Stats   // the sum over tables
	views []*View // open, in order of Freeze

	// hot and largest have locks of their own; reads is of all slots, see slotUse.
	reads   atomic.Uint64
	hot     sketch
	largest largest

	// The writer's own, beside the lock.
	writesSeen uint64
	scratch    []byte      // of the item being written
	digits     [20]byte    // of the number being written
	due        []arena.Ref // of the items being reaped
	history    *History    // where changes are noted; nil: nowhere
}

// slotDeadline is a slot's place in the order of earliest expiry.
type slotDeadline struct {
	at   Time
	slot uint16
}

func slotDeadlineLess(a, b slotDeadline) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	return a.slot < b.slot
}

// lockSpins is how often the writer tries before it lets itself be put to sleep: a few microseconds, which is longer than readers
// hold the lock, and much less than being woken again takes.
const lockSpins = 500

// lock takes mu for the writer.
func (s *Store) lock() {
	for range lockSpins {
		if s.mu.TryLock() {
			return
		}
	}
	s.mu.Lock()
}

// New returns an empty store that owns no slot. Limits that don't validate are a programming error and panic.
func New(limits Limits) *Store {
	return newStore(limits, arena.Config{})
}

// newStore is New with the bounds of the items' memory, which tests narrow.
func newStore(limits Limits, config arena.Config) *Store {
	if err := limits.Validate(); err != nil {
		panic(err)
	}
	held := &items{cells: arena.New(itemClasses, config)}
	return &Store{
		limits:    limits,
		items:     held,
		index:     hashindex.New(held),
		byKey:     order.New(held),
		deadlines: order.New(dueKeys{held}),
		schedule:  btree.NewBTreeGOptions(slotDeadlineLess, btree.Options{NoLocks: true, Degree: 8}),
	}
}

// Limits returns what the store was built with.
func (s *Store) Limits() Limits {
	return s.limits
}

// Own makes the store the owner of slots, empty where it did not own them before. A slot past SlotCount
// panics. Writer only.
func (s *Store) Own(slots ...uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slot := range slots {
		if slot >= SlotCount {
			panic(fmt.Sprintf("store: slot %d, want 0..%d", slot, SlotCount-1))
		}
		if s.tables.of(slot) == nil {
			s.tables.set(slot, new(table))
			s.owned.add(slot)
		}
	}
}

// Disown drops a slot with all its keys; the version counter stays. Open views keep what they saw. It
// holds readers up for O(keys of the slot). Writer only.
func (s *Store) Disown(slot uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tables.of(slot)
	if t == nil {
		return
	}
	for from := uint64(0); ; {
		from = s.index.Refs(&t.keys, from, disownSlice, func(ref arena.Ref) { s.forgetLocked(ref) })
		if from == 0 {
			break
		}
	}
	if t.nextExpiry != 0 {
		s.schedule.Delete(slotDeadline{t.nextExpiry, slot})
	}
	s.index.Clear(&t.keys)
	s.tables.set(slot, nil)
	s.owned.remove(slot)
}

// disownSlice is how many keys Disown takes from a table between two looks at it.
const disownSlice = 1024

// Owns reports whether the store owns slot.
func (s *Store) Owns(slot uint16) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.owned.has(slot)
}

// OwnedSlots returns the owned slots in ascending order.
func (s *Store) OwnedSlots() []uint16 {
	s.mu.RLock()
	owned := s.owned
	s.mu.RUnlock()
	return owned.list()
}

// SetTime moves the store's time forward to t; an earlier t changes nothing. Writer only.
func (s *Store) SetTime(t Time) {
	if t <= s.time {
		return
	}
	s.lock()
	s.time = t
	s.mu.Unlock()
}

// Time returns the store's time, 0 before the first SetTime.
func (s *Store) Time() Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.time
}

// RaiseVersion lifts the write counter to v where it is lower. A slot that moves in brings versions of its
// former shard's counter; without raising ours, a later write could repeat one of them. Writer only.
func (s *Store) RaiseVersion(v Version) {
	if v <= s.version {
		return
	}
	s.mu.Lock()
	s.version = v
	s.mu.Unlock()
}

// Version returns the write counter: the version of the latest write.
func (s *Store) Version() Version {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.version
}

// Stats returns the figures of the whole store.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.stats
}

// SlotStats returns the figures of one slot, zeros if it is not owned.
func (s *Store) SlotStats(slot uint16) Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if t := s.tables.of(slot); t != nil {
		return t.stats
	}
	return Stats{}
}

// Checksum returns Stats().Checksum. Replicas compare it after the same log entry.
func (s *Store) Checksum() uint64 {
	return s.Stats().Checksum
}
