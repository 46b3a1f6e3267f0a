package shard

import (
	"cmp"
	"slices"
)

// A node's incarnation counts its starts in the lower half. The upper half counts its lives: a node that lost its data
// and was taken back under its id begins another one, and whatever it is said to have been before is old news, however
// often it had been started.
const lifeBits = 32

// Life is the part of an incarnation that says in which life the node is, from 0 up.
func Life(incarnation uint64) uint64 { return incarnation >> lifeBits }

// NextLife is the incarnation with which the next life begins: no start of it has been made yet.
func NextLife(incarnation uint64) uint64 { return (Life(incarnation) + 1) << lifeBits }

// WithReplicas is the map at the next epoch in which the given shards have other replicas and another preferred leader.
// Their slots are not looked at: they stay as they are. Errors: ErrInvalidMap, for a shard that the map doesn't know too.
func (m *Map) WithReplicas(changed ...Shard) (*Map, error) {
	next := &Map{epoch: m.epoch + 1, nodes: m.nodes, shards: slices.Clone(m.shards), owner: m.owner}
	for _, c := range changed {
		i, known := slices.BinarySearchFunc(next.shards, c.ID, func(s Shard, id ID) int { return cmp.Compare(s.ID, id) })
		if !known {
			return nil, invalid("shard %d: is unknown", c.ID)
		}
		s := &next.shards[i]
		s.Replicas, s.Preferred = slices.Clone(c.Replicas), c.Preferred
		slices.SortFunc(s.Replicas, func(a, b Replica) int { return cmp.Compare(a.ID, b.ID) })
	}
	seen := make(map[ReplicaID]ID)
	for _, s := range next.shards {
		if err := next.checkReplicas(s, seen); err != nil {
			return nil, err
		}
	}
	return next, nil
}
