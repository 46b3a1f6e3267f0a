package shard

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestFreshRanges(t *testing.T) {
	for shards := 1; shards <= 256; shards++ {
		ranges := FreshRanges(shards)
		if len(ranges) != shards || ranges[0].From != 0 || ranges[shards-1].To != SlotCount {
			t.Fatalf("%d shards: %v", shards, ranges)
		}
		for i, r := range ranges {
			if i > 0 && r.From != ranges[i-1].To {
				t.Fatalf("%d shards: a gap or an overlap before %v", shards, r)
			}
			if size := r.Len(); size < SlotCount/shards || size > SlotCount/shards+1 {
				t.Fatalf("%d shards: %v has %d slots", shards, r, size)
			}
		}
	}
}

func idsUpTo(n int) []ID {
	ids := make([]ID, n)
	for i := range ids {
		ids[i] = ID(i + 1)
	}
	return ids
}

func freshRing(shards int) Ring {
	ring := make(Ring, shards)
	for i, r := range FreshRanges(shards) {
		ring[i] = Arcs{ID(i + 1), []Range{r}}
	}
	return ring
}

// owners checks that a ring has exactly the given shards and every slot once, in sorted ranges that don't touch.
func owners(ring Ring, ids []ID) (*[SlotCount]ID, error) {
	var owner [SlotCount]ID
	if len(ring) != len(ids) {
		return nil, fmt.Errorf("%d shards, want %d", len(ring), len(ids))
	}
	ids = slices.Sorted(slices.Values(ids))
	for i, a := range ring {
		if a.Shard != ids[i] {
			return nil, fmt.Errorf("shard %d at place %d, want %d", a.Shard, i, ids[i])
		}
		for j, r := range a.Ranges {
			if r.From >= r.To || r.To > SlotCount || j > 0 && a.Ranges[j-1].To >= r.From {
				return nil, fmt.Errorf("shard %d: ranges %v", a.Shard, a.Ranges)
			}
			for slot := r.From; slot < r.To; slot++ {
				if owner[slot] != 0 {
					return nil, fmt.Errorf("slot %d is owned by %d and %d", slot, owner[slot], a.Shard)
				}
				owner[slot] = a.Shard
			}
		}
	}
	if free := slices.Index(owner[:], 0); free >= 0 {
		return nil, fmt.Errorf("slot %d has no owner", free)
	}
	return &owner, nil
}

// fewestMoves is how many slots must move at least, so that the given shards come to lie within any band as wide
// as the contract allows. It tries every band there is.
func fewestMoves(old Ring, ids []ID) int {
	size := make(map[ID]int)
	for _, a := range old {
		if slots := countSlots(a.Ranges); slots > 0 {
			size[a.Shard] = slots
		}
	}
	freed, coming := 0, 0
	for _, id := range ids {
		if size[id] == 0 {
			coming++
		}
	}
	var going []int
	sizes := make([]int, 0, len(ids))
	for id, slots := range size {
		if slices.Contains(ids, id) {
			sizes = append(sizes, slots)
		} else {
			going = append(going, slots)
		}
	}
	for _, slots := range going {
		freed += slots
	}
	fewest := SlotCount
	for lo := 0; lo*len(ids) <= SlotCount; lo++ {
		hi := lo + max(1, lo/20)
		if hi*len(ids) < SlotCount {
			continue
		}
		give, take := freed, coming*lo
		for _, slots := range sizes {
			give += max(0, slots-hi)
			take += max(0, lo-slots)
		}
		fewest = min(fewest, max(give, take))
	}
	return fewest
}

// checkResize holds a change of the ring against the contract of design.md and Resize.
func checkResize(old Ring, ids []ID, now Ring) error {
	before, err := owners(old, shardsOf(old))
	if err != nil {
		return fmt.Errorf("old ring: %w", err)
	}
	after, err := owners(now, ids)
	if err != nil {
		return err
	}
	smallest, largest := SlotCount, 0
	for _, a := range now {
		slots := countSlots(a.Ranges)
		smallest, largest = min(smallest, slots), max(largest, slots)
		if len(a.Ranges) > RangesMax {
			return fmt.Errorf("shard %d of %d: %d ranges", a.Shard, len(ids), len(a.Ranges))
		}
	}
	allowed := 1
	if len(ids) > evenShardsMax {
		allowed = max(1, smallest/20)
	}
	if largest-smallest > allowed {
		return fmt.Errorf("%d shards: sizes from %d to %d", len(ids), smallest, largest)
	}
	moved := 0
	for slot := range before {
		if before[slot] != after[slot] {
			moved++
		}
	}
	if fewest := fewestMoves(old, ids); float64(moved) > 1.1*float64(fewest) {
		return fmt.Errorf("from %d to %d shards: %d slots moved, %d would do", len(old), len(ids), moved, fewest)
	}
	return nil
}

func shardsOf(ring Ring) (ids []ID) {
	for _, a := range ring {
		ids = append(ids, a.Shard)
	}
	return ids
}

func TestResizeKeepsItsContractThroughAnyHistory(t *testing.T) {
	for _, tc := range []struct{ fewest, most, burst, steps int }{
		{1, 256, 40, 300},  // anything
		{1, 20, 1, 400},    // small clusters, one shard at a time, around the change of rule
		{8, 60, 4, 300},    //
		{90, 140, 1, 200},  // the highest mean of ranges is here
		{200, 256, 3, 200}, // the most ranges of one shard are here
	} {
		t.Run(fmt.Sprintf("%d-%d", tc.fewest, tc.most), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(tc.fewest), uint64(tc.most)))
			ring, next := freshRing(tc.fewest), ID(tc.fewest+1)
			for range tc.steps {
				ids := shardsOf(ring)
				for range 1 + rng.IntN(tc.burst) {
					if grow := rng.IntN(2) == 0; grow && len(ids) < tc.most {
						ids, next = append(ids, next), next+1
					} else if !grow && len(ids) > tc.fewest {
						at := rng.IntN(len(ids))
						ids = slices.Delete(ids, at, at+1)
					}
				}
				now, err := ring.Resize(ids)
				if err == nil {
					err = checkResize(ring, ids, now)
				}
				if err != nil {
					t.Fatal(err)
				}
				ring = now
			}
		})
	}
}

