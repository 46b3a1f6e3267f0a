package store

import (
	"bytes"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// Apply carries out one op on a key of slot. A write steps the version counter by one and gives the key that
// version; a refused op and a lost condition change nothing. Writer only.
func (s *Store) Apply(slot uint16, op *Op) Result {
	valueBytesMax := s.valueBytesMax(op)
	if status := s.admit(op, valueBytesMax); status != StatusOK {
		return Result{Status: status}
	}
	t := s.tables.of(slot)
	if t == nil {
		return Result{Status: StatusNotOwned}
	}
	hash := s.index.Hash(op.Key)
	var held record // it may have expired
	var current *record
	if ref := s.index.Find(&t.keys, hash, op.Key); ref != 0 {
		held = s.items.record(ref)
		if !held.expired(s.time) {
			current = &held
		}
	}
	result := describe(op, current)
	o := workOut(op, current, s.time, valueBytesMax, s.digits[:0])
	result.Status, result.Number = o.status, o.number
	switch o.effect {
	case effectWrite:
		if !s.admitsGrowth(op, &o, &held) {
			result.Status, result.Number = StatusFull, 0
			return result
		}
		if s.history != nil {
			s.note(op, &o, current)
		}
		s.write(t, hash, &held, record{key: op.Key, value: o.value, expiresAt: o.expiresAt, slot: slot}, o.tail)
		result.Version = s.version
	case effectRemove:
		if s.history != nil {
			s.noteGone(ChangeDelete, current, LastIndex)
		}
		s.lock()
		s.version++
		s.noteWriteLocked(t, slot, hash, op.Key)
		s.removeLocked(t, hash, current)
		s.compactLocked()
		s.mu.Unlock()
		result.Version = s.version
	}
	return result
}

// admitsGrowth reports whether limits leave room for what a write adds.
func (s *Store) admitsGrowth(op *Op, o *outcome, held *record) bool {
	keys, size := int64(1), int64(len(op.Key)+len(o.value)+len(o.tail))
	if held.ref != 0 {
		keys, size = 0, size-int64(held.bytes())
	}
	return s.limits.admit(s.stats, keys, size)
}

func (s *Store) valueBytesMax(op *Op) int {
	if op.ValueBytesMax > 0 {
		return min(op.ValueBytesMax, s.limits.ValueBytesMax)
	}
	return s.limits.ValueBytesMax
}

// admit refuses what is wrong whatever the key's state is.
func (s *Store) admit(op *Op, valueBytesMax int) Status {
	switch {
	case len(op.Key) == 0 || op.Validate() != nil:
		return StatusInvalid
	case len(op.Key) > s.limits.KeyBytesMax || len(op.Value) > valueBytesMax:
		return StatusTooLarge
	}
	return StatusOK
}

// describe fills in the key's state before the op, which is also its state after an op that writes nothing.
func describe(op *Op, current *record) Result {
	if current == nil {
		return Result{}
	}
	result := Result{Version: current.version, Existed: true, PreviousVersion: current.version}
	if op.ReturnPrevious {
		result.HasPrevious, result.Previous = true, bytes.Clone(current.value)
	}
	return result
}

// Reap removes at most limit keys of slot whose expiry time is at most cutoff and at most the store's time,
// in order of (expiry time, key), and returns how many. It steps the version counter by one if there were
// any. Slot, cutoff and limit come from the log, so that all replicas remove the same. It holds readers
// up for O(limit). Writer only.
func (s *Store) Reap(slot uint16, cutoff Time, limit int) int {
	t := s.tables.of(slot)
	if t == nil || limit <= 0 {
		return 0
	}
	s.due = s.due[:0]
	s.dueLocked(slot, min(cutoff, s.time), limit, func(ref arena.Ref) { s.due = append(s.due, ref) })
	if len(s.due) == 0 {
		return 0
	}
	if s.history != nil {
		s.noteReaped()
	}
	s.lock()
	defer s.mu.Unlock()
	s.version++
	for _, ref := range s.due {
		r := s.items.record(ref)
		s.removeLocked(t, s.index.Hash(r.key), &r)
	}
	s.compactLocked()
	return len(s.due)
}
