package store

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
)

// What is read and written is counted per slot, and the busiest keys are known, so cheaply that it is always on:
//
//	writes  every one, by the writer, which holds the table anyway
//	reads   one of sampleEvery, drawn at random, which then counts as that many
//	keys    of reads that are sampled, and of every sampleEvery-th write, a sketch of keysKept keys
//
// Windows come from outside, by Rotate: nothing here knows the time. Nothing of this is the same on two replicas, and nothing of it
// may show in a result.

const (
	// sampleEvery is a power of two.
	sampleEvery = 64
	// keysKept is how many keys a sketch holds: one that gets more than 1/keysKept of what is sampled in a window is always among them.
	keysKept = 128
	// sketchKeyBytesMax bounds a key in a sketch. Longer ones are counted with their slot alone.
	sketchKeyBytesMax = 1 << 10
)

// slotUse are one slot's counts; part of its table. Only reads is changed without the lock.
type slotUse struct {
	reads        atomic.Uint64 // since ever, a multiple of sampleEvery
	writes       uint64        // since ever
	readsBefore  uint64        // at the latest Rotate
	writesBefore uint64
	windowReads  uint64 // between the latest two
	windowWrites uint64
}

// SlotUse is what a slot holds, and how often it was read and written in the latest window; reads are estimated.
type SlotUse struct {
	Slot          uint16
	Stats         Stats
	Reads, Writes uint64
}

// HotKey is a key that was used often in the latest window. Reads and Writes are estimated, from samples, and together too high by
// at most Error, which stems from keys that gave their place to this one.
type HotKey struct {
	Slot                 uint16
	Key                  []byte
	Reads, Writes, Error uint64
}

// sampled draws whether a read is sampled.
func sampled() bool { return rand.Uint32()&(sampleEvery-1) == 0 }

// noteRead counts a read of a key that was sampled. The key's slot is owned. Under the lock, for reading.
func (s *Store) noteReadLocked(t *table, slot uint16, hash uint64, key []byte) {
	t.use.reads.Add(sampleEvery)
	s.reads.Add(sampleEvery)
	s.hot.offer(hash, slot, key, sampleEvery, 0)
}

// noteWriteLocked counts a write.
func (s *Store) noteWriteLocked(t *table, slot uint16, hash uint64, key []byte) {
	t.use.writes++
	if s.writesSeen++; s.writesSeen&(sampleEvery-1) == 0 {
		s.hot.offer(hash, slot, key, 0, sampleEvery)
	}
}

// Reads returns how many keys were read since ever, estimated from samples. Writes are Version's.
func (s *Store) Reads() uint64 { return s.reads.Load() }

// rotateSlice is how many slots Rotate looks at while it holds the lock.
const rotateSlice = 512

// Rotate ends a window of counts, and begins the next. From any goroutine, one at a time.
func (s *Store) Rotate() {
	for from := 0; from < SlotCount; from += rotateSlice {
		s.mu.Lock()
		for slot := from; slot < from+rotateSlice; slot++ {
			if t := s.tables.of(uint16(slot)); t != nil {
				u := &t.use
				reads := u.reads.Load()
				u.windowReads, u.windowWrites = reads-u.readsBefore, u.writes-u.writesBefore
				u.readsBefore, u.writesBefore = reads, u.writes
			}
		}
		s.mu.Unlock()
	}
	s.hot.rotate()
}

// SlotUses returns all owned slots in ascending order.
func (s *Store) SlotUses() []SlotUse {
	var uses []SlotUse
	for from := 0; from < SlotCount; from += rotateSlice {
		s.mu.RLock()
		for slot := from; slot < from+rotateSlice; slot++ {
			if t := s.tables.of(uint16(slot)); t != nil {
				uses = append(uses, SlotUse{Slot: uint16(slot), Stats: t.stats, Reads: t.use.windowReads, Writes: t.use.windowWrites})
			}
		}
		s.mu.RUnlock()
	}
	return uses
}

// Hottest returns at most limit of the keys used most in the latest window, the most used first.
func (s *Store) Hottest(limit int) []HotKey { return s.hot.top(limit) }

// sketch finds the most used keys in a stream by "space saving" (Metwally, Agrawal, El Abbadi, 2005): it holds a few, each with a count; a
// key that it does not hold takes the place of the least used one and goes on from that one's count, which is then its possible error.
// So no count is too low by what was offered, and every key with more than 1/keysKept of all is held.
type sketch struct {
	mu     sync.Mutex
	now    []HotKey
	hashes []uint64       // of now's keys
	counts []uint64       // Reads + Writes of now, in a row by themselves: each key that comes looks for the least
	places map[uint64]int // in now, by hash
	before []HotKey       // of the window before, by count
}

// offer counts a use. It never waits: what comes while somebody else offers is not counted.
func (k *sketch) offer(hash uint64, slot uint16, key []byte, reads, writes uint64) {
	if len(key) > sketchKeyBytesMax || !k.mu.TryLock() {
		return
	}
	defer k.mu.Unlock()
	if k.places == nil {
		k.places = make(map[uint64]int, keysKept)
	}
	at, held := k.places[hash]
	switch {
	case held:
	case len(k.now) < keysKept:
		at = len(k.now)
		k.now = append(k.now, HotKey{Slot: slot, Key: slices.Clone(key)})
		k.hashes, k.counts = append(k.hashes, hash), append(k.counts, 0)
		k.places[hash] = at
	default:
		at = k.least()
		delete(k.places, k.hashes[at])
		k.places[hash], k.hashes[at] = at, hash
		c := &k.now[at]
		c.Slot, c.Key, c.Error = slot, append(c.Key[:0], key...), k.counts[at]
		// What it goes on from is the other's: it counts as reads or writes like the use by which it came.
		if c.Reads, c.Writes = c.Error, 0; writes > 0 {
			c.Reads, c.Writes = 0, c.Error
		}
	}
	k.counts[at] += reads + writes
	k.now[at].Reads += reads
	k.now[at].Writes += writes
}

// least is the place of the least used key.
func (k *sketch) least() (at int) {
	least := k.counts[0]
	for i, n := range k.counts {
		if n < least {
			at, least = i, n
		}
	}
	return at
}

func (k *sketch) rotate() {
	k.mu.Lock()
	defer k.mu.Unlock()
	slices.SortFunc(k.now, func(a, b HotKey) int { return cmp.Compare(b.Reads+b.Writes, a.Reads+a.Writes) })
	k.now, k.before = nil, k.now
	k.hashes, k.counts = k.hashes[:0], k.counts[:0]
	clear(k.places)
}

func (k *sketch) top(limit int) []HotKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys := make([]HotKey, 0, min(limit, len(k.before)))
	for _, h := range k.before[:min(limit, len(k.before))] {
		h.Key = slices.Clone(h.Key)
		keys = append(keys, h)
	}
	return keys
}
