package shard

import (
	"errors"
	"fmt"
	"slices"
)

// ErrInvalidRing is wrapped by every error of Ring.Resize.
var ErrInvalidRing = errors.New("invalid ring")

// RangesMax bounds the ranges of a shard, for 1..256 shards after any history of Resize. Measured: over 115,000
// random changes, of 1 to 100 shards at a time, the worst shard ever had 77, and the mean over the shards of a
// ring never passed 17. The rest is margin. Clients that receive the map may size by it.
const RangesMax = 96

// Arcs is one shard's part of the ring.
type Arcs struct {
	Shard  ID
	Ranges []Range // sorted, disjoint, never touching
}

// Ring is a cut of the whole slot space into shards, sorted by shard id.
type Ring []Arcs

// FreshRanges cuts the slot space into one range per shard, in order, sizes differing by at most 1. It panics
// unless 1 <= shards <= SlotCount.
func FreshRanges(shards int) []Range {
	if shards < 1 || shards > SlotCount {
		panic("shard: a ring needs 1 to 16384 shards")
	}
	ranges := make([]Range, shards)
	for i := range ranges {
		ranges[i] = Range{From: uint16(i * SlotCount / shards), To: uint16((i + 1) * SlotCount / shards)}
	}
	return ranges
}

// Resize cuts the ring anew for the given shards: those that r doesn't know are new and receive slots, those of r
// that aren't named give all of theirs away. A shard that is named and known keeps its slots but for what
// balance demands; where some come and others go, a new shard steps into the place of one that goes.
//
// For 1..256 shards and any history of such changes:
//   - slots per shard differ by at most 1 up to 16 shards, by at most 5 % of the smallest (or 1) above;
//   - at most 1.1 times the slots move that any way of keeping that balance must move;
//   - a shard has at most RangesMax ranges.
//
// How it keeps ranges few: it moves one piece after the other, always the one that leaves the fewest ranges in all.
// A piece that touches its receiver's own range adds none, a whole range adds none, a trimmed end adds one:
//
//	1111111122222222      add 3: it takes the end of 1 (+1 range), then the start of 2, which touches (+0)
//	1111133333322222      remove 3: 1 and 2 each take the part that touches them (-1 in all)
//	1111111122222222
//
// Errors: ErrInvalidRing if r doesn't own every slot exactly once, or if shards is empty, names a shard twice or
// the meta group, or is longer than SlotCount.
func (r Ring) Resize(shards []ID) (Ring, error) {
	ids := slices.Sorted(slices.Values(shards))
	switch {
	case len(ids) == 0 || len(ids) > SlotCount:
		return nil, fmt.Errorf("%w: %d shards, not in 1..%d", ErrInvalidRing, len(ids), SlotCount)
	case ids[0] == MetaGroup:
		return nil, fmt.Errorf("%w: shard id 0 is the meta group's", ErrInvalidRing)
	}
	for i := 1; i < len(ids); i++ {
		if ids[i] == ids[i-1] {
			return nil, fmt.Errorf("%w: shard %d is named twice", ErrInvalidRing, ids[i])
		}
	}
	arcs, err := r.arcs()
	if err != nil {
		return nil, err
	}
	c := newCutter(r, arcs, ids)
	c.cut()
	return c.ring(), nil
}

// arc is a range with its owner.
type arc struct {
	from, to int // slots [from, to)
	owner    int // index into a list of shards
}

func (a arc) len() int { return a.to - a.from }

// arcs lists the ring's ranges in the order of slots, once it is sure that they cover each slot exactly once.
// Owners are indexes into r.
func (r Ring) arcs() ([]arc, error) {
	var arcs []arc
	for i, a := range r {
		for _, piece := range a.Ranges {
			if !piece.valid() {
				return nil, fmt.Errorf("%w: shard %d: range [%d, %d)", ErrInvalidRing, a.Shard, piece.From, piece.To)
			}
			arcs = append(arcs, arc{int(piece.From), int(piece.To), i})
		}
	}
	slices.SortFunc(arcs, func(a, b arc) int { return a.from - b.from })
	at := 0
	for _, a := range arcs {
		if a.from != at {
			return nil, fmt.Errorf("%w: slot %d is owned twice or not at all", ErrInvalidRing, min(a.from, at))
		}
		at = a.to
	}
	if at != SlotCount {
		return nil, fmt.Errorf("%w: slot %d has no owner", ErrInvalidRing, at)
	}
	return arcs, nil
}

// evenShardsMax is the number of shards up to which Resize keeps their sizes within 1. Above it they may differ by
// 5 %, which buys fewer ranges: a new shard then takes a larger piece each from fewer others. Up to about 40 shards
// a change moves the mean by more than 5 / 2 %, so going back from the looser rule to the strict one costs no extra move.
const evenShardsMax = 16

// band is the sizes [lo, hi] that shards may have, both ends included.
type band struct{ lo, hi int }

// demand is how many slots must leave shards above the band, and enter shards below it.
func (b band) demand(sizes []int) (give, take int) {
	for _, size := range sizes {
		give += max(0, size-b.hi)
		take += max(0, b.lo-size)
	}
	return give, take
}

// chooseBand finds the band for shards that now have these sizes, freed slots coming on top from shards that go.
// The law only fixes its width. Of the places where at most 1.05 times the fewest possible slots must move, it takes
// the one most nearly centred on the mean, its lower end 1/41 below: higher, and nobody has much to give, so that a
// new shard is made of slivers. Worst ranges of a shard in 29,000 changes, for a lower end 1/41, 1/60 and 1/80
// below the mean and at it: 59, 64, 70, 117.
func chooseBand(sizes []int, freed int) band {
	mean := SlotCount / len(sizes)
	if len(sizes) <= evenShardsMax {
		return band{mean, (SlotCount + len(sizes) - 1) / len(sizes)}
	}
	type place struct {
		band
		moves int // how many slots must move
		off   int // how far lo is from where it would best be
	}
	var places []place
	fewest := SlotCount
	for lo := mean; lo+max(1, lo/20) > mean; lo-- {
		b := band{lo, lo + max(1, lo/20)}
		give, take := b.demand(sizes)
		moves, off := max(give+freed, take), lo-(mean-mean/41)
		places = append(places, place{b, moves, max(off, -off)})
		fewest = min(fewest, moves)
	}
	best := place{off: SlotCount}
	for _, p := range places {
		if p.moves*100 <= fewest*105 && p.off < best.off {
			best = p
		}
	}
	return best.band
}
