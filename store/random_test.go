package store_test

import (
	"bytes"
	"flag"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/ostraka-db/ostraka/store"
	"pgregory.net/rapid"
)

// rapid's own defaults are too few steps for a freeze, a reap and a read of the view to meet. The command line still
// overrides these.
func init() {
	flag.Set("rapid.steps", "100")
	flag.Set("rapid.checks", "300")
}

const randomSlots = 3 // few, so that keys meet

var randomLimits = store.Limits{KeyBytesMax: 6, ValueBytesMax: 24}

var randomKeys = []string{"a", "aa", "a\x00", "b", "ba", "c", "\x00", "\xff\xff", "d", "e", "f", "123456", "1234567", ""}

// slotOf stands in for the real hash: the store must not care.
func slotOf(key []byte) uint16 {
	if len(key) == 0 {
		return 0
	}
	return uint16(key[len(key)-1]) % randomSlots
}

func drawOp(t *rapid.T) store.Op {
	bytesFrom := func(name string, of ...string) []byte { return []byte(rapid.SampledFrom(of).Draw(t, name)) }
	op := store.Op{
		Kind:           store.OpKind(rapid.SampledFrom([]int{1, 1, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8}).Draw(t, "kind")),
		Key:            bytesFrom("key", randomKeys...),
		Value:          bytesFrom("value", "", "x", "yy", "0", "-7", "9223372036854775807", "012345678901234567890123", "0123456789012345678901234"),
		Old:            bytesFrom("old", "", "x", "yy", "0"),
		Delta:          rapid.SampledFrom([]int64{0, 1, -1, 1000, math.MaxInt64, math.MinInt64}).Draw(t, "delta"),
		Condition:      store.Condition(rapid.SampledFrom([]int{0, 0, 0, 0, 0, 1, 2, 3}).Draw(t, "condition")),
		ReturnPrevious: rapid.Bool().Draw(t, "previous"),
		ValueBytesMax:  rapid.SampledFrom([]int{0, 0, 0, 0, 20, 100}).Draw(t, "value bytes max"),
	}
	if op.Condition == store.CondVersion {
		op.IfVersion = store.Version(rapid.IntRange(0, 20).Draw(t, "version"))
	}
	if op.Kind == store.OpSet || op.Kind == store.OpExpire {
		op.TTL = rapid.SampledFrom([]int64{0, 1, 2, 2, 5, 5, 30, math.MaxInt64, -1}).Draw(t, "ttl")
		op.KeepTTL = op.Kind == store.OpSet && rapid.Bool().Draw(t, "keep ttl")
	}
	return op
}

// frozen is an open view and what it must show.
type frozen struct {
	view *store.View
	want *model
	left []uint16 // slots not read yet
}

// machine drives a store and its model through the same random steps.
type machine struct {
	store *store.Store
	model *model
	views []*frozen
}

// TestRandomOperations compares a store with the model after every step: all results, all reads, all figures;
// with views held open across writes, and the store replaced by one rebuilt from a view, midway.
func TestRandomOperations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{store: store.New(randomLimits), model: newModel(randomLimits)}
		for slot := range uint16(randomSlots) {
			m.own(slot)
		}
		t.Repeat(map[string]func(*rapid.T){
			"apply": func(t *rapid.T) { // several, to leave room for the rest
				for range rapid.IntRange(1, 10).Draw(t, "ops") {
					m.apply(t)
				}
			},
			"time":    m.setTime,
			"reap":    m.reap,
			"own":     func(t *rapid.T) { m.own(uint16(rapid.IntRange(0, randomSlots-1).Draw(t, "slot"))) },
			"disown":  m.disown,
			"raise":   m.raise,
			"freeze":  m.freeze,
			"read":    m.readFrozen,
			"restore": m.restore,
			"page":    m.page,
			"":        m.check,
		})
		for _, f := range m.views {
			f.view.Close()
		}
	})
}

func (m *machine) apply(t *rapid.T) {
	op := drawOp(t)
	got, want := m.store.Apply(slotOf(op.Key), &op), m.model.apply(slotOf(op.Key), &op)
	if !bytes.Equal(got.Previous, want.Previous) {
		t.Fatalf("%+v: previous %q, want %q", op, got.Previous, want.Previous)
	}
	got.Previous, want.Previous = nil, nil
	if got.Status != want.Status || got.Version != want.Version || got.Number != want.Number || got.Existed != want.Existed ||
		got.PreviousVersion != want.PreviousVersion || got.HasPrevious != want.HasPrevious {
		t.Fatalf("%+v:\n got %+v\nwant %+v", op, got, want)
	}
}

