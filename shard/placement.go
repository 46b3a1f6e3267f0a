package shard

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
)

// ErrTooFewNodes says that there are fewer active nodes than replicas of a shard: two on one node would fail together.
var ErrTooFewNodes = errors.New("fewer active nodes than replicas")

// Placement says which nodes hold each shard, sorted by node id.
type Placement map[ID][]NodeID

// Placement is where this map's replicas are, voters and others alike.
func (m *Map) Placement() Placement {
	placement := make(Placement, len(m.shards))
	for _, s := range m.shards {
		for _, r := range s.Replicas {
			placement[s.ID] = append(placement[s.ID], r.Node)
		}
		slices.Sort(placement[s.ID])
	}
	return placement
}

// Place puts the replicas of every shard on active nodes. In this order of weight:
//
//  1. No node holds two replicas of a shard, nodes that are leaving hold none.
//  2. A shard's replicas are spread over zones as evenly as the zones' sizes allow. Nodes that name no zone count
//     as one zone together, since nothing is known of what they share.
//  3. Replicas per node differ by at most 1, or are as even as rule 2 allows.
//  4. What previous says stays: a node that is added takes over about its share (all replicas ÷ nodes, rounded down), one that
//     is removed gives its replicas to others and nothing else moves, unless the zones' sizes now ask for
//     another spread under rule 2.
//
// previous is what holds now, nil at first; shards it doesn't list are new, what it lists besides is ignored.
//
// The way there is consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016), with rendezvous
// ranks in the place of points on a circle: each shard takes the nodes in the order of hash(node, shard), passing
// over those that carry their bound, ⌊all replicas ÷ nodes⌋, already. burden.level evens out the rest, first with
// the replicas that move anyway, then, if it must, with all. The hash decides only where load doesn't, and the
// result is recorded in the map, so the hash may change between releases.
//
// Errors: ErrTooFewNodes; any other for replicas < 1.
func Place(nodes []Node, shards []ID, replicas int, previous Placement) (Placement, error) {
	active := slices.DeleteFunc(slices.Clone(nodes), func(n Node) bool { return n.State != NodeActive })
	if replicas < 1 {
		return nil, fmt.Errorf("placing %d replicas of a shard: at least 1 is needed", replicas)
	}
	if replicas > len(active) {
		return nil, fmt.Errorf("placing %d replicas on %d nodes: %w", replicas, len(active), ErrTooFewNodes)
	}
	p := newPlacer(active, shards, replicas, previous)
	for s := range p.shards {
		p.shed(s)
	}
	for s := range p.shards {
		p.fill(s)
	}
	leveling := burden{load: p.load, step: p.step, move: p.move}
	for _, p.pinned = range []bool{true, false} {
		leveling.level()
	}
	return p.placement(), nil
}

// placer is one calculation of Place. Nodes, zones and shards are indexes into its sorted lists.
type placer struct {
	nodes    []Node
	shards   []ID
	replicas int

	zoneOf []int // by node
	// A complete shard has between zoneMin and zoneMax replicas in each zone, where zoneMax <= zoneMin+1; spare of
	// its zones have one more than their zoneMin. So each shard is spread as evenly as zones can be.
	zoneMin, zoneMax []int
	spare            int

	was    [][]bool // by shard, node: held before
	pinned bool     // what was stays; only replicas that move anyway may be moved
	on     [][]bool // by shard, node: holds now
	inZone [][]int  // by shard, zone: how many nodes of on
	load   []int    // by node: how many shards of on
	bound  int      // load from which on a node is passed over while others are below theirs
	hashes []uint64 // by node
}

