package store

import (
	"encoding/binary"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// dueFrom returns the place of the first item of slot in the order of reaping.
func dueFrom(slot uint16) (from [2]byte) {
	binary.BigEndian.PutUint16(from[:], slot)
	return from
}

// dueLocked calls fn for at most limit items of slot whose expiry time is at most cutoff, in order of (expiry time, key).
// The writer needs no lock for it.
func (s *Store) dueLocked(slot uint16, cutoff Time, limit int, fn func(arena.Ref)) {
	from := dueFrom(slot)
	s.deadlines.Ascend(from[:], func(refs []arena.Ref) bool {
		for _, ref := range refs {
			r := decodeItem(s.items.cells.Bytes(ref))
			if r.slot != slot || r.expiresAt > cutoff || limit == 0 {
				return false
			}
			fn(ref)
			limit--
		}
		return true
	})
}

// addDeadlineLocked puts an item with an expiry time in its place, and its slot where the slot's earliest changes.
func (s *Store) addDeadlineLocked(t *table, r *record) {
	if r.expiresAt == 0 {
		return
	}
	must(s.deadlines.Insert(s.items.dueKey(r.ref), r.ref))
	if t.nextExpiry == 0 || r.expiresAt < t.nextExpiry {
		s.rescheduleLocked(t, r.slot, r.expiresAt)
	}
}

// removeDeadlineLocked undoes addDeadlineLocked while the item is as it was.
func (s *Store) removeDeadlineLocked(t *table, r *record) {
	if r.expiresAt == 0 {
		return
	}
	s.deadlines.Remove(s.items.dueKey(r.ref))
	if r.expiresAt == t.nextExpiry {
		s.rescheduleLocked(t, r.slot, s.earliestOfLocked(r.slot))
	}
}

// earliestOfLocked returns the earliest expiry time of a slot, 0 if there is none.
func (s *Store) earliestOfLocked(slot uint16) Time {
	from := dueFrom(slot)
	ref := s.deadlines.First(from[:])
	if ref == 0 {
		return 0
	}
	r := decodeItem(s.items.cells.Bytes(ref))
	if r.slot != slot {
		return 0
	}
	return r.expiresAt
}

func (s *Store) rescheduleLocked(t *table, slot uint16, to Time) {
	if to == t.nextExpiry {
		return
	}
	if t.nextExpiry != 0 {
		s.schedule.Delete(slotDeadline{t.nextExpiry, slot})
	}
	if to != 0 {
		s.schedule.Set(slotDeadline{to, slot})
	}
	t.nextExpiry = to
}