func (m *machine) setTime(t *rapid.T) {
	at := m.model.time + store.Time(rapid.IntRange(-1, 5).Draw(t, "step"))
	m.store.SetTime(at)
	m.model.time = max(m.model.time, at)
}

func (m *machine) reap(t *rapid.T) {
	slot := uint16(rapid.IntRange(0, randomSlots-1).Draw(t, "slot"))
	cutoff := m.model.time + store.Time(rapid.IntRange(-3, 5).Draw(t, "cutoff"))
	limit := rapid.SampledFrom([]int{0, 1, 2, 100}).Draw(t, "limit")
	if got, want := m.store.Reap(slot, cutoff, limit), m.model.reap(slot, cutoff, limit); got != want {
		t.Fatalf("reaped %d, want %d", got, want)
	}
}

func (m *machine) own(slot uint16) {
	m.store.Own(slot)
	if m.model.slots[slot] == nil {
		m.model.slots[slot] = map[string]modelItem{}
	}
}

func (m *machine) disown(t *rapid.T) {
	slot := uint16(rapid.IntRange(0, randomSlots-1).Draw(t, "slot"))
	m.store.Disown(slot)
	delete(m.model.slots, slot)
}

func (m *machine) raise(t *rapid.T) {
	v := m.model.version + store.Version(rapid.IntRange(0, 2).Draw(t, "step"))
	m.store.RaiseVersion(v)
	m.model.version = v
}

func (m *machine) freeze(t *rapid.T) {
	if len(m.views) == 3 {
		t.Skip("enough views")
	}
	f := &frozen{view: m.store.Freeze(), want: m.model.clone()}
	f.left = rapid.Permutation(f.view.Slots()).Draw(t, "order")
	m.views = append(m.views, f)
}

// readFrozen reads one more slot of a view.
func (m *machine) readFrozen(t *rapid.T) {
	f := m.drawView(t)
	if len(f.left) > 0 {
		f.readNext(t, func(uint16, store.Item) error { return nil })
	}
}

func (m *machine) drawView(t *rapid.T) *frozen {
	if len(m.views) == 0 {
		t.Skip("no view")
	}
	return rapid.SampledFrom(m.views).Draw(t, "view")
}

// readNext compares the next slot of a view with its model and passes the items on.
func (f *frozen) readNext(t *rapid.T, pass func(uint16, store.Item) error) {
	slot := f.left[0]
	f.left = f.left[1:]
	got := map[string]modelItem{}
	err := f.view.Slot(slot, func(i store.Item) error {
		got[string(i.Key)] = modelItem{value: string(i.Value), version: i.Version, expiresAt: i.ExpiresAt}
		return pass(slot, i)
	})
	if err != nil || !maps.Equal(got, f.want.slots[slot]) {
		t.Fatalf("view of slot %d: %v\n got %+v\nwant %+v", slot, err, got, f.want.slots[slot])
	}
}

// restore rebuilds a store from a view none of which was read yet, and goes on with that, back at its moment.
func (m *machine) restore(t *rapid.T) {
	f := m.drawView(t)
	slots := f.view.Slots()
	if len(f.left) != len(slots) {
		t.Skip("partly read")
	}
	b := store.NewBuilder(randomLimits)
	b.Own(slots...)
	for len(f.left) > 0 {
		f.readNext(t, b.Put)
	}
	s, err := b.Finish(f.view.Version(), f.view.Time())
	if err != nil {
		t.Fatal(err)
	}
	if s.Stats() != f.view.Stats() {
		t.Fatalf("rebuilt %+v, frozen %+v", s.Stats(), f.view.Stats())
	}
	f.view.Close()
	m.views = slices.DeleteFunc(m.views, func(other *frozen) bool { return other == f })
	m.store, m.model = s, f.want
}

// page compares a bounded scan.
func (m *machine) page(t *rapid.T) {
	from := rapid.SampledFrom(randomKeys).Draw(t, "from")
	var to []byte
	if rapid.Bool().Draw(t, "bounded") {
		to = []byte(rapid.SampledFrom(randomKeys).Draw(t, "to"))
	}
	limit := rapid.IntRange(0, 5).Draw(t, "limit")
	want := m.model.scan(from, string(to), to == nil)
	got, next, more := scanAll(m.store, []byte(from), to, limit, 0)
	wantNext := ""
	if limit > 0 && len(want) > limit {
		want, wantNext = want[:limit], want[limit]
	}
	if !slices.Equal(got, want) || string(next) != wantNext || more != (wantNext != "") {
		t.Fatalf("scan [%q, %q) limit %d: %q, next %q, want %q, next %q", from, to, limit, got, next, want, wantNext)
	}
}

