package store

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
	held := t.records[string(op.Key)] // it may have expired
	current := held.live(s.time)
	result := describe(op, current)
	o := workOut(op, current, s.time, valueBytesMax)
	result.Status, result.Number = o.status, o.number
	switch o.effect {
	case effectWrite:
		s.write(slot, t, held, op.Key, o)
		result.Version = s.version
	case effectRemove:
		s.mu.Lock()
		s.version++
		s.handOverLocked(slot, t)
		s.removeLocked(slot, t, current)
		s.mu.Unlock()
		result.Version = s.version
	}
	return result
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
		result.HasPrevious, result.Previous = true, current.value
	}
	return result
}

// write gives a key a new value and expiry time at the next version. held as in putLocked.
func (s *Store) write(slot uint16, t *table, held *record, key []byte, o outcome) {
	version := s.version + 1
	hash := hashItem(key, o.value, version, o.expiresAt)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version = version
	s.handOverLocked(slot, t)
	s.putLocked(slot, t, held, key, record{value: o.value, version: version, expiresAt: o.expiresAt, hash: hash})
}

// putLocked inserts or replaces a record, of which next brings all but the key. held is the record that the table has of
// the key, nil if none; it may be an expired one that nobody reaped yet.
func (s *Store) putLocked(slot uint16, t *table, held *record, key []byte, next record) {
	r := held
	if r == nil {
		if t.records == nil {
			t.records = make(map[string]*record)
		}
		r = &record{key: string(key)}
		t.records[r.key] = r
		s.index.Set(r)
	} else {
		t.stats.subtract(r)
		s.stats.subtract(r)
	}
	s.moveDeadlineLocked(slot, t, r.key, r.expiresAt, next.expiresAt)
	next.key = r.key
	*r = next
	t.stats.add(r)
	s.stats.add(r)
}

func (s *Store) removeLocked(slot uint16, t *table, r *record) {
	delete(t.records, r.key)
	s.index.Delete(r)
	s.moveDeadlineLocked(slot, t, r.key, r.expiresAt, 0)
	t.stats.subtract(r)
	s.stats.subtract(r)
}

// moveDeadlineLocked moves a key to another expiry time, and its slot with it where the slot's earliest changes.
func (s *Store) moveDeadlineLocked(slot uint16, t *table, key string, from, to Time) {
	if from == to {
		return
	}
	before := t.nextExpiry()
	t.moveDeadline(key, from, to)
	after := t.nextExpiry()
	if before == after {
		return
	}
	if before != 0 {
		s.schedule.Delete(slotDeadline{before, slot})
	}
	if after != 0 {
		s.schedule.Set(slotDeadline{after, slot})
	}
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
	keys := t.due(min(cutoff, s.time), limit)
	if len(keys) == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.handOverLocked(slot, t)
	for _, key := range keys {
		s.removeLocked(slot, t, t.records[key])
	}
	return len(keys)
}
