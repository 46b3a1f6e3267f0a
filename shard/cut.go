package shard

import "slices"

// cutter is one calculation of Ring.Resize. newCutter decides how much each shard has to give or to take; cut then
// moves piece after piece until nothing is left to move; ring reads off the result.
//
// It knows shards by index: first those that own slots in the end, in the order of ids, then those that go.
type cutter struct {
	ids  []ID  // that own slots in the end, sorted
	arcs []arc // cover the slot space in order; two neighbours never have the same owner

	// Both by shard. A shard that may give may not take.
	give, take []quota
	// left slots are still to be moved. left >= mustGive, the sum of must over give; the same for take.
	left, mustGive, mustTake int
}

// quota is how many slots must, and how many may, still pass a shard in one direction. 0 <= must <= may.
type quota struct{ must, may int }

func newCutter(r Ring, arcs []arc, ids []ID) *cutter {
	c := &cutter{ids: ids, arcs: arcs}
	owners, shards := settle(r, ids)
	sizes := make([]int, shards)
	for i, a := range arcs {
		c.arcs[i].owner = owners[a.owner]
		sizes[owners[a.owner]] += a.len()
	}
	c.join()
	c.setQuotas(sizes)
	return c
}

// settle gives each shard of r its index in the cutter, and says how many indexes there are. A shard that comes
// steps into the place of one that goes as long as there are both: fewer slots can't move.
func settle(r Ring, ids []ID) (owners []int, shards int) {
	comes := make([]bool, len(ids))
	for i := range comes {
		comes[i] = true
	}
	for _, a := range r {
		if at, stays := slices.BinarySearch(ids, a.Shard); stays && len(a.Ranges) > 0 {
			comes[at] = false
		}
	}
	shards = len(ids)
	for _, a := range r {
		owner, stays := slices.BinarySearch(ids, a.Shard)
		if !stays && len(a.Ranges) > 0 {
			if owner = slices.Index(comes, true); owner >= 0 {
				comes[owner] = false
			} else {
				owner = shards
				shards++
			}
		}
		owners = append(owners, owner)
	}
	return owners, shards
}

// setQuotas decides who gives and who takes. What lies outside the band must move; shards inside it only lend
// themselves to the side that is too small to serve the other. So nothing moves that needn't.
func (c *cutter) setQuotas(sizes []int) {
	staying := sizes[:len(c.ids)]
	freed := 0
	for _, size := range sizes[len(c.ids):] {
		freed += size
	}
	b := chooseBand(staying, freed)
	c.mustGive, c.mustTake = b.demand(staying)
	c.mustGive += freed
	c.left = max(c.mustGive, c.mustTake)

	c.give, c.take = make([]quota, len(sizes)), make([]quota, len(sizes))
	for i, size := range sizes {
		switch {
		case i >= len(c.ids):
			c.give[i] = quota{must: size, may: size}
		case size > b.hi:
			c.give[i] = quota{must: size - b.hi, may: size - b.lo}
		case size < b.lo:
			c.take[i] = quota{must: b.lo - size, may: b.hi - size}
		case c.mustTake >= c.mustGive:
			c.give[i] = quota{may: size - b.lo}
		default:
			c.take[i] = quota{may: b.hi - size}
		}
	}
}

// most is how much may still go through a quota without using up what others of its side must have.
func (c *cutter) most(q quota, sideMust int) int { return min(q.may, c.left-(sideMust-q.must)) }

// piece is a move that could be made: the whole of an arc or one end of it, to a shard.
type piece struct {
	arc   int  // index into arcs
	slots int  // 0 < slots <= the arc's length
	right bool // the right end, where it isn't the whole
	to    int  // shard
	cost  int  // what it adds to the number of ranges, -2..1
}

// better prefers few ranges to large pieces, and large pieces to small ones.
func (p piece) better(than piece) bool {
	if p.cost != than.cost {
		return p.cost < than.cost
	}
	return p.slots > than.slots
}