// check compares everything that can be read.
func (m *machine) check(t *rapid.T) {
	if m.store.Version() != m.model.version || m.store.Time() != m.model.time {
		t.Fatalf("version %d, time %d, want %d, %d", m.store.Version(), m.store.Time(), m.model.version, m.model.time)
	}
	if got, want := m.store.OwnedSlots(), slices.Sorted(maps.Keys(m.model.slots)); !slices.Equal(got, want) {
		t.Fatalf("owns %v, want %v", got, want)
	}
	if err := m.store.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	m.checkKeys(t)
	if got, want := scanned(m.store), m.model.scan("", "", true); !slices.Equal(got, want) {
		t.Fatalf("scan %q, want %q", got, want)
	}
	m.checkStats(t)
	for _, at := range []store.Time{m.model.time, m.model.time + 10, math.MaxInt64} {
		slot, keys, ok := m.store.Due(at)
		next, _ := m.store.NextExpiry()
		wantSlot, wantKeys, wantOK, wantNext := m.model.due(at)
		if slot != wantSlot || keys != wantKeys || ok != wantOK || next != wantNext {
			t.Fatalf("due at %d: %d, %d, %v, next %d, want %d, %d, %v, next %d", at, slot, keys, ok, next, wantSlot, wantKeys, wantOK, wantNext)
		}
	}
}

func scanned(s *store.Store) []string {
	keys, _, _ := scanAll(s, nil, nil, 0, 0)
	return keys
}

func (m *machine) checkKeys(t *rapid.T) {
	for _, key := range randomKeys {
		slot := slotOf([]byte(key))
		value, meta, ok := m.store.Get(slot, []byte(key), nil)
		item, exists := m.model.live(slot, key)
		want := store.Meta{Version: item.version, ExpiresAt: item.expiresAt, ValueBytes: len(item.value)}
		if ok != exists || string(value) != item.value || meta != want {
			t.Fatalf("%q: %q, %+v, %v, want %+v", key, value, meta, ok, item)
		}
		_, presence := m.store.Inspect(slot, []byte(key))
		_, held := m.model.slots[slot][key]
		if (presence == store.Present) != exists || (presence == store.Absent) == held {
			t.Fatalf("%q: presence %d, exists %v, held %v", key, presence, exists, held)
		}
	}
}

// checkStats compares figures with the model, and the checksum with that of a store built from nothing.
func (m *machine) checkStats(t *rapid.T) {
	var sum store.Stats
	for slot := range uint16(randomSlots) {
		got, want := m.store.SlotStats(slot), m.model.slotStats(slot)
		want.Checksum = m.model.checksum(t, slot)
		if got != want {
			t.Fatalf("slot %d: %+v, want %+v", slot, got, want)
		}
		sum.Keys, sum.Bytes, sum.Expiring, sum.Checksum = sum.Keys+got.Keys, sum.Bytes+got.Bytes, sum.Expiring+got.Expiring, sum.Checksum+got.Checksum
	}
	if m.store.Stats() != sum || m.store.Checksum() != sum.Checksum {
		t.Fatalf("store %+v, its slots %+v", m.store.Stats(), sum)
	}
}

func (m *model) checksum(t *rapid.T, slot uint16) uint64 {
	b := store.NewBuilder(m.limits)
	b.Own(slot)
	for key, item := range m.slots[slot] {
		if err := b.Put(slot, store.Item{Key: []byte(key), Value: []byte(item.value), Version: item.version, ExpiresAt: item.expiresAt}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.Finish(m.version, m.time)
	if err != nil {
		t.Fatal(err)
	}
	return s.Checksum()
}

// TestReplicasAgree feeds two stores the same log. One of them is frozen and read all the time, and both are read; neither
// may show in the contents.
func TestReplicasAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := store.New(randomLimits), store.New(randomLimits)
		for slot := range uint16(randomSlots) {
			a.Own(slot)
			b.Own(slot)
		}
		for range rapid.IntRange(1, 60).Draw(t, "entries") {
			op := drawOp(t)
			at := a.Time() + store.Time(rapid.IntRange(0, 5).Draw(t, "step"))
			v := a.Freeze()
			a.Get(slotOf(op.Key), op.Key, nil)
			for _, s := range []*store.Store{a, b} {
				s.SetTime(at)
				s.Apply(slotOf(op.Key), &op)
				s.Reap(slotOf(op.Key), at-3, 2)
			}
			v.Close()
			scanned(b)
			if a.Stats() != b.Stats() || a.Version() != b.Version() {
				t.Fatalf("after %+v: %+v at %d, and %+v at %d", op, a.Stats(), a.Version(), b.Stats(), b.Version())
			}
		}
	})
}
