package store

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// The largest keys are known from writes, each of which is compared with the smallest of a short list, and from audits, which come past
// every key. Between a delete of one of them and the next audit the list may lack others.

// largestKept is how many keys the list has.
const largestKept = 16

// LargeKey is a key and the bytes of it and its value.
type LargeKey struct {
	Slot  uint16
	Key   []byte
	Bytes int64
}

// largest is a list of the largest keys. The zero value is empty. From any goroutine.
type largest struct {
	// floor is what a key must have more of to come in.
	floor atomic.Int64

	mu   sync.Mutex
	keys []LargeKey // at most largestKept, the largest first
}

// offer takes a key in if it is one of the largest; its bytes are copied then.
func (l *largest) offer(slot uint16, key []byte, bytes int64) {
	if bytes <= l.floor.Load() {
		return // nearly always
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if at := l.placeLocked(key); at >= 0 {
		l.keys[at].Bytes = bytes
	} else {
		l.keys = append(l.keys, LargeKey{slot, slices.Clone(key), bytes})
	}
	l.settleLocked()
}

func (l *largest) placeLocked(key []byte) int {
	return slices.IndexFunc(l.keys, func(k LargeKey) bool { return string(k.Key) == string(key) })
}

func (l *largest) settleLocked() {
	slices.SortStableFunc(l.keys, func(a, b LargeKey) int { return cmp.Compare(b.Bytes, a.Bytes) })
	if len(l.keys) > largestKept {
		clear(l.keys[largestKept:])
		l.keys = l.keys[:largestKept]
	}
	floor := int64(0)
	if len(l.keys) == largestKept {
		floor = l.keys[largestKept-1].Bytes
	}
	l.floor.Store(floor)
}

// Largest returns at most limit, up to 16, of the largest keys, the largest first.
func (s *Store) Largest(limit int) []LargeKey {
	l := &s.largest
	l.mu.Lock()
	held := slices.Clone(l.keys)
	l.mu.Unlock()
	for _, k := range held {
		m, presence := s.Inspect(k.Slot, k.Key)
		bytes := int64(len(k.Key) + m.ValueBytes)
		if presence != Absent && bytes == k.Bytes {
			continue
		}
		l.mu.Lock()
		if at := l.placeLocked(k.Key); at >= 0 && l.keys[at].Bytes == k.Bytes { // it was not offered again meanwhile
			if l.keys[at].Bytes = bytes; presence == Absent {
				l.keys = slices.Delete(l.keys, at, at+1)
			}
			l.settleLocked()
		}
		l.mu.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.keys[:min(limit, len(l.keys))])
}
