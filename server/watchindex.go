package server

import (
	"bytes"
	"math/rand/v2"
)

// watchIndex finds the watches that a key belongs to. Watches of single keys are found by hash, those of ranges (prefixes among them)
// in a treap ordered by where they begin, each node of which knows how far its subtree reaches:
//
//	             [d,k) reaches ∞
//	            /               \          a key looks into a subtree only if that reaches beyond it, and into a
//	[b,c) reaches m           [h,∞)        right one only if it is not before the node's own begin
//	   \
//	  [c,m) reaches m
//
// A watch is in one index at most. Looking up takes time in proportion to what is found, and to the logarithm of what there is.
type watchIndex struct {
	keys   map[string][]*watch
	ranges *watch
	count  int
}

// watchNode is a watch's place in an index.
type watchNode struct {
	left, right *watch
	priority    uint64
	// reach is the latest end in the subtree; endless: there is one without a bound.
	reach   []byte
	endless bool
}

func (x *watchIndex) add(w *watch) {
	x.count++
	if w.single {
		if x.keys == nil {
			x.keys = make(map[string][]*watch)
		}
		x.keys[string(w.start)] = append(x.keys[string(w.start)], w)
		return
	}
	w.node = watchNode{priority: rand.Uint64()}
	x.ranges = x.ranges.insert(w)
}

// remove takes a watch out that is in the index.
func (x *watchIndex) remove(w *watch) {
	x.count--
	if !w.single {
		x.ranges = x.ranges.remove(w)
		w.node = watchNode{}
		return
	}
	same := x.keys[string(w.start)]
	for i, other := range same {
		if other == w {
			last := len(same) - 1
			same[i], same[last] = same[last], nil
			same = same[:last]
			break
		}
	}
	if len(same) == 0 {
		delete(x.keys, string(w.start))
	} else {
		x.keys[string(w.start)] = same
	}
}

// match appends the watches that a key belongs to.
func (x *watchIndex) match(key []byte, to []*watch) []*watch {
	if len(x.keys) > 0 {
		to = append(to, x.keys[string(key)]...)
	}
	return x.ranges.match(key, to)
}

// drain takes all watches out and calls fn for each.
func (x *watchIndex) drain(fn func(*watch)) {
	keys, ranges := x.keys, x.ranges
	*x = watchIndex{}
	for _, same := range keys {
		for _, w := range same {
			fn(w)
		}
	}
	ranges.each(func(w *watch) {
		w.node = watchNode{}
		fn(w)
	})
}

// before is the order of the treap; numbers tell watches of one range apart.
func (w *watch) before(other *watch) bool {
	if c := bytes.Compare(w.start, other.start); c != 0 {
		return c < 0
	}
	return w.serial < other.serial
}

// insert returns the subtree w with another watch in it.
func (w *watch) insert(added *watch) *watch {
	switch {
	case w == nil:
		added.measure()
		return added
	case added.node.priority > w.node.priority:
		added.node.left, added.node.right = w.split(added)
		added.measure()
		return added
	case added.before(w):
		w.node.left = w.node.left.insert(added)
	default:
		w.node.right = w.node.right.insert(added)
	}
	w.measure()
	return w
}

// split cuts the subtree w into what comes before a watch and what comes behind it.
func (w *watch) split(at *watch) (before, behind *watch) {
	if w == nil {
		return nil, nil
	}
	if w.before(at) {
		w.node.right, behind = w.node.right.split(at)
		w.measure()
		return w, behind
	}
	before, w.node.left = w.node.left.split(at)
	w.measure()
	return before, w
}

// remove returns the subtree w without a watch in it.
func (w *watch) remove(gone *watch) *watch {
	switch {
	case w == nil:
		return nil
	case w == gone:
		return merge(w.node.left, w.node.right)
	case gone.before(w):
		w.node.left = w.node.left.remove(gone)
	default:
		w.node.right = w.node.right.remove(gone)
	}
	w.measure()
	return w
}

// merge joins two subtrees, all of the first before all of the second.
func merge(a, b *watch) *watch {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.node.priority > b.node.priority:
		a.node.right = merge(a.node.right, b)
		a.measure()
		return a
	}
	b.node.left = merge(a, b.node.left)
	b.measure()
	return b
}

// measure works out how far the subtree reaches.
func (w *watch) measure() {
	w.node.reach, w.node.endless = w.end, len(w.end) == 0
	for _, below := range []*watch{w.node.left, w.node.right} {
		if below == nil {
			continue
		}
		w.node.endless = w.node.endless || below.node.endless
		if bytes.Compare(below.node.reach, w.node.reach) > 0 {
			w.node.reach = below.node.reach
		}
	}
}

func (w *watch) match(key []byte, to []*watch) []*watch {
	for w != nil && (w.node.endless || bytes.Compare(key, w.node.reach) < 0) {
		to = w.node.left.match(key, to)
		if bytes.Compare(key, w.start) < 0 {
			return to
		}
		if len(w.end) == 0 || bytes.Compare(key, w.end) < 0 {
			to = append(to, w)
		}
		w = w.node.right
	}
	return to
}

func (w *watch) each(fn func(*watch)) {
	if w == nil {
		return
	}
	left, right := w.node.left, w.node.right
	left.each(fn)
	fn(w)
	right.each(fn)
}
