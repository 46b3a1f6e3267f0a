package store

// ScanSliceKeys bounds how many keys Scan looks at, expired ones among them, while it holds writers up.
const ScanSliceKeys = 256

// Scan calls fn for the keys in [from, to), in order, over all slots of the store; to nil means no end.
// It stops after limit keys, and before the key that would take keys and values together over bytesMax;
// a first key over bytesMax is passed nevertheless. limit or bytesMax 0 or less means no bound. fn may
// stop it by returning false.
//
// more tells whether keys may be left in the range; next is then where to go on.
//
// The lock is taken for slices of at most ScanSliceKeys keys and never while fn runs. Each slice shows
// one moment. A scan over several slices may see a later write and miss an earlier one, but shows every
// key that was there all along exactly once. key and value are valid during the call only and must not
// be modified.
func (s *Store) Scan(from, to []byte, limit, bytesMax int, fn func(key, value []byte, m Meta) bool) (next []byte, more bool) {
	q := scanRange{from: string(from), to: string(to), endless: to == nil, sliceKeys: ScanSliceKeys}
	if limit > 0 && limit < ScanSliceKeys {
		q.sliceKeys = limit + 1 // one more shows where to go on
	}
	slice := make([]record, 0, q.sliceKeys)
	var key []byte
	passed, passedBytes := 0, 0
	for {
		var resume string
		slice, resume, more = s.scanSlice(slice[:0], q)
		for i := range slice {
			r := &slice[i]
			size := len(r.key) + len(r.value)
			if (limit > 0 && passed == limit) || (bytesMax > 0 && passed > 0 && size > bytesMax-passedBytes) {
				return []byte(r.key), true
			}
			key = append(key[:0], r.key...)
			if !fn(key, r.value, r.meta()) {
				return successor(r.key), true
			}
			passed++
			passedBytes += size
		}
		if !more {
			return nil, false
		}
		q.from = resume
	}
}

type scanRange struct {
	from, to  string // [from, to)
	endless   bool   // to does not count
	sliceKeys int
}

// scanSlice appends the live records among the next q.sliceKeys of the range. more tells that the range goes
// on, at resume.
func (s *Store) scanSlice(slice []record, q scanRange) (live []record, resume string, more bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	looked := 0
	s.index.Ascend(&record{key: q.from}, func(r *record) bool {
		if !q.endless && r.key >= q.to {
			return false
		}
		if looked == q.sliceKeys {
			resume, more = r.key, true
			return false
		}
		looked++
		if !r.expired(s.time) {
			slice = append(slice, *r)
		}
		return true
	})
	return slice, resume, more
}

// successor returns the smallest key greater than key.
func successor(key string) []byte {
	next := make([]byte, len(key)+1)
	copy(next, key)
	return next
}
