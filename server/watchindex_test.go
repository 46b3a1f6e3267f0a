package server

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// An index finds what a look at every watch would find, whatever was added and removed before.
func TestWatchIndexFindsWhatAListFinds(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	key := func() []byte {
		k := make([]byte, 1+random.IntN(4))
		for i := range k {
			k[i] = "ab\xff"[random.IntN(3)]
		}
		return k
	}
	var x watchIndex
	var all []*watch
	for serial := range uint64(20_000) {
		switch n := random.IntN(10); {
		case n < 4 && len(all) < 300:
			w := &watch{serial: serial, start: key(), end: key()}
			switch random.IntN(4) {
			case 0:
				w.single, w.end = true, append(bytes.Clone(w.start), 0)
			case 1:
				w.end = nil
			case 2:
				w.start = nil
			}
			if len(w.end) > 0 && bytes.Compare(w.start, w.end) >= 0 {
				w.start, w.end = w.end, append(w.start, 'z')
			}
			x.add(w)
			all = append(all, w)
		case n < 7 && len(all) > 0:
			i := random.IntN(len(all))
			x.remove(all[i])
			all = slices.Delete(all, i, i+1)
		case n == 9 && serial%500 == 0:
			drained := 0
			x.drain(func(w *watch) {
				if !slices.Contains(all, w) {
					t.Errorf("%v was not in it", w)
				}
				drained++
			})
			if drained != len(all) {
				t.Fatalf("%d drained of %d", drained, len(all))
			}
			all = nil
		}
		if x.count != len(all) {
			t.Fatalf("it counts %d, want %d", x.count, len(all))
		}
		k := key()
		var want []uint64
		for _, w := range all {
			if bytes.Compare(k, w.start) >= 0 && (len(w.end) == 0 || bytes.Compare(k, w.end) < 0) {
				want = append(want, w.serial)
			}
		}
		var got []uint64
		for _, w := range x.match(k, nil) {
			got = append(got, w.serial)
		}
		slices.Sort(got)
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Fatalf("%q is watched by %v, want %v", k, got, want)
		}
	}
}

// BenchmarkWatchIndex looks up a key among 10,000 watches, of which it belongs to one.
func BenchmarkWatchIndex(b *testing.B) {
	const watches = 10_000
	for _, kind := range []string{"keys", "prefixes", "nested"} {
		b.Run(kind, func(b *testing.B) {
			var x watchIndex
			for i := range uint64(watches) {
				w := &watch{serial: i, start: fmt.Appendf(nil, "user:%06d:", i)}
				switch kind {
				case "keys":
					w.single, w.end = true, append(bytes.Clone(w.start), 0)
				case "prefixes":
					w.end = fmt.Appendf(nil, "user:%06d;", i)
				case "nested": // all begin before the key, and end before it too
					w.start, w.end = fmt.Appendf(nil, "u%06d", i), fmt.Appendf(nil, "u%06d", 2*watches-i)
				}
				x.add(w)
			}
			var found []*watch
			for i := 0; b.Loop(); i++ {
				key := fmt.Appendf(nil, "user:%06d:", i%watches)
				found = x.match(key, found[:0])
			}
		})
	}
}
