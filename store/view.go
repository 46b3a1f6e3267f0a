package store

import (
	"errors"
	"slices"
	"strings"
	"sync"
)

var (
	// ErrViewClosed is a read of a view after its Close.
	ErrViewClosed = errors.New("store: view is closed")
	// ErrSlotNotInView is a read of a slot that the store did not own when it was frozen, or that was
	// read already.
	ErrSlotNotInView = errors.New("store: slot is not in the view, or was read already")
)

// Item is one key as snapshots carry it.
type Item struct {
	Key       []byte // 1..32 KiB
	Value     []byte // 0..64 MiB
	Version   Version
	ExpiresAt Time // 0: does not expire
}

// View is a store as it was at one moment, read slot by slot while the store goes on.
//
// Freezing marks every owned slot as pending and copies nothing. A pending slot is leaving in one of two ways,
// whichever comes first:
//
//	pending ──View.Slot reads it──────────────────────────────► read
//	   └──────first write to it: its records are copied──► copied ──View.Slot──► read
//
// So a slot is copied at most once per view, and only if it is written to before its turn. What a copy
// costs is the slot's records without their values, O(keys of the slot), under the store's lock.
//
// Any goroutine may use a view, beside the writer; several views may be open.
type View struct {
	store   *Store
	version Version
	time    Time
	stats   Stats
	slots   slotSet

	// mu is taken after store.mu, and guards all below.
	mu      sync.Mutex
	closed  bool
	pending slotSet             // the store's table still is what the view shows
	copied  map[uint16][]record // handed over by the writer
}

// Freeze returns a view of the store as it is now, in O(slots). Close it. Writer only.
func (s *Store) Freeze() *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &View{
		store:   s,
		version: s.version,
		time:    s.time,
		stats:   s.stats,
		slots:   s.owned,
		pending: s.owned,
		copied:  make(map[uint16][]record),
	}
	s.views = append(s.views, v)
	return v
}

// handOverLocked gives the views that still rely on a slot's table a copy of it, before its first write.
func (s *Store) handOverLocked(slot uint16, t *table) {
	for _, v := range s.views {
		v.keep(slot, t)
	}
}

func (v *View) keep(slot uint16, t *table) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.pending.has(slot) {
		v.pending.remove(slot)
		v.copied[slot] = t.copyRecords()
	}
}

// Version returns the store's write counter at the freeze.
func (v *View) Version() Version { return v.version }

// Time returns the store's time at the freeze.
func (v *View) Time() Time { return v.time }

// Stats returns the store's figures at the freeze.
func (v *View) Stats() Stats { return v.stats }

// Slots returns the slots that were owned at the freeze, in ascending order.
func (v *View) Slots() []uint16 { return v.slots.list() }

// Slot calls fn for every key of a slot, expired ones too, in key order, and ends with the first error fn returns.
// Slots may be read in any order, each of them once: reading releases it. The item's slices are valid
// during the call only and must not be modified.
func (v *View) Slot(slot uint16, fn func(Item) error) error {
	records, err := v.take(slot)
	if err != nil {
		return err
	}
	slices.SortFunc(records, func(a, b record) int { return strings.Compare(a.key, b.key) })
	var key []byte
	for i := range records {
		r := &records[i]
		key = append(key[:0], r.key...)
		if err := fn(Item{Key: key, Value: r.value, Version: r.version, ExpiresAt: r.expiresAt}); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) take(slot uint16) ([]record, error) {
	v.store.mu.RLock()
	defer v.store.mu.RUnlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, ErrViewClosed
	}
	if v.pending.has(slot) {
		v.pending.remove(slot)
		return v.store.tables.of(slot).copyRecords(), nil
	}
	records, ok := v.copied[slot]
	if !ok {
		return nil, ErrSlotNotInView
	}
	delete(v.copied, slot)
	return records, nil
}

// Close releases the view's copies and spares the writer from making more. It may be repeated, and may be called
// while Slot runs, which then finishes its slot.
func (v *View) Close() {
	v.store.mu.Lock()
	defer v.store.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	v.copied = nil
	if i := slices.Index(v.store.views, v); i >= 0 {
		v.store.views = slices.Delete(v.store.views, i, i+1)
	}
}
