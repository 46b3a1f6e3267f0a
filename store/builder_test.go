package store_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

// rebuild writes a view's slots into a builder and returns the finished store.
func rebuild(t testing.TB, v *store.View, limits store.Limits) *store.Store {
	t.Helper()
	b := store.NewBuilder(limits)
	for _, slot := range v.Slots() {
		b.Own(slot)
		if err := v.Slot(slot, func(i store.Item) error { return b.Put(slot, i) }); err != nil {
			t.Fatalf("slot %d: %v", slot, err)
		}
	}
	s, err := b.Finish(v.Version(), v.Time())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRebuiltStoreIsEqual(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	s.Own(1, 2)
	set(t, s, 1, "a", "1", 0)
	set(t, s, 1, "b", "22", 500)
	set(t, s, 2, "c", "", 50)
	s.SetTime(1100) // c has expired and must come along
	v := s.Freeze()
	defer v.Close()
	r := rebuild(t, v, store.DefaultLimits())
	if r.Stats() != s.Stats() || r.Version() != s.Version() || r.Time() != s.Time() || !slices.Equal(r.OwnedSlots(), s.OwnedSlots()) {
		t.Errorf("%+v, version %d, time %d, slots %v", r.Stats(), r.Version(), r.Time(), r.OwnedSlots())
	}
	for _, slot := range s.OwnedSlots() {
		if r.SlotStats(slot) != s.SlotStats(slot) {
			t.Errorf("slot %d: %+v, want %+v", slot, r.SlotStats(slot), s.SlotStats(slot))
		}
	}
	if slot, keys, ok := r.Due(1100); slot != 2 || keys != 1 || !ok {
		t.Errorf("due: slot %d, %d keys, %v", slot, keys, ok)
	}
}

func TestBuilderRefusesDamage(t *testing.T) {
	good := store.Item{Key: []byte("k"), Value: []byte("v"), Version: 3}
	for _, c := range []struct {
		name string
		slot uint16
		item store.Item
		want error
	}{
		{"good", 1, store.Item{Key: []byte("l"), Version: 4, ExpiresAt: 5}, nil},
		{"slot not owned", 2, good, store.ErrItemInvalid},
		{"no such slot", store.SlotCount, good, store.ErrItemInvalid},
		{"empty key", 1, store.Item{Version: 1}, store.ErrKeyEmpty},
		{"key too large", 1, store.Item{Key: make([]byte, 32<<10+1), Version: 1}, store.ErrKeyTooLarge},
		{"value too large", 1, store.Item{Key: []byte("l"), Value: make([]byte, 64<<20+1), Version: 1}, store.ErrValueTooLarge},
		{"no version", 1, store.Item{Key: []byte("l")}, store.ErrItemInvalid},
		{"negative expiry time", 1, store.Item{Key: []byte("l"), Version: 1, ExpiresAt: -1}, store.ErrItemInvalid},
		{"key twice", 1, good, store.ErrItemInvalid},
	} {
		b := store.NewBuilder(store.DefaultLimits())
		b.Own(1)
		if err := b.Put(1, good); err != nil {
			t.Fatal(err)
		}
		if err := b.Put(c.slot, c.item); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	b := store.NewBuilder(store.DefaultLimits())
	b.Own(1)
	if err := b.Put(1, good); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(1, store.Item{Key: []byte("older"), Version: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Finish(2, 0); !errors.Is(err, store.ErrItemInvalid) {
		t.Errorf("a counter below an item's version: %v", err)
	}
}

func TestBuilderAcceptsWhatWiderLimitsLetIn(t *testing.T) {
	b := store.NewBuilder(store.Limits{KeyBytesMax: 1, ValueBytesMax: 1})
	b.Own(1)
	if err := b.Put(1, store.Item{Key: []byte("long"), Value: []byte("longer"), Version: 1}); err != nil {
		t.Error(err)
	}
}

func TestBuilderCopiesWhatItKeeps(t *testing.T) {
	b := store.NewBuilder(store.DefaultLimits())
	b.Own(1)
	key, value := []byte("key"), []byte("value")
	if err := b.Put(1, store.Item{Key: key, Value: value, Version: 1}); err != nil {
		t.Fatal(err)
	}
	clear(key)
	clear(value)
	s, err := b.Finish(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, ok := s.Get(1, []byte("key"), nil); !ok || string(got) != "value" {
		t.Errorf("%q, %v", got, ok)
	}
}
