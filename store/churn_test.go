package store_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

// churn drives a store and its model through many operations on many keys of all sizes, which the machine of random_test.go, made
// for everything to meet, leaves out: tables with directories, trees with levels, classes with pages to vacate, large values.
type churn struct {
	t      *testing.T
	random *rand.Rand
	store  *store.Store
	model  *model
	views  []*frozen
	keys   int // there are so many different ones
	slots  int
}

func newChurn(t *testing.T, seed uint64, s *store.Store, keys, slots int) *churn {
	c := &churn{t: t, random: rand.New(rand.NewPCG(seed, 1)), store: s, model: newModel(s.Limits()), keys: keys, slots: slots}
	for slot := range uint16(slots) {
		c.own(slot)
	}
	return c
}

func (c *churn) own(slot uint16) {
	c.store.Own(slot)
	if c.model.slots[slot] == nil {
		c.model.slots[slot] = map[string]modelItem{}
	}
}

// key returns key number i and its slot. The first slot has half of all. Some keys are long, some begin alike for long.
func (c *churn) key(i int) ([]byte, uint16) {
	slot := uint16(max(i%(2*c.slots)-c.slots, 0))
	switch {
	case i%997 == 0:
		return bytes.Repeat(fmt.Appendf(nil, "%05d", i), 1+i%(6<<10)), slot
	case i%3 == 0:
		return fmt.Appendf(nil, "user:%d:profile", i), slot
	case i%3 == 1:
		return binary.BigEndian.AppendUint64(nil, uint64(i)*0x9e3779b97f4a7c15), slot
	}
	return fmt.Appendf(nil, "%s%d", bytes.Repeat([]byte{'p'}, 300), i), slot
}

func (c *churn) value() []byte {
	n := c.random.IntN(200)
	switch c.random.IntN(200) {
	case 0:
		n = 15<<10 + c.random.IntN(3<<10) // around the border to large values
	case 1, 2, 3:
		n = c.random.IntN(5 << 10)
	}
	value := make([]byte, n)
	for i := range value {
		value[i] = byte(c.random.Uint32())
	}
	return value
}

// apply does one operation, of which removes in ten are deletes.
func (c *churn) apply(removes int) {
	key, slot := c.key(c.random.IntN(c.keys))
	op := store.Op{Kind: store.OpSet, Key: key}
	switch n := c.random.IntN(10); {
	case n < removes:
		op.Kind = store.OpDelete
	case n == 9:
		op.Kind, op.Value = store.OpAppend, c.value()
	case n == 8:
		op.Kind = []store.OpKind{store.OpTouch, store.OpPersist, store.OpExpire}[c.random.IntN(3)]
		if op.Kind == store.OpExpire {
			op.TTL = 1 + int64(c.random.IntN(1000))
		}
	default:
		op.Value = c.value()
		if c.random.IntN(3) == 0 {
			op.TTL = 1 + int64(c.random.IntN(1000))
		}
	}
	got, want := c.store.Apply(slot, &op), c.model.apply(slot, &op)
	if got.Status != want.Status || got.Version != want.Version || got.Number != want.Number || got.Existed != want.Existed {
		c.t.Fatalf("kind %d on %.20q: got %+v, want %+v", op.Kind, key, got, want)
	}
	clear(op.Value) // it was copied
}

// step lets time pass, reaps, freezes, reads views and moves slots away, each now and then.
func (c *churn) step() {
	switch c.random.IntN(40) {
	case 0, 1, 2, 3, 4, 5, 6, 7:
		at := c.model.time + store.Time(c.random.IntN(30))
		c.store.SetTime(at)
		c.model.time = at
	case 8, 9, 10, 11, 12, 13, 14:
		slot, _, ok := c.store.Due(c.model.time)
		if got, want := c.store.Reap(slot, c.model.time, 50), c.model.reap(slot, c.model.time, 50); got != want || (ok && got == 0) {
			c.t.Fatalf("reaped %d, want %d, due %v", got, want, ok)
		}
	case 15:
		if len(c.views) < 3 {
			f := &frozen{view: c.store.Freeze(), want: c.model.clone()}
			f.left = f.view.Slots()
			c.random.Shuffle(len(f.left), func(i, j int) { f.left[i], f.left[j] = f.left[j], f.left[i] })
			c.views = append(c.views, f)
		}
	case 16, 17, 18, 19:
		if len(c.views) > 0 {
			i := c.random.IntN(len(c.views))
			if f := c.views[i]; len(f.left) > 0 {
				c.readNext(f)
			} else {
				f.view.Close()
				c.views = slices.Delete(c.views, i, i+1)
			}
		}
	case 20:
		if slot := uint16(c.random.IntN(c.slots)); c.random.IntN(5) == 0 {
			c.store.Disown(slot)
			delete(c.model.slots, slot)
			c.own(slot)
		}
	}
}

