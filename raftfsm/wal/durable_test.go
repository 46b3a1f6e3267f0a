package wal

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Waiters are taken out by their sequence, each once.
func TestWaiterHeap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var h waiterHeap
		var want []Sequence
		for range rng.IntN(50) {
			s := Sequence(rng.IntN(40))
			h.add(waiter{sequence: s})
			want = append(want, s)
			if rng.IntN(4) == 0 {
				upTo := Sequence(rng.IntN(40))
				slices.Sort(want)
				n, _ := slices.BinarySearch(want, upTo+1)
				var got []Sequence
				for _, w := range h.take(upTo) {
					got = append(got, w.sequence)
				}
				if !slices.Equal(got, want[:n]) {
					t.Fatalf("up to %d: %v, want %v", upTo, got, want[:n])
				}
				want = want[n:]
			}
		}
		if len(h) != len(want) {
			t.Fatalf("%d are left, want %d", len(h), len(want))
		}
	}
}
