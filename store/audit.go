package store

import (
	"slices"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// Audit counts slots of a store again, from what lies in memory, as they were at one moment: figures that are kept up with every write
// (Stats) can't show that a bit has flipped since. It finds damage of keys, values, versions and expiry times, and items that the
// table of their slot has lost. Of damage to the order of keys and of expiry it knows nothing.
//
// Any one goroutine may use it, beside the writer. As with any view, what is overwritten meanwhile in slots that were not counted yet is kept.
type Audit struct {
	view  *View
	slots []uint16
	kept  []Stats
}

// Audit begins one of the owned slots in [from, to), in O(slots). Close it. Writer only.
func (s *Store) Audit(from, to uint16) *Audit {
	s.mu.Lock()
	defer s.mu.Unlock()
	var among slotSet
	a := new(Audit)
	for slot := from; slot < min(to, SlotCount); slot++ {
		if t := s.tables.of(slot); t != nil {
			among.add(slot)
			a.slots = append(a.slots, slot)
			a.kept = append(a.kept, t.stats)
		}
	}
	a.view = s.freezeLocked(among)
	return a
}

// Slots are the slots to be counted, in ascending order.
func (a *Audit) Slots() []uint16 { return a.slots }

// restItems and restBytes are what Count looks at between two calls of rest, about.
const (
	restItems = 256
	restBytes = 256 << 10
)

// Count returns what the store had kept up of the slot at place i of Slots, and what there is. Each can be counted once. rest is called
// between slices of some hundred items, for the caller to pause in; an error of it ends the count. Errors: that, ErrViewClosed, ErrViewBroken.
func (a *Audit) Count(i int, rest func() error) (kept, counted Stats, err error) {
	v, slot := a.view, a.slots[i]
	if err := v.begin(slot); err != nil {
		return Stats{}, Stats{}, err
	}
	defer v.end(slot)
	refs, cells := v.gather(slot)
	slices.Sort(refs)
	refs = slices.Compact(refs) // an index's blocks may change between slices of gathering
	items, bytes := 0, 0
	for _, ref := range refs {
		if items++; items == restItems || bytes >= restBytes {
			items, bytes = 0, 0
			if err := rest(); err != nil {
				return Stats{}, Stats{}, err
			}
		}
		r, sound := v.sound(slot, ref, cells)
		if !sound {
			counted.Keys++
			counted.Checksum += hashBytes(hashSeed, r.value)
			continue
		}
		if r.version <= v.version {
			counted.add(&r, r.checksum())
			v.store.largest.offer(slot, r.key, int64(r.bytes()))
			bytes += r.bytes()
		}
	}
	return a.kept[i], counted, nil
}

// Close lets go of what was kept. It may be repeated, from any goroutine.
func (a *Audit) Close() { a.view.Close() }

// sound decodes an item without trusting a byte of it. Of one that can't be one it returns the bytes there are as the value.
func (v *View) sound(slot uint16, ref arena.Ref, cells arena.Reader) (record, bool) {
	s := v.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.items.cells.InUse(ref) {
		return record{}, false
	}
	cell := cells.Bytes(ref)
	flags := cell[0]
	damaged := record{value: cell}
	header := int(headerBytes[flags&0x7f])
	if flags&0x80 != 0 || len(cell) < header {
		return damaged, false
	}
	length, lengthAt := int(cell[1]), 2
	if flags&flagLongKey != 0 {
		length, lengthAt = length|int(cell[2])<<8, 3
	}
	end := header + length
	if flags&flagLarge == 0 {
		end += int(cell[lengthAt])
		if flags&flagWideValue != 0 {
			end += int(cell[lengthAt+1]) << 8
		}
	}
	if length == 0 || end > len(cell) {
		return damaged, false
	}
	r := decodeItem(cell)
	if r.slot != slot || int(r.large) >= max(len(s.items.large), 1) || flags&flagLarge != 0 && (r.large == 0 || s.items.large[r.large] == nil) {
		return damaged, false
	}
	s.items.load(&r)
	return r, true
}

// Extent returns the end of a run of slots from slot from on that is worth one audit: of at most slotsMax slots, keysMax keys and
// bytesMax bytes, but one slot at least; how many of them are owned, and what they hold together. No slots: no owned one is left.
func (s *Store) Extent(from uint16, slotsMax int, keysMax, bytesMax int64) (to uint16, slots int, sum Stats) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for slot := from; slot < SlotCount; slot++ {
		t := s.tables.of(slot)
		if t == nil {
			continue
		}
		if slots > 0 && (slots == slotsMax || sum.Keys+t.stats.Keys > keysMax || sum.Bytes+t.stats.Bytes > bytesMax) {
			return slot, slots, sum
		}
		slots++
		sum.Keys += t.stats.Keys
		sum.Bytes += t.stats.Bytes
	}
	return SlotCount, slots, sum
}
