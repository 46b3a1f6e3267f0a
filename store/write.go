package store

import (
	"fmt"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// write gives a key a new value, next.value followed by tail, and expiry time at the next version. held is the item that the table
// has of the key, with no ref if there is none; it may be an expired one that nobody reaped yet.
func (s *Store) write(t *table, hash uint64, held *record, next record, tail []byte) {
	next.version = s.version + 1
	item := s.compose(held, &next, tail)
	checksum := next.checksum()
	var heldChecksum uint64
	if held.ref != 0 {
		heldChecksum = held.checksum()
	}
	s.lock()
	defer s.mu.Unlock()
	s.version = next.version
	if held.ref != 0 {
		t.stats.subtract(held, heldChecksum)
		s.stats.subtract(held, heldChecksum)
	}
	t.stats.add(&next, checksum)
	s.stats.add(&next, checksum)
	s.noteWriteLocked(t, next.slot, hash, next.key)
	s.largest.offer(next.slot, next.key, int64(next.bytes()))
	s.putLocked(t, hash, held, &next, item)
	s.compactLocked()
}

// compose returns the bytes of an item, in scratch, and makes next.value its whole value: in scratch, too, or where it is large a
// slice of its own, whose number putLocked fills in. Nothing else changes.
func (s *Store) compose(held, next *record, tail []byte) []byte {
	head := next.value
	length := len(head) + len(tail)
	flags := next.flags(length)
	if flags&flagLarge == 0 {
		b := next.appendHeader(s.scratch[:0], flags, length)
		b = append(b, next.key...)
		at := len(b)
		b = append(b, head...)
		s.scratch = append(b, tail...)
		next.value = s.scratch[at:]
		return s.scratch
	}
	if untouched := held.large != 0 && len(tail) == 0 && len(head) == len(held.value) && &head[0] == &held.value[0]; !untouched {
		next.value = make([]byte, length)
		copy(next.value[copy(next.value, head):], tail)
	}
	s.scratch = append(next.appendHeader(s.scratch[:0], flags, length), next.key...)
	return s.scratch
}

// putLocked inserts an item or replaces held.
func (s *Store) putLocked(t *table, hash uint64, held, next *record, item []byte) {
	if item[0]&flagLarge != 0 {
		next.large = s.items.keepLarge(next.value)
		setLarge(item, next.large)
	}
	if held.ref == 0 {
		next.ref = s.allocLocked(len(item))
		copy(s.items.cells.Bytes(next.ref), item)
		must(s.index.Insert(&t.keys, hash, next.ref))
		must(s.byKey.Insert(next.key, next.ref))
		s.addDeadlineLocked(t, next)
		return
	}
	cell := s.items.cells.Bytes(held.ref)
	if s.items.cells.Sizes().Fit(len(item)) == len(cell) && s.viewThatNeedsLocked(held, len(s.views)) == nil {
		next.ref = held.ref
		if next.expiresAt != held.expiresAt {
			s.removeDeadlineLocked(t, held)
		}
		if held.large != 0 {
			s.items.dropLarge(held.large)
		}
		expiresAt := held.expiresAt
		copy(cell, item)
		if next.expiresAt != expiresAt {
			s.addDeadlineLocked(t, next)
		}
		return
	}
	next.ref = s.allocLocked(len(item))
	copy(s.items.cells.Bytes(next.ref), item)
	s.repointLocked(t, hash, held, next)
	s.supersedeLocked(held)
}

// repointLocked makes next, which has a place, take held's in all indexes.
func (s *Store) repointLocked(t *table, hash uint64, held, next *record) {
	s.index.Replace(&t.keys, hash, held.key, next.ref)
	s.byKey.Replace(held.key, next.ref)
	switch {
	case next.expiresAt != held.expiresAt:
		s.removeDeadlineLocked(t, held)
		s.addDeadlineLocked(t, next)
	case next.expiresAt != 0:
		s.deadlines.Replace(s.items.dueKey(held.ref), next.ref)
	}
}

// removeLocked takes an item out.
func (s *Store) removeLocked(t *table, hash uint64, r *record) {
	checksum := r.checksum()
	t.stats.subtract(r, checksum)
	s.stats.subtract(r, checksum)
	s.index.Remove(&t.keys, hash, r.key)
	s.byKey.Remove(r.key)
	s.removeDeadlineLocked(t, r)
	s.supersedeLocked(r)
}

// forgetLocked is removeLocked but for the table, which goes as a whole.
func (s *Store) forgetLocked(ref arena.Ref) {
	r := s.items.record(ref)
	s.stats.subtract(&r, r.checksum())
	s.byKey.Remove(r.key)
	if r.expiresAt != 0 {
		s.deadlines.Remove(s.items.dueKey(ref))
	}
	s.supersedeLocked(&r)
}

// supersedeLocked ends an item that no index names any more: it is freed, unless a view still needs it.
func (s *Store) supersedeLocked(r *record) {
	if v := s.viewThatNeedsLocked(r, len(s.views)); v != nil {
		v.keepLocked(r)
		return
	}
	s.items.free(r.ref)
}

// allocLocked returns a cell. admitsGrowth keeps data and overhead well below what an arena can address, so only items kept for
// views can fill it: then views give way, and their readers are told.
func (s *Store) allocLocked(bytes int) arena.Ref {
	ref, err := s.items.cells.Alloc(bytes)
	if err != nil {
		s.breakViewsLocked()
		ref, err = s.items.cells.Alloc(bytes)
		must(err)
	}
	return ref
}

// must panics where an index or arena is full although Limits keep it from that.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("store: %v", err))
	}
}