// cut makes the best move until nothing is left to move. An arc is offered to the owners of its neighbours, since it would touch
// their ranges, and to the shard that has most to take. One of the offers is always good for a slot: as long as slots are
// left, a shard with something to give and one with something to take are left too.
func (c *cutter) cut() {
	for c.left > 0 {
		var best piece
		neediest := c.neediest()
		for i, a := range c.arcs {
			if c.give[a.owner].may == 0 {
				continue
			}
			if i > 0 {
				c.offer(&best, i, c.arcs[i-1].owner)
			}
			if i+1 < len(c.arcs) {
				c.offer(&best, i, c.arcs[i+1].owner)
			}
			c.offer(&best, i, neediest)
		}
		if best.slots == 0 {
			panic("shard: slots are left to move, but nobody may give or take them")
		}
		c.apply(best)
	}
}

// neediest is the shard that can take the most, the first of several.
func (c *cutter) neediest() (shard int) {
	for s := range c.take {
		if c.most(c.take[s], c.mustTake) > c.most(c.take[shard], c.mustTake) {
			shard = s
		}
	}
	return shard
}

// offer puts the move of arc i, or of as much of it as the quotas allow, in best's place if it is better.
func (c *cutter) offer(best *piece, i, to int) {
	a := c.arcs[i]
	slots := min(a.len(), c.most(c.give[a.owner], c.mustGive), c.most(c.take[to], c.mustTake))
	if slots <= 0 {
		return
	}
	left := i > 0 && c.arcs[i-1].owner == to
	right := i+1 < len(c.arcs) && c.arcs[i+1].owner == to
	p := piece{arc: i, slots: slots, right: right || !left && c.gives(i+1), to: to}
	switch whole := slots == a.len(); {
	case whole && left && right:
		p.cost = -2
	case whole && (left || right):
		p.cost = -1
	case whole, left, right:
		p.cost = 0
	default:
		p.cost = 1
	}
	if best.slots == 0 || p.better(*best) {
		*best = p
	}
}

// gives says whether there is an arc i whose owner has something to give. Where nothing touches, a piece is trimmed off beside
// such an arc, whose piece will then touch it.
func (c *cutter) gives(i int) bool { return i < len(c.arcs) && c.give[c.arcs[i].owner].may > 0 }

func (c *cutter) apply(p piece) {
	a := c.arcs[p.arc]
	c.mustGive -= c.give[a.owner].use(p.slots)
	c.mustTake -= c.take[p.to].use(p.slots)
	c.left -= p.slots
	switch {
	case p.slots == a.len():
		c.arcs[p.arc].owner = p.to
	case p.right:
		c.arcs[p.arc].to -= p.slots
		c.arcs = slices.Insert(c.arcs, p.arc+1, arc{a.to - p.slots, a.to, p.to})
	default:
		c.arcs[p.arc].from += p.slots
		c.arcs = slices.Insert(c.arcs, p.arc, arc{a.from, a.from + p.slots, p.to})
	}
	c.join()
}

// use takes slots off a quota and says by how much that lowers what it must.
func (q *quota) use(slots int) (met int) {
	met = min(q.must, slots)
	q.must -= met
	q.may -= slots
	return met
}

// join merges neighbours of one owner.
func (c *cutter) join() {
	joined := c.arcs[:0]
	for _, a := range c.arcs {
		if last := len(joined) - 1; last >= 0 && joined[last].owner == a.owner {
			joined[last].to = a.to
			continue
		}
		joined = append(joined, a)
	}
	c.arcs = joined
}

// ring reads the result off the arcs. Call it when nothing is left to move: then all owners are among ids.
func (c *cutter) ring() Ring {
	ring := make(Ring, len(c.ids))
	for i, id := range c.ids {
		ring[i].Shard = id
	}
	for _, a := range c.arcs {
		ring[a.owner].Ranges = append(ring[a.owner].Ranges, Range{uint16(a.from), uint16(a.to)})
	}
	return ring
}
