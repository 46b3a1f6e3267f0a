package shard

// Initial is the map a cluster begins with, at epoch 1: shards 1..shards with one range each, replicas placed
// afresh, all voters, leaders spread. Replica ids count up from first, shard by shard, and by node id within a shard, so
// the highest used is first + shards × replicas - 1. Equal arguments give an equal map, which makes a bootstrap safe to
// repeat.
//
// Errors: ErrTooFewNodes, ErrInvalidMap (of the nodes, of first being 0, of shards outside 1..SlotCount); any
// other for replicas < 1.
func Initial(nodes []Node, shards, replicas int, first ReplicaID) (*Map, error) {
	if shards < 1 || shards > SlotCount {
		return nil, invalid("shards: %d, not in 1..%d", shards, SlotCount)
	}
	ids := make([]ID, shards)
	for i := range ids {
		ids[i] = ID(i + 1)
	}
	placement, err := Place(nodes, ids, replicas, nil)
	if err != nil {
		return nil, err
	}
	leaders := PreferLeaders(placement, nil)
	plan := make([]Shard, shards)
	next := first
	for i, r := range FreshRanges(shards) {
		id := ids[i]
		plan[i] = Shard{ID: id, Ranges: []Range{r}, Preferred: leaders[id]}
		for _, node := range placement[id] {
			plan[i].Replicas = append(plan[i].Replicas, Replica{ID: next, Node: node, Voter: true})
			next++
		}
	}
	return NewMap(1, nodes, plan)
}
