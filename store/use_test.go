package store

import (
	"fmt"
	"slices"
	"sync"
	"testing"
)

func TestSlotUse(t *testing.T) {
	s := New(DefaultLimits())
	s.Own(1, 2)
	const reads, writes = 100_000, 1000
	for i := range writes {
		s.Apply(1, &Op{Kind: OpSet, Key: fmt.Append(nil, "key", i%10), Value: []byte("v")})
	}
	s.Apply(1, &Op{Kind: OpDelete, Key: []byte("none")}) // writes nothing
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := range reads / 4 {
				s.Get(2, fmt.Append(nil, "key", i), nil)
				s.Inspect(2, []byte("not counted"))
			}
		})
	}
	readers.Wait()
	if n := s.Reads(); n < reads*8/10 || n > reads*12/10 {
		t.Errorf("%d reads", n)
	}
	if u := s.SlotUses(); len(u) != 2 || u[0].Reads+u[1].Reads+u[0].Writes != 0 {
		t.Errorf("before the window ends: %+v", u)
	}
	s.Rotate()
	u := s.SlotUses()
	if u[0].Slot != 1 || u[0].Writes != writes || u[0].Reads != 0 || u[0].Stats != s.SlotStats(1) {
		t.Errorf("%+v", u[0])
	}
	// Of 100,000 draws of one in 64 the deviation is 2.5 %.
	if u[1].Slot != 2 || u[1].Writes != 0 || u[1].Reads < reads*8/10 || u[1].Reads > reads*12/10 {
		t.Errorf("%+v", u[1])
	}
	s.Rotate()
	if u := s.SlotUses(); u[0].Writes+u[1].Reads != 0 {
		t.Errorf("the window after: %+v", u)
	}
}

// TestHottest: among a hundred thousand keys used once each, in between, the ones that are used often are found, in order.
func TestHottest(t *testing.T) {
	s := New(DefaultLimits())
	s.Own(1)
	for i := range 200_000 {
		switch {
		case i%10 == 0:
			s.Get(1, []byte("read"), nil)
		case i%10 == 1:
			s.Apply(1, &Op{Kind: OpIncrement, Key: []byte("written"), Delta: 1})
			s.Apply(1, &Op{Kind: OpIncrement, Key: []byte("written"), Delta: 1})
		default:
			s.Get(1, fmt.Append(nil, "once", i), nil)
		}
	}
	if len(s.Hottest(3)) != 0 {
		t.Error("before the window ends")
	}
	s.Rotate()
	hot := s.Hottest(2)
	if len(hot) != 2 || string(hot[0].Key) != "written" || string(hot[1].Key) != "read" || hot[0].Slot != 1 {
		t.Fatalf("%+v", hot)
	}
	for i, want := range []uint64{40_000, 20_000} {
		h := hot[i]
		if n := h.Reads + h.Writes; n < want*7/10 || n-h.Error > want*13/10 {
			t.Errorf("%s: %+v, want %d", h.Key, h, want)
		}
	}
	if hot[0].Writes < hot[0].Reads || hot[1].Reads < hot[1].Writes {
		t.Errorf("reads and writes are mixed up: %+v", hot)
	}
	if all := s.Hottest(1000); len(all) != keysKept {
		t.Errorf("%d keys are kept", len(all))
	}
	s.Rotate()
	if len(s.Hottest(3)) != 0 {
		t.Error("the window after")
	}
}

func TestSketchLeavesLongKeysOut(t *testing.T) {
	var k sketch
	k.offer(1, 1, make([]byte, sketchKeyBytesMax+1), 1, 0)
	k.offer(2, 1, make([]byte, sketchKeyBytesMax), 1, 0)
	k.rotate()
	if got := k.top(9); len(got) != 1 || len(got[0].Key) != sketchKeyBytesMax {
		t.Errorf("%d keys", len(got))
	}
}

func TestLargest(t *testing.T) {
	s := New(DefaultLimits())
	s.Own(1)
	set := func(key string, bytes int) {
		s.Apply(1, &Op{Kind: OpSet, Key: []byte(key), Value: make([]byte, bytes)})
	}
	for i := range 100 {
		set(fmt.Sprintf("key%02d", i), 10*i) // 5 bytes of key
	}
	sizes := func() (all []int64) {
		for _, k := range s.Largest(largestKept) {
			all = append(all, k.Bytes)
		}
		return all
	}
	var want []int64
	for i := 99; i > 99-largestKept; i-- {
		want = append(want, int64(10*i+5))
	}
	if got := sizes(); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if top := s.Largest(1); len(top) != 1 || string(top[0].Key) != "key99" || top[0].Slot != 1 {
		t.Errorf("%+v", top)
	}
	// One grows, one shrinks, one goes.
	set("key50", 5000)
	set("key99", 1)
	s.Apply(1, &Op{Kind: OpDelete, Key: []byte("key98")})
	got := sizes()
	if got[0] != 5005 || got[1] != 975 || slices.Contains(got, 995) || slices.Contains(got, 985) {
		t.Errorf("%v", got)
	}
	// What the list lacks for those that went, an audit brings.
	auditAll(t, s)
	want = append([]int64{5005}, want[2:]...)
	want = append(want, want[len(want)-1]-10)
	if got := sizes(); !slices.Equal(got, want) {
		t.Errorf("after an audit: %v, want %v", got, want)
	}
}

// BenchmarkNoteRead is what counting adds to a read, or write, of one of a million keys: the draw, and one time in 64 the sketch.
func BenchmarkNoteRead(b *testing.B) {
	s := New(DefaultLimits())
	s.Own(1)
	t := s.tables.of(1)
	keys := make([][]byte, 1<<20)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "key%013d", i)
	}
	b.ResetTimer()
	for i := range b.N {
		if sampled() {
			key := keys[i*0x9e3779b1&(len(keys)-1)]
			s.noteReadLocked(t, 1, uint64(i)*0x9e3779b97f4a7c15, key)
		}
	}
}
