package shard

// burden is a number of things that lie on nodes, and the rule by which one may move. Placement levels replicas
// with it, PreferLeaders leaderships.
type burden struct {
	load []int // by node index: how many things lie there

	// step finds a thing that may move between two nodes, leaving everything valid; the one that is cheapest to
	// move, if there are several. It must depend on nothing but what move has done.
	step func(from, to int) (thing int, found bool)
	move func(thing, from, to int)
}

// level moves things until no sequence of moves can make the loads more even, a short sequence before a long
// one, so that little moves.
//
// It is the classical way to a flow of least convex cost. Think of an arrow from node a to node b wherever step
// allows a move. If a path of arrows leads from a node to one that carries less by 2 or more, moving one thing along each
// arrow of it takes one off the first node, gives one to the last, and leaves those between as they were:
//
//	a(4) ──s7──► b(3) ──s2──► c(2)      becomes   a(3)  b(3)  c(3), though nothing could go from a to c itself
//
// Where no such path is left, no assignment that obeys the rule has a smaller sum of squared loads. So the loads
// differ by at most 1 wherever the rule lets them. Each path lowers that sum by at least 2, hence the end.
func (b *burden) level() {
	for b.improve() {
	}
}

// improve moves along one shortest path from as heavily laden a node as possible, or reports that there is none.
func (b *burden) improve() bool {
	top := 0
	for _, load := range b.load {
		top = max(top, load)
	}
	for level := top; level >= 2; level-- {
		if path := b.path(level); path != nil {
			for i := len(path) - 1; i > 0; i-- {
				from, to := path[i-1], path[i]
				thing, _ := b.step(from, to)
				b.move(thing, from, to)
			}
			return true
		}
	}
	return false
}

// path finds a shortest path of steps, as node indexes, from a node whose load is level to one whose load is at
// most level-2, to the lightest such node among those equally near. nil if there is none.
func (b *burden) path(level int) []int {
	const unseen, start = -2, -1
	before := make([]int, len(b.load))
	var layer []int
	for node, load := range b.load {
		before[node] = unseen
		if load == level {
			before[node] = start
			layer = append(layer, node)
		}
	}
	for len(layer) > 0 {
		var next []int
		goal := -1
		for _, from := range layer {
			for to, load := range b.load {
				if before[to] != unseen {
					continue
				}
				if _, found := b.step(from, to); !found {
					continue
				}
				before[to] = from
				next = append(next, to)
				if load <= level-2 && (goal < 0 || load < b.load[goal]) {
					goal = to
				}
			}
		}
		if goal >= 0 {
			return unwind(before, goal)
		}
		layer = next
	}
	return nil
}

// unwind turns the predecessors of a search into the path that ends at goal.
func unwind(before []int, goal int) []int {
	var path []int
	for node := goal; node >= 0; node = before[node] {
		path = append(path, node)
	}
	for i, j := 0, len(path)-1; i < j; i, j = i+1, j-1 {
		path[i], path[j] = path[j], path[i]
	}
	return path
}
