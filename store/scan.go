package store

import (
	"bytes"
	"sync"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

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
	q := scanRange{from: from, to: to, endless: to == nil, sliceKeys: ScanSliceKeys}
	if limit > 0 && limit < ScanSliceKeys {
		q.sliceKeys = limit + 1 // one more shows where to go on
	}
	slice := scanSlices.Get().(*scanSlice)
	defer slice.release()
	passed, passedBytes := 0, 0
	for {
		s.readSlice(slice, q)
		for i := range slice.found {
			key, value, m := slice.at(i)
			size := len(key) + len(value)
			if (limit > 0 && passed == limit) || (bytesMax > 0 && passed > 0 && size > bytesMax-passedBytes) {
				return bytes.Clone(key), true
			}
			if !fn(key, value, m) {
				return successor(key), true
			}
			passed++
			passedBytes += size
		}
		if !slice.more {
			return nil, false
		}
		q.from = slice.resume
	}
}

type scanRange struct {
	from, to  []byte // [from, to)
	endless   bool   // to does not count
	sliceKeys int
}

// scanSliceBytes is how much a slice copies before it ends, large values apart, which it need not copy.
const scanSliceBytes = 64 << 10

// scanSlice is a part of a scan, copied out of the store.
type scanSlice struct {
	bytes  []byte // keys and values
	found  []scanned
	resume []byte // where the range goes on, if more
	more   bool

	touched byte // see touch
}

type scanned struct {
	key, value, end int // bytes[key:value] and bytes[value:end]
	large           []byte
	meta            Meta
}

// scanSlices are used again, so that scans leave no garbage.
var scanSlices = sync.Pool{New: func() any { return new(scanSlice) }}

func (l *scanSlice) release() {
	if cap(l.bytes) > 4*scanSliceBytes {
		return // of a key or value far above the usual
	}
	l.clear()
	scanSlices.Put(l)
}

func (l *scanSlice) clear() {
	clear(l.found) // large values are not to be held longer than needed
	l.bytes, l.found, l.more = l.bytes[:0], l.found[:0], false
}

func (l *scanSlice) at(i int) (key, value []byte, m Meta) {
	f := &l.found[i]
	value = f.large
	if value == nil {
		value = l.bytes[f.value:f.end:f.end]
	}
	return l.bytes[f.key:f.value:f.value], value, f.meta
}

func (l *scanSlice) add(r *record) {
	f := scanned{key: len(l.bytes), meta: r.meta()}
	l.bytes = append(l.bytes, r.key...)
	f.value = len(l.bytes)
	if r.large != 0 {
		f.large = r.value
	} else {
		l.bytes = append(l.bytes, r.value...)
	}
	f.end = len(l.bytes)
	l.found = append(l.found, f)
}

// readSlice copies the live items among the next q.sliceKeys of the range.
func (s *Store) readSlice(l *scanSlice, q scanRange) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	from := q.from // may be l.resume
	l.clear()
	looked, touched := 0, byte(0)
	s.byKey.Ascend(from, func(refs []arena.Ref) bool {
		for i, ref := range refs {
			if i+touchAhead < len(refs) {
				touched ^= touch(s.items.cells.Bytes(refs[i+touchAhead]))
			}
			r := decodeItem(s.items.cells.Bytes(ref))
			if !q.endless && bytes.Compare(r.key, q.to) >= 0 {
				return false
			}
			if looked == q.sliceKeys || len(l.bytes) >= scanSliceBytes {
				l.resume, l.more = append(l.resume[:0], r.key...), true
				return false
			}
			looked++
			if !r.expired(s.time) {
				s.items.load(&r)
				l.add(&r)
			}
		}
		return true
	})
	l.touched = touched
}

// touchAhead is how many items on a scan begins to fetch one into the processor's cache.
const touchAhead = 4

// touch reads a byte of each cache line of a small cell; it returns something only so that this is not optimised away.
func touch(cell []byte) (sum byte) {
	for i := 0; i < len(cell) && i < 256; i += 64 {
		sum ^= cell[i]
	}
	return sum
}

// successor returns the smallest key greater than key.
func successor(key []byte) []byte {
	next := make([]byte, len(key)+1)
	copy(next, key)
	return next
}
