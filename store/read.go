package store

import "github.com/ostraka-db/ostraka/store/internal/arena"

// Meta is what is known of a key besides its value.
type Meta struct {
	Version    Version
	ExpiresAt  Time // 0: does not expire
	ValueBytes int  // length of the value
}

// Presence tells a key that is missing from one that is only expired.
type Presence uint8

const (
	Absent  Presence = iota // no such key, or it has been reaped
	Present                 // not expired by the store's time
	Expired                 // expired by the store's time and not yet reaped; reads as missing
)

// Get appends the value of a key to dst and returns it. ok is false where the key is missing, expired or
// its slot not owned; then dst comes back as it was. A caller that must not mistake a slot that moved
// away for a missing key asks Owns after a miss, not before. Nothing is allocated where dst has room.
func (s *Store) Get(slot uint16, key, dst []byte) (value []byte, m Meta, ok bool) {
	hash := s.index.Hash(key)
	s.mu.RLock()
	t := s.tables.of(slot)
	if t == nil {
		s.mu.RUnlock()
		return dst, Meta{}, false
	}
	if sampled() {
		s.noteReadLocked(t, slot, hash, key)
	}
	r, presence := s.lookUpLocked(t, hash, key)
	if presence != Present {
		s.mu.RUnlock()
		return dst, Meta{}, false
	}
	m = r.meta()
	if r.large != 0 { // never modified, so it is copied while others go on
		s.mu.RUnlock()
		return append(dst, r.value...), m, true
	}
	value = append(dst, r.value...)
	s.mu.RUnlock()
	return value, m, true
}

// lookUpLocked returns the item of a key, valid while the lock is held, unless it is absent.
func (s *Store) lookUpLocked(t *table, hash uint64, key []byte) (record, Presence) {
	ref := s.index.Find(&t.keys, hash, key)
	if ref == 0 {
		return record{}, Absent
	}
	r := s.items.record(ref)
	if r.expired(s.time) {
		return r, Expired
	}
	return r, Present
}

// Peek is Get without the value.
func (s *Store) Peek(slot uint16, key []byte) (Meta, bool) {
	if sampled() {
		s.mu.RLock()
		if t := s.tables.of(slot); t != nil {
			s.noteReadLocked(t, slot, s.index.Hash(key), key)
		}
		s.mu.RUnlock()
	}
	m, presence := s.Inspect(slot, key)
	if presence != Present {
		return Meta{}, false
	}
	return m, true
}

// Inspect is Peek that also shows a key which has expired and is still held. A Present key whose ExpiresAt
// lies behind the caller's own time is about to expire, but has not: another replica, or this one after a change
// of leader, would still serve it. The caller commits a time at or past ExpiresAt before it reports the key as gone.
func (s *Store) Inspect(slot uint16, key []byte) (Meta, Presence) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.tables.of(slot)
	if t == nil {
		return Meta{}, Absent
	}
	r, presence := s.lookUpLocked(t, s.index.Hash(key), key)
	if presence == Absent {
		return Meta{}, Absent
	}
	return r.meta(), presence
}

// DueKeysMax bounds the count that Due takes.
const DueKeysMax = 1024

// Due returns the slot that holds the earliest expiry time, if that is at most t, and how many of its keys
// have one at most t, counted up to DueKeysMax. t may be ahead of the store's time.
func (s *Store) Due(t Time) (slot uint16, keys int, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	first, ok := s.schedule.Min()
	if !ok || first.at > t {
		return 0, 0, false
	}
	s.dueLocked(first.slot, t, DueKeysMax, func(arena.Ref) { keys++ })
	return first.slot, keys, true
}

// NextExpiry returns the earliest expiry time in the store, of keys already expired too; ok is false if no key has one.
func (s *Store) NextExpiry() (t Time, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	first, ok := s.schedule.Min()
	return first.at, ok
}
