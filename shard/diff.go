package shard

import (
	"cmp"
	"slices"
)

// Diff is what has to happen to get from one map to another: nothing that is in both, nothing twice.
type Diff struct {
	Slots    []SlotMove      // sorted by from, then to
	Replicas []ReplicaChange // sorted by shard; only shards with a change
}

// SlotMove is the slots that change hands between two shards.
type SlotMove struct {
	From, To ID      // different
	Ranges   []Range // sorted, never touching, not empty
}

// ReplicaChange is what changes among one shard's replicas, each list sorted by id.
type ReplicaChange struct {
	Shard   ID
	Added   []Replica // ids that only the new map has
	Removed []Replica // ids that only the old map has
	Altered []Replica // same id, but the vote was given or taken; as the new map has it
}

// Empty says that nothing moves. The maps may still differ in epoch, addresses and preferred leaders.
func (d Diff) Empty() bool { return len(d.Slots) == 0 && len(d.Replicas) == 0 }

// SlotCount is the number of slots that move.
func (d Diff) SlotCount() (slots int) {
	for _, move := range d.Slots {
		slots += countSlots(move.Ranges)
	}
	return slots
}

// Diff compares m, the older map, with to. Equal maps give equal results on every machine.
func (m *Map) Diff(to *Map) Diff {
	return Diff{Slots: diffSlots(m.owner, to.owner), Replicas: diffReplicas(m, to)}
}

func diffSlots(from, to *[SlotCount]ID) []SlotMove {
	type pair struct{ from, to ID }
	moved := make(map[pair][]Range)
	for slot := 0; slot < SlotCount; {
		p, start := pair{from[slot], to[slot]}, slot
		for slot < SlotCount && from[slot] == p.from && to[slot] == p.to {
			slot++
		}
		if p.from != p.to {
			moved[p] = append(moved[p], Range{uint16(start), uint16(slot)})
		}
	}
	moves := make([]SlotMove, 0, len(moved))
	for p, ranges := range moved {
		moves = append(moves, SlotMove{From: p.from, To: p.to, Ranges: ranges})
	}
	slices.SortFunc(moves, func(a, b SlotMove) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return moves
}

func diffReplicas(from, to *Map) []ReplicaChange {
	ids := make([]ID, 0, len(from.shards)+len(to.shards))
	for _, s := range from.shards {
		ids = append(ids, s.ID)
	}
	for _, s := range to.shards {
		ids = append(ids, s.ID)
	}
	slices.Sort(ids)
	var changes []ReplicaChange
	for _, id := range slices.Compact(ids) {
		old, _ := from.Shard(id)
		now, _ := to.Shard(id)
		change := ReplicaChange{Shard: id}
		for _, r := range now.Replicas {
			switch was, kept := findReplica(old.Replicas, r.ID); {
			case !kept:
				change.Added = append(change.Added, r)
			case was.Voter != r.Voter:
				change.Altered = append(change.Altered, r)
			}
		}
		for _, r := range old.Replicas {
			if _, kept := findReplica(now.Replicas, r.ID); !kept {
				change.Removed = append(change.Removed, r)
			}
		}
		if len(change.Added)+len(change.Removed)+len(change.Altered) > 0 {
			changes = append(changes, change)
		}
	}
	return changes
}

func findReplica(replicas []Replica, id ReplicaID) (Replica, bool) {
	i := slices.IndexFunc(replicas, func(r Replica) bool { return r.ID == id })
	if i < 0 {
		return Replica{}, false
	}
	return replicas[i], true
}
