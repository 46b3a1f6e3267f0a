package store_test

import (
	"slices"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

func TestTimeOnlyMovesForward(t *testing.T) {
	s := store.New(store.DefaultLimits())
	for _, c := range []struct{ set, want store.Time }{{-5, 0}, {10, 10}, {9, 10}, {11, 11}} {
		if s.SetTime(c.set); s.Time() != c.want {
			t.Errorf("time %d after SetTime(%d), want %d", s.Time(), c.set, c.want)
		}
	}
}

func TestKeyExpiresWhenTimeReachesIt(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	set(t, s, testSlot, "k", "v", 500)
	bytes := s.Stats().Bytes
	for _, c := range []struct {
		time store.Time
		want store.Presence
	}{{1499, store.Present}, {1500, store.Expired}, {1501, store.Expired}} {
		s.SetTime(c.time)
		_, _, got := s.Get(testSlot, []byte("k"), nil)
		_, peeked := s.Peek(testSlot, []byte("k"))
		m, presence := s.Inspect(testSlot, []byte("k"))
		if present := c.want == store.Present; got != present || peeked != present || presence != c.want || m.ExpiresAt != 1500 {
			t.Errorf("at %d: get %v, peek %v, inspect %v %+v", c.time, got, peeked, presence, m)
		}
		if s.Stats().Bytes != bytes {
			t.Errorf("at %d: %d bytes, want %d until reaped", c.time, s.Stats().Bytes, bytes)
		}
	}
	if s.Reap(testSlot, 1500, 10) != 1 || s.Stats() != (store.Stats{}) {
		t.Errorf("after reaping %+v", s.Stats())
	}
	if _, presence := s.Inspect(testSlot, []byte("k")); presence != store.Absent {
		t.Errorf("after reaping: presence %d", presence)
	}
}

// reapedKeys reaps and returns which keys that removed, sorted.
func reapedKeys(s *store.Store, slot uint16, cutoff store.Time, limit int) (keys []string, count int) {
	held := func() map[string]bool {
		keys := map[string]bool{}
		v := s.Freeze()
		defer v.Close()
		v.Slot(slot, func(i store.Item) error { keys[string(i.Key)] = true; return nil })
		return keys
	}
	before := held()
	count = s.Reap(slot, cutoff, limit)
	after := held()
	for key := range before {
		if !after[key] {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, count
}

func TestReap(t *testing.T) {
	fill := func() *store.Store {
		s := newStore(t, store.DefaultLimits())
		s.Own(testSlot + 1)
		set(t, s, testSlot, "d", "v", 100)
		set(t, s, testSlot, "c", "v", 200)
		set(t, s, testSlot, "a", "v", 200)
		set(t, s, testSlot, "b", "v", 200)
		set(t, s, testSlot, "late", "v", 9000)
		set(t, s, testSlot, "stays", "v", 0)
		set(t, s, testSlot+1, "other", "v", 100)
		s.SetTime(1250)
		return s
	}
	for _, c := range []struct {
		name   string
		slot   uint16
		cutoff store.Time
		limit  int
		want   []string
	}{
		{"all that is due", testSlot, 1250, 100, []string{"a", "b", "c", "d"}},
		{"no more than the limit, the earliest first and then by key", testSlot, 1250, 3, []string{"a", "b", "d"}},
		{"up to the cutoff", testSlot, 1199, 100, []string{"d"}},
		{"the cutoff itself is due", testSlot, 1100, 100, []string{"d"}},
		{"not past the store's time", testSlot, 99999, 100, []string{"a", "b", "c", "d"}},
		{"nothing due", testSlot, 1099, 100, nil},
		{"a limit of nothing", testSlot, 1250, 0, nil},
		{"a slot not owned", testSlot + 2, 1250, 100, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fill()
			counter := s.Version()
			keys, count := reapedKeys(s, c.slot, c.cutoff, c.limit)
			if !slices.Equal(keys, c.want) || count != len(c.want) {
				t.Errorf("reaped %q, said %d, want %q", keys, count, c.want)
			}
			steps := store.Version(min(len(c.want), 1))
			if s.Version()-counter != steps {
				t.Errorf("the counter moved by %d, want %d", s.Version()-counter, steps)
			}
		})
	}
}

func TestDueNamesTheSlotOfTheEarliestExpiry(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	s.Own(3, 5)
	expect := func(at store.Time, slot uint16, keys int, ok bool) {
		t.Helper()
		if gotSlot, gotKeys, gotOK := s.Due(at); gotSlot != slot || gotKeys != keys || gotOK != ok {
			t.Errorf("due at %d: slot %d, %d keys, %v, want %d, %d, %v", at, gotSlot, gotKeys, gotOK, slot, keys, ok)
		}
	}
	next := func(want store.Time) {
		t.Helper()
		if got, ok := s.NextExpiry(); got != want || ok != (want != 0) {
			t.Errorf("next expiry %d, %v, want %d", got, ok, want)
		}
	}
	expect(99999, 0, 0, false)
	next(0)
	set(t, s, 5, "a", "v", 300)
	set(t, s, 5, "b", "v", 400)
	set(t, s, 3, "c", "v", 400)
	expect(1299, 0, 0, false)
	expect(1300, 5, 1, true)
	expect(1400, 5, 2, true)
	next(1300)
	set(t, s, 5, "a", "v", 0) // its TTL is cleared
	expect(1400, 3, 1, true)
	next(1400)
	s.Disown(3)
	expect(1400, 5, 1, true)
	s.Apply(5, &store.Op{Kind: store.OpDelete, Key: []byte("b")})
	expect(99999, 0, 0, false)
	next(0)
}

func TestDueCountIsBounded(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	for i := range store.DueKeysMax + 10 {
		set(t, s, testSlot, string(rune(0x4e00+i)), "", 1)
	}
	if _, keys, _ := s.Due(2000); keys != store.DueKeysMax {
		t.Errorf("counted %d", keys)
	}
}