// readNext reads the next slot of a view, with writes to the slot in between.
func (c *churn) readNext(f *frozen) {
	slot := f.left[0]
	f.left = f.left[1:]
	got := map[string]modelItem{}
	last := ""
	err := f.view.Slot(slot, func(i store.Item) error {
		if string(i.Key) <= last && last != "" {
			c.t.Fatalf("%.30q after %.30q", i.Key, last)
		}
		last = string(i.Key)
		got[last] = modelItem{value: string(i.Value), version: i.Version, expiresAt: i.ExpiresAt}
		c.apply(4)
		return nil
	})
	if err != nil || !maps.Equal(got, f.want.slots[slot]) {
		c.t.Fatalf("view of slot %d: %v, %d items, want %d", slot, err, len(got), len(f.want.slots[slot]))
	}
}

// check compares everything with the model.
func (c *churn) check() {
	c.t.Helper()
	if err := c.store.CheckInvariants(); err != nil {
		c.t.Fatal(err)
	}
	var want []string
	for slot, items := range c.model.slots {
		if got, want := c.store.SlotStats(slot), c.model.slotStats(slot); got.Keys != want.Keys || got.Bytes != want.Bytes || got.Expiring != want.Expiring {
			c.t.Fatalf("slot %d: %+v, want %+v", slot, got, want)
		}
		for key := range items {
			item, ok := c.model.live(slot, key)
			value, m, found := c.store.Get(slot, []byte(key), nil)
			if ok != found || string(value) != item.value || m.Version != item.version || m.ExpiresAt != item.expiresAt {
				c.t.Fatalf("%.30q: %d bytes, %+v, %v", key, len(value), m, found)
			}
			if ok {
				want = append(want, key)
			}
		}
	}
	slices.Sort(want)
	if got := scanned(c.store); !slices.Equal(got, want) {
		c.t.Fatalf("a scan shows %d keys, want %d", len(got), len(want))
	}
	c.store.Scan(nil, nil, 0, 0, func(key, value []byte, m store.Meta) bool {
		if m.ValueBytes != len(value) {
			c.t.Fatalf("%.30q: %d bytes, %+v", key, len(value), m)
		}
		return true
	})
}

// crash goes on with a store rebuilt from a view of this moment, as after a restart, and gives the old one up as it is.
func (c *churn) crash() {
	for _, f := range c.views {
		f.view.Close()
	}
	c.views = nil
	v := c.store.Freeze()
	rebuilt := rebuild(c.t, v, c.store.Limits())
	if rebuilt.Stats() != c.store.Stats() {
		c.t.Fatalf("rebuilt %+v, was %+v", rebuilt.Stats(), c.store.Stats())
	}
	c.store = rebuilt
}

func TestChurn(t *testing.T) {
	rounds, ops := 6, 10_000
	if raceEnabled {
		rounds, ops = 3, 4_000
	}
	for _, shape := range []struct{ keys, slots int }{{300, 3}, {8_000, 2}, {8_000, 500}} {
		t.Run(fmt.Sprintf("keys=%d,slots=%d", shape.keys, shape.slots), func(t *testing.T) {
			c := newChurn(t, uint64(shape.keys+shape.slots), store.New(store.MaxLimits()), shape.keys, shape.slots)
			for round := range rounds {
				for range ops {
					c.apply([]int{1, 2, 7, 3}[round%4])
					c.step()
				}
				c.check()
				if round%3 == 2 {
					c.crash()
					c.check()
				}
			}
			for _, f := range c.views {
				for len(f.left) > 0 {
					c.readNext(f)
				}
				f.view.Close()
			}
			c.check()
		})
	}
}

