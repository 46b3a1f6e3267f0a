//go:build knownbad

package store

// FlipBit flips a bit of a key's value where it lies, as a fault of memory does, and says whether there was one. For tests of who must
// find it.
func (s *Store) FlipBit(slot uint16, key []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tables.of(slot)
	if t == nil {
		return false
	}
	ref := s.index.Find(&t.keys, s.index.Hash(key), key)
	if ref == 0 {
		return false
	}
	r := s.items.record(ref)
	if len(r.value) == 0 {
		return false
	}
	r.value[0] ^= 1
	return true
}
