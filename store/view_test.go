package store_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

// readSlot collects a slot of a view, as text, in the order given.
func readSlot(t testing.TB, v *store.View, slot uint16) (items []string) {
	t.Helper()
	err := v.Slot(slot, func(i store.Item) error {
		items = append(items, fmt.Sprintf("%s=%s v%d e%d", i.Key, i.Value, i.Version, i.ExpiresAt))
		return nil
	})
	if err != nil {
		t.Fatalf("slot %d: %v", slot, err)
	}
	return items
}

func TestViewShowsItsMoment(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	s.Own(1, 2, 3, 5, 16383)
	set(t, s, 1, "b", "1", 0)
	set(t, s, 1, "a", "2", 500)
	set(t, s, 2, "c", "3", 0)
	set(t, s, 3, "d", "4", 0)
	set(t, s, 5, "e", "5", 1)
	v := s.Freeze()
	defer v.Close()
	stats := s.Stats()

	set(t, s, 1, "b", "overwritten", 0)
	s.Apply(1, &store.Op{Kind: store.OpAppend, Key: []byte("a"), Value: []byte("appended")})
	s.Apply(2, &store.Op{Kind: store.OpDelete, Key: []byte("c")})
	set(t, s, 16383, "new", "v", 0)
	s.Disown(3)
	s.Own(4)
	s.SetTime(9999)
	s.Reap(5, 9999, 10)

	if got := v.Slots(); !slices.Equal(got, []uint16{1, 2, 3, 5, testSlot, 16383}) {
		t.Errorf("slots %v", got)
	}
	if v.Version() != 5 || v.Time() != 1000 || v.Stats() != stats {
		t.Errorf("version %d, time %d, %+v", v.Version(), v.Time(), v.Stats())
	}
	for slot, want := range map[uint16][]string{
		1:        {"a=2 v2 e1500", "b=1 v1 e0"},
		2:        {"c=3 v3 e0"},
		3:        {"d=4 v4 e0"},
		5:        {"e=5 v5 e1001"},
		testSlot: nil,
		16383:    nil,
	} {
		if got := readSlot(t, v, slot); !slices.Equal(got, want) {
			t.Errorf("slot %d: %q, want %q", slot, got, want)
		}
	}
}

func TestViewErrors(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	s.Own(1)
	set(t, s, 1, "a", "v", 0)
	set(t, s, 1, "b", "v", 0)
	nothing := func(store.Item) error { t.Error("called"); return nil }

	v := s.Freeze()
	s.Own(2)
	if err := v.Slot(2, nothing); !errors.Is(err, store.ErrSlotNotInView) {
		t.Errorf("a slot owned later: %v", err)
	}
	stop, calls := errors.New("stop"), 0
	if err := v.Slot(1, func(store.Item) error { calls++; return stop }); err != stop || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if err := v.Slot(1, nothing); !errors.Is(err, store.ErrSlotNotInView) {
		t.Errorf("a slot read twice: %v", err)
	}
	set(t, s, 1, "a", "w", 0)
	if err := v.Slot(1, nothing); !errors.Is(err, store.ErrSlotNotInView) {
		t.Errorf("a slot read, then written: %v", err)
	}
	set(t, s, testSlot, "a", "v", 0)
	if items := readSlot(t, v, testSlot); items != nil {
		t.Errorf("a slot that was empty: %q", items)
	}
	if err := v.Slot(testSlot, nothing); !errors.Is(err, store.ErrSlotNotInView) {
		t.Errorf("a slot written, then read twice: %v", err)
	}
	v.Close()
	v.Close()
	if err := v.Slot(testSlot, nothing); !errors.Is(err, store.ErrViewClosed) {
		t.Errorf("closed: %v", err)
	}
	set(t, s, testSlot, "a", "v", 0) // a closed view takes no copies
}

// One goroutine writes and freezes, each view is read on a goroutine of its own meanwhile, slots in random order,
// and must be equal to the contents at its freeze.
func TestViewsBesideWrites(t *testing.T) {
	const slots, keys, views = 8, 200, 12
	s := store.New(store.DefaultLimits())
	for slot := range uint16(slots) {
		s.Own(slot)
	}
	content := map[string]string{} // "slot/key" → value
	random := rand.New(rand.NewPCG(1, 2))
	write := func() {
		n := random.IntN(keys)
		slot, key := uint16(n%slots), fmt.Sprintf("k%03d", n)
		id := fmt.Sprintf("%d/%s", slot, key)
		if random.IntN(4) == 0 {
			s.Apply(slot, &store.Op{Kind: store.OpDelete, Key: []byte(key)})
			delete(content, id)
			return
		}
		content[id] = fmt.Sprint(set(t, s, slot, key, fmt.Sprint(s.Version()+1), 0))
	}
	for range 4 * keys {
		write()
	}

	var readers sync.WaitGroup
	for i := range views {
		v, want := s.Freeze(), maps.Clone(content)
		readers.Go(func() {
			defer v.Close()
			got := map[string]string{}
			for _, slot := range rand.New(rand.NewPCG(3, uint64(i))).Perm(slots) {
				err := v.Slot(uint16(slot), func(item store.Item) error {
					got[fmt.Sprintf("%d/%s", slot, item.Key)] = string(item.Value)
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
			if !maps.Equal(got, want) {
				t.Errorf("view %d at version %d shows another moment", i, v.Version())
			}
		})
		for range 2 * keys {
			write()
		}
	}
	readers.Wait()
}

// Readers of every kind run beside a writer; each key's value must always be the version it was written at.
func TestReadersBesideWrites(t *testing.T) {
	const keys, writes = 50, 20_000
	s := newStore(t, store.DefaultLimits())
	key := func(i int) []byte { return fmt.Appendf(nil, "k%02d", i) }
	done := make(chan struct{})
	var readers sync.WaitGroup
	check := func(value []byte, m store.Meta) {
		if string(value) != fmt.Sprint(m.Version) {
			t.Errorf("value %q at version %d", value, m.Version)
		}
	}
	untilDone := func(read func(i int)) {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
					read(i)
				}
			}
		})
	}
	var last [keys]store.Version
	untilDone(func(i int) {
		if value, m, ok := s.Get(testSlot, key(i%keys), nil); ok {
			check(value, m)
			if m.Version < last[i%keys] {
				t.Errorf("version went from %d to %d", last[i%keys], m.Version)
			}
			last[i%keys] = m.Version
		}
	})
	untilDone(func(int) {
		before := ""
		s.Scan(nil, nil, 0, 0, func(key, value []byte, m store.Meta) bool {
			if string(key) <= before {
				t.Errorf("%q after %q", key, before)
			}
			before = strings.Clone(string(key))
			check(value, m)
			return true
		})
		s.Due(s.Time())
		s.NextExpiry()
	})
	for i := range writes {
		switch {
		case i%97 == 0:
			s.Apply(testSlot, &store.Op{Kind: store.OpDelete, Key: key(i % keys)})
		case i%101 == 0:
			s.SetTime(s.Time() + 3)
			s.Reap(testSlot, s.Time(), 10)
		default:
			set(t, s, testSlot, string(key(i%keys)), fmt.Sprint(s.Version()+1), int64(i%5))
		}
	}
	close(done)
	readers.Wait()
}