// From any starting point at all, sizes as uneven as can be, one change leads back into the contract.
func TestResizeOfAnyRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shards := rapid.IntRange(1, 60).Draw(t, "shards")
		ring := make(Ring, shards)
		for i := range ring {
			ring[i].Shard = ID(i + 1)
		}
		for from := 0; from < SlotCount; {
			to := min(SlotCount, from+rapid.IntRange(1, 2000).Draw(t, "length"))
			i := rapid.IntRange(0, shards-1).Draw(t, "owner")
			ring[i].Ranges = append(ring[i].Ranges, Range{uint16(from), uint16(to)})
			from = to
		}
		for i := range ring {
			ring[i].Ranges = coalesce(ring[i].Ranges)
		}
		ids := rapid.SliceOfNDistinct(rapid.Uint32Range(1, 120), 1, 60, rapid.ID).Draw(t, "ids")
		want := make([]ID, len(ids))
		for i, id := range ids {
			want[i] = ID(id)
		}
		now, err := ring.Resize(want)
		if err == nil {
			err = checkResize(ring, want, now)
		}
		if err != nil {
			t.Fatal(err)
		}
		again, err := now.Resize(want)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(now) {
			t.Fatalf("resized to what it is, it changed: %v", err)
		}
	})
}

func TestDoublingHalvesEachRange(t *testing.T) {
	for shards := 1; shards <= 128; shards *= 2 {
		ring, err := freshRing(shards).Resize(idsUpTo(2 * shards))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range ring {
			if len(a.Ranges) != 1 {
				t.Errorf("%d shards doubled: shard %d has %v", shards, a.Shard, a.Ranges)
			}
		}
	}
}

// The example of Resize's comment.
func TestResizeThereAndBack(t *testing.T) {
	two := freshRing(2)
	three, err := two.Resize([]ID{3, 1, 2})
	if err != nil || fmt.Sprint(three) != "[{1 [0-5460]} {2 [10922-16383]} {3 [5461-10921]}]" {
		t.Fatalf("%v, %v", three, err)
	}
	back, err := three.Resize([]ID{1, 2})
	if err != nil || fmt.Sprint(back) != fmt.Sprint(two) {
		t.Errorf("%v, %v", back, err)
	}
}

func TestAReplacementInheritsEverything(t *testing.T) {
	ring := freshRing(5)
	now, err := ring.Resize([]ID{1, 2, 4, 5, 9})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(now[4]), fmt.Sprint(Arcs{9, ring[2].Ranges}); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestResizeRefuses(t *testing.T) {
	good := freshRing(2)
	for _, tc := range []struct {
		names string
		ring  Ring
		ids   []ID
	}{
		{"0 shards", good, nil},
		{"meta group", good, []ID{0, 1}},
		{"shard 2 is named twice", good, []ID{2, 1, 2}},
		{"slot 8192 has no owner", good[:1], []ID{1}},
		{"slot 0 is owned twice or not at all", good[1:], []ID{1}},
		{"slot 8191 is owned twice", Ring{good[0], {2, []Range{{8191, SlotCount}}}}, []ID{1}},
		{"range [9, 9)", Ring{{1, []Range{{9, 9}}}}, []ID{1}},
	} {
		if _, err := tc.ring.Resize(tc.ids); !errors.Is(err, ErrInvalidRing) || !strings.Contains(err.Error(), tc.names) {
			t.Errorf("want ErrInvalidRing naming %q, got %v", tc.names, err)
		}
	}
}

// A checker that never fails proves nothing: it has to see each way of breaking the contract.
func TestCheckResizeSeesWhatIsWrong(t *testing.T) {
	old := freshRing(2)
	for name, bad := range map[string]Ring{
		"uneven":           {{1, []Range{{0, 6000}}}, {2, []Range{{11000, SlotCount}}}, {3, []Range{{6000, 11000}}}},
		"everything moved": {{1, []Range{{5462, 10923}}}, {2, []Range{{0, 5462}}}, {3, []Range{{10923, SlotCount}}}},
		"a gap":            {{1, []Range{{0, 5461}}}, {2, []Range{{10923, SlotCount}}}, {3, []Range{{5462, 10923}}}},
		"an overlap":       {{1, []Range{{0, 5463}}}, {2, []Range{{10923, SlotCount}}}, {3, []Range{{5462, 10923}}}},
		"not joined":       {{1, []Range{{0, 9}, {9, 5462}}}, {2, []Range{{10923, SlotCount}}}, {3, []Range{{5462, 10923}}}},
		"a shard missing":  {{1, []Range{{0, 8192}}}, {2, []Range{{8192, SlotCount}}}},
	} {
		if checkResize(old, []ID{1, 2, 3}, bad) == nil {
			t.Errorf("%s: passed", name)
		}
	}
}

func BenchmarkResize(b *testing.B) {
	for _, shards := range []int{16, 64, 256} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			ring, ids := freshRing(shards), idsUpTo(shards+1)
			for b.Loop() {
				if _, err := ring.Resize(ids); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
