package store_test

import (
	"slices"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

func TestOwnership(t *testing.T) {
	s := store.New(store.DefaultLimits())
	s.Own(16383, 0, 64, 63)
	s.Own(64)
	if got := s.OwnedSlots(); !slices.Equal(got, []uint16{0, 63, 64, 16383}) {
		t.Errorf("owned %v", got)
	}
	set(t, s, 64, "a", "v", 0)
	set(t, s, 0, "b", "v", 9)
	s.Own(64)
	if s.SlotStats(64).Keys != 1 {
		t.Error("owning an owned slot emptied it")
	}
	zero := s.SlotStats(0)
	s.Disown(64)
	s.Disown(64)
	if s.Owns(64) || !s.Owns(63) || s.Stats() != zero || s.SlotStats(64) != (store.Stats{}) {
		t.Errorf("after disowning: %v, %+v", s.OwnedSlots(), s.Stats())
	}
	if keys, _, _ := scanAll(s, nil, nil, 0, 0); !slices.Equal(keys, []string{"b"}) {
		t.Errorf("scan shows %q", keys)
	}
	s.Own(64)
	if _, _, ok := s.Get(64, []byte("a"), nil); ok || s.Version() != 2 {
		t.Errorf("owned again: key there %v, counter %d", ok, s.Version())
	}
}

func TestOwnPanicsPastTheLastSlot(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	store.New(store.DefaultLimits()).Own(store.SlotCount)
}

func TestRaiseVersion(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	s.RaiseVersion(10)
	s.RaiseVersion(5)
	if v := set(t, s, testSlot, "k", "v", 0); v != 11 {
		t.Errorf("version %d, want 11", v)
	}
}

func TestGetAppendsAndDoesNotAllocate(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	set(t, s, testSlot, "k", "value", 0)
	key, dst := []byte("k"), append(make([]byte, 0, 64), "before "...)
	if got, _, _ := s.Get(testSlot, key, dst); string(got) != "before value" {
		t.Errorf("%q", got)
	}
	if got, _, ok := s.Get(testSlot, []byte("none"), dst); ok || string(got) != "before " {
		t.Errorf("%q, %v of a missing key", got, ok)
	}
	if n := testing.AllocsPerRun(100, func() { s.Get(testSlot, key, dst) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Replicas of different builds compare checksums, so these may never change. The figures were computed by a
// second implementation, from the description in checksum.go.
func TestChecksumGolden(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	step := func(what string, want uint64) {
		t.Helper()
		if got := s.Checksum(); got != want {
			t.Errorf("%s: %#x, want %#x", what, got, want)
		}
	}
	step("empty", 0)
	set(t, s, testSlot, "k", "v", 0)
	step("one key", 0x8300b8161b428e04)
	set(t, s, testSlot, "a key of more than 16 bytes", "a value of more than sixteen bytes, too", 5)
	step("two keys", 0xdd0e1741453033b7)
}

// Every single difference between two items must show.
func TestChecksumCoversEverything(t *testing.T) {
	seen := map[uint64]string{}
	for name, item := range map[string]store.Item{
		"base":               {Key: []byte("key"), Value: []byte("value"), Version: 1},
		"key":                {Key: []byte("kez"), Value: []byte("value"), Version: 1},
		"value":              {Key: []byte("key"), Value: []byte("valuf"), Version: 1},
		"version":            {Key: []byte("key"), Value: []byte("value"), Version: 2},
		"expiry":             {Key: []byte("key"), Value: []byte("value"), Version: 1, ExpiresAt: 1},
		"version and expiry": {Key: []byte("key"), Value: []byte("value"), Version: 2, ExpiresAt: 1},
		"border moved":       {Key: []byte("keyv"), Value: []byte("alue"), Version: 1},
		"zero appended":      {Key: []byte("key"), Value: []byte("value\x00"), Version: 1},
		"zero in the key":    {Key: []byte("key\x00"), Value: []byte("value"), Version: 1},
		"empty value":        {Key: []byte("key"), Version: 1},
		"16 bytes":           {Key: []byte("key"), Value: []byte("0123456789abcdef"), Version: 1},
		"16 bytes, swapped":  {Key: []byte("key"), Value: []byte("89abcdef01234567"), Version: 1},
		"17 bytes":           {Key: []byte("key"), Value: []byte("0123456789abcdef\x00"), Version: 1},
	} {
		b := store.NewBuilder(store.DefaultLimits())
		b.Own(1)
		if err := b.Put(1, item); err != nil {
			t.Fatal(err)
		}
		s, err := b.Finish(10, 0)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[s.Checksum()]; ok {
			t.Errorf("%s and %s have one checksum", name, other)
		}
		seen[s.Checksum()] = name
	}
}
