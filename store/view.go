package store

import (
	"errors"
	"maps"
	"slices"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

var (
	// ErrViewClosed is a read of a view after its Close.
	ErrViewClosed = errors.New("store: view is closed")
	// ErrViewBroken is a read of a view that had to give way: keeping what was overwritten since the freeze took all the memory
	// that references reach. Its reader begins again with a new one.
	ErrViewBroken = errors.New("store: view was given up for room")
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
// Freezing notes the write counter and copies nothing: an item whose version is at most the view's was there at that moment. All a
// write has to do meanwhile is to keep what it supersedes, if a view still needs it, instead of freeing it:
//
//	slot      pending ──Slot begins──► reading ──Slot ends──► read
//	kept      items at most            every item             nothing more; what was kept is freed, or passed on to
//	          as new as the view                              the next older view that needs it
//
// While a slot is being read, none of its items is freed, moved or written over, so its reader needs the lock only to gather
// references. A view takes no memory but for what was overwritten or deleted in slots that were not read yet.
//
// An item that several views need is kept by the latest of them. Any goroutine may use a view, beside the writer; several views may be open.
type View struct {
	store   *Store
	version Version // of the latest write before the freeze
	time    Time
	stats   Stats
	slots   slotSet

	// All below is guarded by store.mu.
	pending slotSet                // not read yet, or being read
	reading slotSet                // being read
	kept    map[uint16][]arena.Ref // items that only views know of, by slot
	closed  bool
	broken  bool
}

// Freeze returns a view of the store as it is now, in O(1). Close it. Writer only.
func (s *Store) Freeze() *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freezeLocked(s.owned)
}

// freezeLocked returns a view of some of the owned slots.
func (s *Store) freezeLocked(slots slotSet) *View {
	v := &View{
		store:   s,
		version: s.version,
		time:    s.time,
		stats:   s.stats,
		slots:   slots,
		pending: slots,
		kept:    map[uint16][]arena.Ref{},
	}
	s.views = append(s.views, v)
	return v
}

// needsLocked reports whether the view's readers may still come upon an item that is in the store, or kept for a later view.
//
// For that, every item in a slot that the view has pending was written by this store: a slot is never taken over from elsewhere, with
// versions of its own, while the store owns it.
func (v *View) needsLocked(slot uint16, version Version) bool {
	return v.pending.has(slot) && (version <= v.version || v.reading.has(slot))
}

// viewThatNeedsLocked returns the latest of the first n views that needs an item.
func (s *Store) viewThatNeedsLocked(r *record, n int) *View {
	for i := n - 1; i >= 0; i-- {
		if s.views[i].needsLocked(r.slot, r.version) {
			return s.views[i]
		}
	}
	return nil
}

// readingLocked reports whether a view is reading a slot.
func (s *Store) readingLocked(slot uint16) bool {
	for _, v := range s.views {
		if v.reading.has(slot) {
			return true
		}
	}
	return false
}

func (v *View) keepLocked(r *record) {
	v.kept[r.slot] = append(v.kept[r.slot], r.ref)
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
	if err := v.begin(slot); err != nil {
		return err
	}
	defer v.end(slot)
	refs, cells := v.gather(slot)
	refs = slices.DeleteFunc(refs, func(ref arena.Ref) bool { return versionOf(cells.Bytes(ref)) > v.version })
	sortByKey(refs, cells)
	var before arena.Ref
	for _, ref := range refs {
		if ref == before {
			continue // seen twice: an index's blocks may change between slices
		}
		before = ref
		r := decodeItem(cells.Bytes(ref))
		if r.large != 0 {
			v.store.mu.RLock()
			v.store.items.load(&r)
			v.store.mu.RUnlock()
		}
		if err := fn(Item{Key: r.key, Value: r.value, Version: r.version, ExpiresAt: r.expiresAt}); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) begin(slot uint16) error {
	v.store.mu.Lock()
	defer v.store.mu.Unlock()
	switch {
	case v.broken:
		return ErrViewBroken
	case v.closed:
		return ErrViewClosed
	case !v.pending.has(slot) || v.reading.has(slot):
		return ErrSlotNotInView
	}
	v.reading.add(slot)
	return nil
}

// gatherSlice is how many references are gathered, and kept items released, while the lock is held.
const gatherSlice = 512

// gather returns what the view shows of a slot that is being read, in no order and possibly twice, and what was written since.
func (v *View) gather(slot uint16) ([]arena.Ref, arena.Reader) {
	s := v.store
	var refs []arena.Ref
	add := func(ref arena.Ref) { refs = append(refs, ref) }
	for from, more := uint64(0), true; more; {
		s.mu.RLock()
		if t := s.tables.of(slot); t == nil {
			from = 0 // disowned: everything was kept
		} else {
			if refs == nil {
				refs = make([]arena.Ref, 0, t.keys.Count())
			}
			from = s.index.Refs(&t.keys, from, gatherSlice, add)
		}
		more = from != 0
		s.mu.RUnlock()
	}
	s.mu.RLock()
	for i := slices.Index(s.views, v); i >= 0 && i < len(s.views); i++ {
		refs = append(refs, s.views[i].kept[slot]...)
	}
	cells := s.items.cells.Reader()
	s.mu.RUnlock()
	return refs, cells
}

// end lets go of a slot that was read.
func (v *View) end(slot uint16) {
	s := v.store
	s.mu.Lock()
	v.pending.remove(slot)
	v.reading.remove(slot)
	s.mu.Unlock()
	v.release(slot)
	s.mu.Lock()
	v.leaveLocked()
	s.mu.Unlock()
}

// release frees the items kept in a slot that is not pending any more, or passes them on, a slice at a time.
func (v *View) release(slot uint16) {
	for more := true; more; {
		v.store.mu.Lock()
		more = v.releaseLocked(slot, gatherSlice)
		v.store.mu.Unlock()
	}
}

func (v *View) releaseLocked(slot uint16, limit int) (more bool) {
	s := v.store
	kept := v.kept[slot]
	rest := max(len(kept)-limit, 0)
	older := max(slices.Index(s.views, v), 0)
	for _, ref := range kept[rest:] {
		r := decodeItem(s.items.cells.Bytes(ref))
		r.ref = ref
		if w := s.viewThatNeedsLocked(&r, older); w != nil {
			w.keepLocked(&r)
		} else {
			s.items.free(ref)
		}
	}
	if rest == 0 {
		delete(v.kept, slot)
		return false
	}
	v.kept[slot] = kept[:rest]
	return true
}

// Close releases what was kept for the view and spares the writer from keeping more. It may be repeated, and may be called
// while Slot runs, which then finishes its slot.
func (v *View) Close() {
	s := v.store
	s.mu.Lock()
	v.closed = true
	v.pending = v.reading
	slots := slices.Collect(maps.Keys(v.kept))
	s.mu.Unlock()
	for _, slot := range slots {
		s.mu.RLock()
		reading := v.reading.has(slot)
		s.mu.RUnlock()
		if !reading {
			v.release(slot)
		}
	}
	s.mu.Lock()
	v.leaveLocked()
	s.mu.Unlock()
}

// leaveLocked takes a view that is closed, and has nothing left, from the store.
func (v *View) leaveLocked() {
	s := v.store
	if !v.closed || v.pending != (slotSet{}) || len(v.kept) > 0 {
		return
	}
	if i := slices.Index(s.views, v); i >= 0 {
		s.views = slices.Delete(s.views, i, i+1)
		s.items.cells.Unstick()
	}
}

// breakViewsLocked frees what is kept for views, but for slots that are being read.
func (s *Store) breakViewsLocked() {
	for _, v := range slices.Backward(s.views) {
		v.broken = true
		v.pending = v.reading
		for slot := range v.kept {
			if !v.reading.has(slot) {
				v.releaseLocked(slot, len(v.kept[slot]))
			}
		}
	}
}
