package store

// Grows reports whether an op could make the store take more memory, judged by what it holds at this moment: a key that was not
// there, or a longer value. Versions, expiry times (16 bytes at most) and the digits of counters that exist don't count, and an op
// whose condition does not hold takes nothing. It is for whoever has to refuse growth before an op is logged; writes that are on their way
// already may change the answer.
func (s *Store) Grows(slot uint16, op *Op) bool {
	switch op.Kind {
	case OpDelete, OpExpire, OpPersist, OpTouch:
		return false
	case OpCompareAndSet:
		return len(op.Value) > len(op.Old)
	}
	m, presence := s.Inspect(slot, op.Key)
	switch op.Condition {
	case CondAbsent:
		if presence == Present {
			return false
		}
	case CondExists:
		if presence != Present {
			return false
		}
	case CondVersion:
		if version := m.Version; presence == Present && version != op.IfVersion || presence != Present && op.IfVersion != 0 {
			return false
		}
	}
	switch {
	case presence == Absent:
		return true
	case op.Kind == OpIncrement:
		return false
	case op.Kind == OpAppend && presence == Present:
		return len(op.Value) > 0
	}
	return len(op.Value) > m.ValueBytes // of one that has expired too: its bytes are there until it is reaped
}
