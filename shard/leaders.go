package shard

import (
	"maps"
	"slices"
)

// PreferLeaders chooses for each shard, among the nodes that placement gives it, the one that is to lead it when
// all is well. Leaderships per node differ by at most 1, or are as even as the placement allows; what previous
// says stays where it can. Leave a node out of placement to keep leaderships off it; a shard with no node gets none.
// Shards that previous doesn't list are new.
func PreferLeaders(placement Placement, previous map[ID]NodeID) map[ID]NodeID {
	c := newChooser(placement, previous)
	for s := range c.shards {
		c.fill(s)
	}
	leveling := burden{load: c.load, step: c.step, move: c.move}
	leveling.level()
	leaders := make(map[ID]NodeID, len(c.shards))
	for s, id := range c.shards {
		leaders[id] = c.nodes[c.leader[s]]
	}
	return leaders
}

// PreferredLeaders is what this map says of them.
func (m *Map) PreferredLeaders() map[ID]NodeID {
	leaders := make(map[ID]NodeID, len(m.shards))
	for _, s := range m.shards {
		leaders[s.ID] = s.Preferred
	}
	return leaders
}

// chooser is one calculation of PreferLeaders. Nodes and shards are indexes into its sorted lists.
type chooser struct {
	nodes  []NodeID
	hashes []uint64 // by node
	load   []int    // by node: how many shards it leads
	shards []ID
	may    [][]bool // by shard, node: holds a replica
	was    []int    // by shard: the previous leader, -1 if it may no longer lead
	leader []int    // by shard, -1 until filled
}

func newChooser(placement Placement, previous map[ID]NodeID) *chooser {
	c := &chooser{}
	for _, id := range slices.Sorted(maps.Keys(placement)) {
		if len(placement[id]) > 0 {
			c.shards = append(c.shards, id)
			c.nodes = append(c.nodes, placement[id]...)
		}
	}
	slices.Sort(c.nodes)
	c.nodes = slices.Compact(c.nodes)
	c.load = make([]int, len(c.nodes))
	for _, id := range c.nodes {
		c.hashes = append(c.hashes, hashNode(id))
	}
	for s, id := range c.shards {
		c.may = append(c.may, make([]bool, len(c.nodes)))
		c.was, c.leader = append(c.was, -1), append(c.leader, -1)
		for _, node := range placement[id] {
			n, _ := slices.BinarySearch(c.nodes, node)
			c.may[s][n] = true
			if node == previous[id] {
				c.was[s], c.leader[s] = n, n
				c.load[n]++
			}
		}
	}
	return c
}

// fill gives a shard without a leader the least laden of its nodes.
func (c *chooser) fill(s int) {
	if c.leader[s] >= 0 {
		return
	}
	best := -1
	for n, may := range c.may[s] {
		if may && (best < 0 || c.load[n] < c.load[best] ||
			c.load[n] == c.load[best] && rank(c.shards[s], c.hashes[n]) > rank(c.shards[s], c.hashes[best])) {
			best = n
		}
	}
	c.leader[s] = best
	c.load[best]++
}

// step finds the shard whose leadership may move between two nodes at the least cost against previous.
func (c *chooser) step(from, to int) (shard int, found bool) {
	shard = -1
	leastCost := 0
	for s, leader := range c.leader {
		if leader != from || !c.may[s][to] {
			continue
		}
		cost := 0
		if c.was[s] == from {
			cost++
		}
		if c.was[s] == to {
			cost--
		}
		if shard < 0 || cost < leastCost {
			shard, leastCost = s, cost
		}
	}
	return shard, shard >= 0
}

func (c *chooser) move(s, from, to int) {
	c.leader[s] = to
	c.load[from]--
	c.load[to]++
}