func newPlacer(active []Node, shards []ID, replicas int, previous Placement) *placer {
	p := &placer{nodes: active, shards: slices.Clone(shards), replicas: replicas}
	slices.SortFunc(p.nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(p.shards)
	p.shards = slices.Compact(p.shards)
	p.load = make([]int, len(p.nodes))
	p.bound = len(p.shards) * replicas / len(p.nodes)
	for _, n := range p.nodes {
		p.hashes = append(p.hashes, hashNode(n.ID))
	}
	p.divideZones()
	for s, id := range p.shards {
		p.was = append(p.was, make([]bool, len(p.nodes)))
		p.on = append(p.on, make([]bool, len(p.nodes)))
		p.inZone = append(p.inZone, make([]int, len(p.zoneMin)))
		for n, node := range p.nodes {
			if slices.Contains(previous[id], node.ID) {
				p.was[s][n] = true
				p.put(s, n)
			}
		}
	}
	return p
}

// divideZones works out zoneMin, zoneMax and spare. It deals a shard's replicas round the zones, one each, until
// none is left; a zone whose nodes have run out is passed by. zoneMin is what all rounds but the last gave; the
// last, perhaps cut short, gives spare of the zones one more.
//
// Example: zones of 1, 4 and 4 nodes, 4 replicas. Round one: 1 1 1. Round two has one replica left for one of
// the two larger zones: zoneMin 1 1 1, zoneMax 1 2 2, spare 1.
func (p *placer) divideZones() {
	var names []string
	for _, n := range p.nodes {
		names = append(names, n.Zone)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	size := make([]int, len(names))
	for _, n := range p.nodes {
		z, _ := slices.BinarySearch(names, n.Zone)
		p.zoneOf = append(p.zoneOf, z)
		size[z]++
	}
	p.zoneMin, p.zoneMax = make([]int, len(names)), make([]int, len(names))
	for p.spare = p.replicas; ; {
		open := 0
		for z := range size {
			p.zoneMax[z] = min(size[z], p.zoneMin[z]+1)
			open += p.zoneMax[z] - p.zoneMin[z]
		}
		if open >= p.spare {
			return
		}
		p.spare -= open
		copy(p.zoneMin, p.zoneMax)
	}
}

func (p *placer) put(s, n int) {
	p.on[s][n] = true
	p.inZone[s][p.zoneOf[n]]++
	p.load[n]++
}

func (p *placer) take(s, n int) {
	p.on[s][n] = false
	p.inZone[s][p.zoneOf[n]]--
	p.load[n]--
}

// overMin counts the replicas that a shard has above its zones' zoneMin. At most spare in the end.
func (p *placer) overMin(s int) (over int) {
	for z, count := range p.inZone[s] {
		over += max(0, count-p.zoneMin[z])
	}
	return over
}

// shed takes away what previous put where the zones no longer want it, from the most laden nodes first.
func (p *placer) shed(s int) {
	for {
		excess := p.overMin(s) > p.spare
		worst := -1
		for n := range p.nodes {
			z := p.zoneOf[n]
			if !p.on[s][n] {
				continue
			}
			// A zone over its zoneMax has to give even when the sum is right; else any zone over its zoneMin may.
			if p.inZone[s][z] > p.zoneMax[z] || excess && p.inZone[s][z] > p.zoneMin[z] {
				if worst < 0 || p.load[n] > p.load[worst] {
					worst = n
				}
			}
		}
		if worst < 0 {
			return
		}
		p.take(s, worst)
	}
}

// fill gives a shard the replicas it lacks, in the order of its ranks.
func (p *placer) fill(s int) {
	missing := p.replicas
	for _, count := range p.inZone[s] {
		missing -= count
	}
	for ; missing > 0; missing-- {
		p.put(s, p.choose(s))
	}
}

// choose is the node for one more replica of a shard: the first by rank that is below its bound or, if the zones
// leave only nodes at their bound, the least laden. One always exists, because what is missing is never more than
// the zones still have room for.
func (p *placer) choose(s int) int {
	best := -1
	spareLeft := p.overMin(s) < p.spare
	for n := range p.nodes {
		z := p.zoneOf[n]
		open := p.inZone[s][z] < p.zoneMin[z] || spareLeft && p.inZone[s][z] < p.zoneMax[z]
		if p.on[s][n] || !open {
			continue
		}
		if best < 0 || p.better(s, n, best) {
			best = n
		}
	}
	return best
}

func (p *placer) better(s, n, than int) bool {
	over, thanOver := max(0, p.load[n]+1-p.bound), max(0, p.load[than]+1-p.bound)
	if over != thanOver {
		return over < thanOver
	}
	return p.rank(s, n) > p.rank(s, than)
}

// step finds the shard whose replica may move between two nodes at the least cost against previous: one that
// returns home, then one that had left home already, then the one that ranks the new node highest.
func (p *placer) step(from, to int) (shard int, found bool) {
	shard = -1
	leastCost := 0
	for s := range p.shards {
		if !p.on[s][from] || p.on[s][to] || p.pinned && p.was[s][from] || !p.zonesAllow(s, from, to) {
			continue
		}
		cost := 0
		if p.was[s][from] {
			cost++
		}
		if p.was[s][to] {
			cost--
		}
		if shard < 0 || cost < leastCost || cost == leastCost && p.rank(s, to) > p.rank(shard, to) {
			shard, leastCost = s, cost
		}
	}
	return shard, shard >= 0
}

func (p *placer) zonesAllow(s, from, to int) bool {
	a, b := p.zoneOf[from], p.zoneOf[to]
	return a == b || p.inZone[s][a] > p.zoneMin[a] && p.inZone[s][b] < p.zoneMax[b]
}

func (p *placer) move(s, from, to int) {
	p.take(s, from)
	p.put(s, to)
}

func (p *placer) rank(s, n int) uint64 { return rank(p.shards[s], p.hashes[n]) }

func (p *placer) placement() Placement {
	placement := make(Placement, len(p.shards))
	for s, id := range p.shards {
		for n, node := range p.nodes {
			if p.on[s][n] {
				placement[id] = append(placement[id], node.ID)
			}
		}
	}
	return placement
}

func hashNode(id NodeID) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id)) // a hash.Hash never fails
	return h.Sum64()
}

// rank orders the nodes for a shard, the highest first. FNV alone leaves neighbouring numbers neighbours; the
// multiplications and shifts are splitmix64's finalizer (Steele, Lea, Flood, 2014).
func rank(id ID, nodeHash uint64) uint64 {
	x := nodeHash + uint64(id)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
