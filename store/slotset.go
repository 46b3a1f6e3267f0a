package store

import "math/bits"

// slotSet is a set of slots as a bitmap: 2 KiB, copied by assignment.
type slotSet [SlotCount / 64]uint64

func (s *slotSet) has(slot uint16) bool {
	return slot < SlotCount && s[slot/64]&(1<<(slot%64)) != 0
}

func (s *slotSet) add(slot uint16) {
	s[slot/64] |= 1 << (slot % 64)
}

func (s *slotSet) remove(slot uint16) {
	s[slot/64] &^= 1 << (slot % 64)
}

// list returns the slots in ascending order.
func (s *slotSet) list() []uint16 {
	count := 0
	for _, word := range s {
		count += bits.OnesCount64(word)
	}
	slots := make([]uint16, 0, count)
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			slots = append(slots, uint16(i*64+bits.TrailingZeros64(word)))
		}
	}
	return slots
}
