package shard

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
