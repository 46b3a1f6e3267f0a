package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/ostraka-db/ostraka/store"
)

// scanAll collects a scan's keys.
func scanAll(s *store.Store, from, to []byte, limit, bytesMax int) (keys []string, next []byte, more bool) {
	next, more = s.Scan(from, to, limit, bytesMax, func(key, _ []byte, _ store.Meta) bool {
		keys = append(keys, string(key))
		return true
	})
	return keys, next, more
}

func TestScan(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	s.Own(1)
	for i, key := range []string{"b", "a", "ab", "c", "\x00", "\xff"} { // 2 + len(key) bytes each
		set(t, s, []uint16{1, testSlot}[i%2], key, "vv", 0)
	}
	set(t, s, testSlot, "aa", "expired", 1)
	s.SetTime(2000)

	for _, c := range []struct {
		name            string
		from, to        []byte
		limit, bytesMax int
		want            []string
		next            string // "" with no more
	}{
		{name: "all", want: []string{"\x00", "a", "ab", "b", "c", "\xff"}},
		{name: "from a key", from: []byte("ab"), want: []string{"ab", "b", "c", "\xff"}},
		{name: "from between keys", from: []byte("abc"), want: []string{"b", "c", "\xff"}},
		{name: "to a key, without it", to: []byte("b"), want: []string{"\x00", "a", "ab"}},
		{name: "an empty to is a bound", to: []byte{}, want: nil},
		{name: "an empty range", from: []byte("b"), to: []byte("a"), want: nil},
		{name: "limit", limit: 2, want: []string{"\x00", "a"}, next: "ab"},
		{name: "limit beside an expired key", from: []byte("a"), to: []byte("b"), limit: 1, want: []string{"a"}, next: "ab"},
		{name: "limit met at the end of the range", from: []byte("a"), to: []byte("b"), limit: 2, want: []string{"a", "ab"}},
		{name: "bytes, met exactly", from: []byte("a"), bytesMax: 7, want: []string{"a", "ab"}, next: "b"},
		{name: "bytes, one short", from: []byte("a"), bytesMax: 6, want: []string{"a"}, next: "ab"},
		{name: "a first key over bytes", from: []byte("a"), bytesMax: 1, want: []string{"a"}, next: "ab"},
	} {
		t.Run(c.name, func(t *testing.T) {
			keys, next, more := scanAll(s, c.from, c.to, c.limit, c.bytesMax)
			if !slices.Equal(keys, c.want) || string(next) != c.next || more != (c.next != "") {
				t.Errorf("%q, next %q, more %v, want %q, %q", keys, next, more, c.want, c.next)
			}
		})
	}
}

func TestScanStopsWhenToldAndGoesOnBehind(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	for _, key := range []string{"a", "a\x00", "b"} {
		set(t, s, testSlot, key, "v", 0)
	}
	next, more := s.Scan(nil, nil, 0, 0, func(key, value []byte, m store.Meta) bool {
		if string(key) != "a" || string(value) != "v" || m.Version != 1 || m.ValueBytes != 1 {
			t.Errorf("%q, %q, %+v", key, value, m)
		}
		return false
	})
	if keys, _, _ := scanAll(s, next, nil, 0, 0); !more || !slices.Equal(keys, []string{"a\x00", "b"}) {
		t.Errorf("went on with %q, more %v", keys, more)
	}
}

// Sizes around the slice bound, with pages that end anywhere, and with expired keys by the slice.
func TestScanOverManySlices(t *testing.T) {
	for _, count := range []int{store.ScanSliceKeys - 1, store.ScanSliceKeys, store.ScanSliceKeys + 1, 3*store.ScanSliceKeys + 5} {
		s := newStore(t, store.DefaultLimits())
		var want []string
		for i := range count {
			key := fmt.Sprintf("k%05d", i)
			set(t, s, testSlot, key, "v", 0)
			want = append(want, key)
			set(t, s, testSlot, fmt.Sprintf("expired%05d", i), "v", 1)
		}
		s.SetTime(2000)
		for _, limit := range []int{0, 1, 100, store.ScanSliceKeys, store.ScanSliceKeys + 1} {
			var got []string
			var next []byte
			for more := true; more; {
				var page []string
				page, next, more = scanAll(s, next, nil, limit, 0)
				if limit > 0 && len(page) > limit {
					t.Fatalf("%d keys in a page of %d", len(page), limit)
				}
				got = append(got, page...)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d keys, limit %d: got %d", count, limit, len(got))
			}
		}
	}
}

func TestScanCallbackMayUseTheStore(t *testing.T) {
	s := newStore(t, store.DefaultLimits())
	set(t, s, testSlot, "a", "v", 0)
	set(t, s, testSlot, "b", "v", 0)
	s.Scan(nil, nil, 0, 0, func(key, value []byte, _ store.Meta) bool {
		set(t, s, testSlot, string(key), "changed", 0) // would wait for ever if Scan held the lock
		if string(value) != "v" {
			t.Errorf("%q changed under the scan", key)
		}
		return true
	})
}
