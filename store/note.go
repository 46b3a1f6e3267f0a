package store

// KeepHistory makes the store note every change from now on in h, whose earlier contents are dropped: h goes on behind the store's
// version. They are seen once h publishes them. Writer only.
func (s *Store) KeepHistory(h *History) {
	h.Reset(behindVersion(s.version))
	s.history = h
}

// note stages a write that is about to be done. It comes before, since what is written may be part of what the write frees.
func (s *Store) note(op *Op, o *outcome, current *record) {
	c := Change{Kind: ChangeSet, Position: behindVersion(s.version + 1), Time: s.time, Key: op.Key, Value: o.value, ExpiresAt: o.expiresAt}
	c.precededBy(current)
	s.history.stage(&c, o.tail)
}

// noteGone stages the removal of an item, as the change with an index at the next version.
func (s *Store) noteGone(kind ChangeKind, r *record, index uint32) {
	c := Change{Kind: kind, Position: Position{s.version + 1, index}, Time: s.time, Key: r.key}
	c.precededBy(r)
	s.history.stage(&c, nil)
}

// noteReaped stages the removal of the items in due.
func (s *Store) noteReaped() {
	for i, ref := range s.due {
		index := uint32(i)
		if i == len(s.due)-1 {
			index = LastIndex
		}
		r := s.items.record(ref)
		s.noteGone(ChangeExpire, &r, index)
	}
}

func (c *Change) precededBy(r *record) {
	if r != nil {
		c.Existed, c.PreviousVersion, c.Previous = true, r.version, r.value
	}
}
