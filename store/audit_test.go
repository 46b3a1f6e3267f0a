package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

func noRest() error { return nil }

// auditedStore has items of all shapes, small ones in slots 3 and 5, others in 9.
func auditedStore() *Store {
	s := New(MaxLimits())
	s.Own(3, 5, 9)
	s.SetTime(1000)
	slots := []uint16{3, 5, 3, 5, 9, 9}
	for i, size := range []int{0, 1, 200, 300, itemBytesMax, itemBytesMax + 100} {
		for j, ttl := range []int64{0, 5000} {
			for k, keyBytes := range []int{1, 200, 300} {
				key := bytes.Repeat([]byte{'k'}, keyBytes)
				key = fmt.Appendf(key, "%d-%d-%d", i, j, k)
				s.Apply(slots[i], &Op{Kind: OpSet, Key: key, Value: bytes.Repeat([]byte{byte(6*i + 3*j + k)}, size), TTL: ttl})
			}
		}
	}
	return s
}

func auditAll(t *testing.T, s *Store) (kept, counted []Stats) {
	t.Helper()
	return auditOf(t, s, 0, SlotCount)
}

func auditOf(t *testing.T, s *Store, from, to uint16) (kept, counted []Stats) {
	t.Helper()
	a := s.Audit(from, to)
	defer a.Close()
	for i := range a.Slots() {
		k, c, err := a.Count(i, noRest)
		if err != nil {
			t.Fatal(err)
		}
		kept, counted = append(kept, k), append(counted, c)
	}
	return kept, counted
}

func TestAuditOfAWholeStore(t *testing.T) {
	s := auditedStore()
	kept, counted := auditAll(t, s)
	if !slices.Equal(kept, counted) || len(kept) != 3 || kept[0] != s.SlotStats(3) || kept[1] != s.SlotStats(5) || kept[2] != s.SlotStats(9) || kept[0].Keys == 0 {
		t.Errorf("kept %+v, counted %+v", kept, counted)
	}
}

// TestAuditFindsEveryFlippedBit flips each bit of what an item's cell is used for, one after the other.
func TestAuditFindsEveryFlippedBit(t *testing.T) {
	s := auditedStore()
	var refs []uint32
	for _, slot := range []uint16{3, 5, 9} {
		t := s.tables.of(slot)
		for from := uint64(0); ; {
			from = s.index.Refs(&t.keys, from, 1, func(ref arena.Ref) { refs = append(refs, uint32(ref)) })
			if from == 0 {
				break
			}
		}
	}
	flips := 0
	for _, ref := range refs {
		cell := s.items.cells.Bytes(arena.Ref(ref))
		r := s.items.record(arena.Ref(ref))
		slot := r.slot
		used := int(headerBytes[cell[0]&0x7f]) + len(r.key)
		if r.large == 0 {
			used += len(r.value)
		}
		for at, step := 0, 1; at < used; at += step {
			if at > 40 && used > 1000 {
				step = 997 // not each of 16 KiB
			}
			for bit := range 8 {
				cell[at] ^= 1 << bit
				kept, counted := auditOf(t, s, slot, slot+1)
				if slices.Equal(kept, counted) {
					t.Errorf("byte %d bit %d of %q is not found", at, bit, r.key)
				}
				cell[at] ^= 1 << bit
				flips++
			}
		}
	}
	for number, value := range s.items.large {
		if len(value) > 0 {
			value[len(value)/2] ^= 4
			kept, counted := auditAll(t, s)
			if slices.Equal(kept, counted) {
				t.Errorf("large value %d: not found", number)
			}
			value[len(value)/2] ^= 4
			flips++
		}
	}
	if kept, counted := auditAll(t, s); !slices.Equal(kept, counted) {
		t.Error("the test did not put everything back")
	}
	t.Logf("%d bits", flips)
}

// TestAuditBesideWrites counts while the store is changed: what is counted is the moment of the beginning.
func TestAuditBesideWrites(t *testing.T) {
	s := New(MaxLimits())
	s.Own(1, 2, 3)
	random := rand.New(rand.NewPCG(1, 2))
	change := func() {
		number := random.IntN(3000)
		key := fmt.Appendf(nil, "key%d", number)
		op := Op{Kind: OpSet, Key: key, Value: make([]byte, random.IntN(300))}
		if random.IntN(3) == 0 {
			op = Op{Kind: OpDelete, Key: key}
		}
		if random.IntN(1000) == 0 {
			op.Value = make([]byte, itemBytesMax+random.IntN(9))
		}
		if op.Kind == OpDelete {
			op.Value = nil
		}
		s.Apply(uint16(1+number%3), &op)
	}
	for range 10_000 {
		change()
	}
	for range 20 {
		a := s.Audit(1, 4)
		var counting sync.WaitGroup
		counting.Go(func() {
			defer a.Close()
			for i := range a.Slots() {
				kept, counted, err := a.Count(i, noRest)
				if err != nil || kept != counted {
					t.Errorf("slot %d: kept %+v, counted %+v, %v", a.Slots()[i], kept, counted, err)
				}
			}
		})
		for range 3000 {
			change()
		}
		counting.Wait()
	}
	if err := s.CheckInvariants(); err != nil {
		t.Error(err)
	}
	if len(s.views) != 0 {
		t.Errorf("%d views are left", len(s.views))
	}
}

func TestAuditEnds(t *testing.T) {
	s := New(MaxLimits())
	s.Own(1)
	for i := range 3 * restItems {
		s.Apply(1, &Op{Kind: OpSet, Key: fmt.Append(nil, i)})
	}
	a := s.Audit(0, SlotCount)
	enough := errors.New("enough")
	rests := 0
	if _, _, err := a.Count(0, func() error { rests++; return enough }); err != enough || rests != 1 {
		t.Errorf("%v after %d rests", err, rests)
	}
	a.Close()
	a = s.Audit(0, SlotCount)
	a.Close()
	if _, _, err := a.Count(0, noRest); err != ErrViewClosed {
		t.Error(err)
	}
	if len(s.views) != 0 {
		t.Errorf("%d views are left", len(s.views))
	}
}

func TestExtent(t *testing.T) {
	s := New(MaxLimits())
	s.Own(2, 3, 5, 8)
	for i := range 10 {
		s.Apply(3, &Op{Kind: OpSet, Key: fmt.Append(nil, i)})
	}
	s.Apply(5, &Op{Kind: OpSet, Key: []byte("k"), Value: make([]byte, 99)})
	for name, test := range map[string]struct {
		from        uint16
		slots       int
		keys, bytes int64
		to          uint16
		owned       int
		held        int64
	}{
		"all":              {0, 100, 100, 1000, SlotCount, 4, 11},
		"few slots":        {0, 2, 100, 1000, 5, 2, 10},
		"few keys":         {0, 100, 5, 1000, 3, 1, 0},
		"one slot too big": {3, 100, 5, 1000, 5, 1, 10},
		"few bytes":        {3, 100, 100, 50, 5, 1, 10},
		"the last":         {8, 100, 100, 100, SlotCount, 1, 0},
		"behind the last":  {9, 100, 100, 100, SlotCount, 0, 0},
	} {
		if to, owned, sum := s.Extent(test.from, test.slots, test.keys, test.bytes); to != test.to || sum.Keys != test.held || owned != test.owned {
			t.Errorf("%s: %d, %d, %+v", name, to, owned, sum)
		}
	}
}