// The arena's end: what views keep gives way, and is told so, and nothing else shows.
func TestViewsGiveWayForRoom(t *testing.T) {
	const last = 1<<20 - 1
	s := store.NewTiny(store.Limits{KeyBytesMax: 100, ValueBytesMax: 1000}, last-11, last)
	c := newChurn(t, 1, s, 300, 3)
	set := func(i int) {
		key := fmt.Appendf(nil, "key%d", i%300)
		op := store.Op{Kind: store.OpSet, Key: key, Value: bytes.Repeat([]byte{byte(i)}, 500)}
		if got, want := s.Apply(uint16(i%3), &op), c.model.apply(uint16(i%3), &op); got.Status != want.Status || got.Version != want.Version {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
	for i := range 300 {
		set(i)
	}
	v := s.Freeze()
	if err := v.Slot(0, func(store.Item) error { return nil }); err != nil {
		t.Fatal(err)
	}
	broken := false
	for i := 0; i < 20_000 && !broken; i++ {
		set(i)
		if i%100 == 0 { // a new view each time: what all of them keep has no end
			w := s.Freeze()
			defer w.Close()
		}
		if i%1000 == 999 {
			if err := s.CheckInvariants(); err != nil {
				t.Fatal(err)
			}
			err := v.Slot(0, func(store.Item) error { return nil })
			broken = errors.Is(err, store.ErrViewBroken)
			if !broken && !errors.Is(err, store.ErrSlotNotInView) {
				t.Fatal(err)
			}
		}
	}
	if !broken {
		t.Fatal("the view held out")
	}
	c.check()
	v.Close()
	w := s.Freeze() // a new one can be read
	defer w.Close()
	if got := len(readSlot(t, w, 1)); got != 100 {
		t.Errorf("%d items", got)
	}
}

func TestFullStore(t *testing.T) {
	s := newStore(t, store.Limits{KeyBytesMax: 10, ValueBytesMax: 10, KeysMax: 3, BytesMax: 19})
	status := func(want store.Status, op store.Op) {
		t.Helper()
		before, version := s.Stats(), s.Version()
		if r := s.Apply(testSlot, &op); r.Status != want {
			t.Errorf("%v, want %v", r.Status, want)
		}
		if want != store.StatusOK && (s.Stats() != before || s.Version() != version) {
			t.Errorf("a refused op wrote")
		}
	}
	status(store.StatusOK, store.Op{Kind: store.OpSet, Key: []byte("a"), Value: []byte("123456789")})
	status(store.StatusOK, store.Op{Kind: store.OpSet, Key: []byte("b"), Value: []byte("12345678")})
	status(store.StatusFull, store.Op{Kind: store.OpSet, Key: []byte("c"), Value: []byte("1")})
	status(store.StatusFull, store.Op{Kind: store.OpAppend, Key: []byte("a"), Value: []byte("1")})
	status(store.StatusTooLarge, store.Op{Kind: store.OpAppend, Key: []byte("a"), Value: []byte("1234")})
	status(store.StatusOK, store.Op{Kind: store.OpSet, Key: []byte("a"), Value: []byte("1234567")})
	status(store.StatusOK, store.Op{Kind: store.OpSet, Key: []byte("c"), Value: []byte("1")})
	status(store.StatusFull, store.Op{Kind: store.OpIncrement, Key: []byte("d"), Delta: 1})
	status(store.StatusOK, store.Op{Kind: store.OpDelete, Key: []byte("c")})
	status(store.StatusOK, store.Op{Kind: store.OpIncrement, Key: []byte("d"), Delta: 1})
	if err := s.CheckInvariants(); err != nil {
		t.Error(err)
	}
}

// FuzzStore takes each three bytes for an operation on a store of tiny limits and little memory, beside the model.
func FuzzStore(f *testing.F) {
	f.Add([]byte{0, 1, 200, 3, 1, 0, 5, 0, 0, 6, 0, 0, 0, 1, 100, 7, 0, 0})
	f.Add(bytes.Repeat([]byte{0, 1, 2, 8, 1, 9, 5, 7, 1, 6, 3, 3, 16, 20, 30}, 40))
	f.Fuzz(func(t *testing.T, steps []byte) {
		limits := store.Limits{KeyBytesMax: 300, ValueBytesMax: 40 << 10, KeysMax: 50, BytesMax: 200 << 10}
		c := newChurn(t, 0, store.NewTiny(limits, 1<<20-400, 1<<20-1), 0, 2)
		for ; len(steps) >= 3; steps = steps[3:] {
			c.fuzzStep(steps[0], steps[1], steps[2])
		}
		c.check()
		for _, f := range c.views {
			for len(f.left) > 0 {
				slot := f.left[0]
				f.left = f.left[1:]
				got := 0
				if err := f.view.Slot(slot, func(store.Item) error { got++; return nil }); err != nil || got != len(f.want.slots[slot]) {
					t.Fatalf("view of slot %d: %v, %d items, want %d", slot, err, got, len(f.want.slots[slot]))
				}
			}
			f.view.Close()
		}
		c.check()
	})
}

func (c *churn) fuzzStep(kind, a, b byte) {
	key := bytes.Repeat([]byte{a & 0x3f}, int(a>>6)*90+1)
	slot := uint16(a & 1)
	op := store.Op{Kind: store.OpSet, Key: key, Value: bytes.Repeat([]byte{b}, int(b)*int(b&0xf)*10)}
	switch kind & 0xf {
	case 1:
		op.TTL = 1 + int64(b)
	case 2:
		op.Kind, op.Value = store.OpDelete, nil
	case 3:
		op.Kind = store.OpAppend
	case 4:
		op.Kind, op.Value, op.TTL = store.OpExpire, nil, 1+int64(b)
	case 5:
		at := c.model.time + store.Time(b)
		c.store.SetTime(at)
		c.model.time = at
		return
	case 6:
		if got, want := c.store.Reap(slot, c.model.time, int(b)), c.model.reap(slot, c.model.time, int(b)); got != want {
			c.t.Fatalf("reaped %d, want %d", got, want)
		}
		return
	case 7:
		if len(c.views) < 4 {
			f := &frozen{view: c.store.Freeze(), want: c.model.clone()}
			f.left = f.view.Slots()
			c.views = append(c.views, f)
		}
		return
	case 8:
		if len(c.views) > 0 {
			if f := c.views[int(b)%len(c.views)]; len(f.left) > 0 {
				c.readFuzzed(f)
			}
		}
		return
	case 9:
		c.store.Disown(slot)
		delete(c.model.slots, slot)
		c.own(slot)
		return
	case 10:
		op.Kind, op.Value = store.OpTouch, nil
	case 11:
		op.Kind, op.Value, op.Delta = store.OpIncrement, nil, int64(b)
	}
	got, want := c.store.Apply(slot, &op), c.model.apply(slot, &op)
	if got.Status != want.Status || got.Version != want.Version || got.Number != want.Number {
		c.t.Fatalf("kind %d: got %+v, want %+v", op.Kind, got, want)
	}
}

func (c *churn) readFuzzed(f *frozen) {
	slot := f.left[0]
	f.left = f.left[1:]
	got := map[string]modelItem{}
	err := f.view.Slot(slot, func(i store.Item) error {
		got[string(i.Key)] = modelItem{value: string(i.Value), version: i.Version, expiresAt: i.ExpiresAt}
		return nil
	})
	if err != nil || !maps.Equal(got, f.want.slots[slot]) {
		c.t.Fatalf("view of slot %d: %v, %d items, want %d", slot, err, len(got), len(f.want.slots[slot]))
	}
}

// A node may hold hundreds of replicas with little in them.
func TestSmallStoresStaySmall(t *testing.T) {
	const stores = 64
	before := heapBytes()
	var all []*store.Store
	for range stores {
		s := store.New(store.DefaultLimits())
		for slot := range uint16(64) {
			s.Own(slot)
		}
		for i := range 100 {
			set(t, s, uint16(i%64), fmt.Sprint("key", i), "value", 0)
		}
		all = append(all, s)
	}
	heap := (heapBytes() - before) / stores
	var reserved int64 // most of it never touched
	for _, s := range all {
		reserved = max(reserved, s.MemoryStats().Reserved)
	}
	t.Logf("a store of 100 keys: %d bytes of heap, %d reserved outside", heap, reserved)
	if heap > 64<<10 && !raceEnabled || reserved > 640<<10 {
		t.Errorf("a store of 100 keys: %d bytes of heap, %d reserved outside", heap, reserved)
	}
}
