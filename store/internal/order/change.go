package order

import (
	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// A sibling takes entries of a full leaf as long as it has at least an eighth of its room left.
const siblingEntriesMax = leafEntries * 7 / 8

// Insert adds a reference whose key is not in the tree. The only error is arena.ErrFull, of 64 GiB of nodes: then the tree has
// what it had.
func (t *Tree) Insert(key []byte, ref arena.Ref) error {
	if t.root == 0 {
		root, err := t.newNode(0)
		if err != nil {
			return err
		}
		t.root = root
	}
	for {
		var p path
		l := t.descend(key, &p)
		if l.count < leafEntries {
			at, _ := t.searchLeaf(l, key)
			l.insertAt(at, key, ref)
			t.count++
			if l.count == 16 { // before that, comparing keys costs little
				t.setPrefix(l)
			}
			return nil
		}
		if err := t.makeRoom(&p, key); err != nil {
			return err
		}
	}
}

// makeRoom gives the full leaf at the end of a path some room, or one of the full nodes above it.
func (t *Tree) makeRoom(p *path, key []byte) error {
	if p.depth == 0 {
		return t.growRoot()
	}
	for depth, s := range p.steps[:p.depth] { // from above, so that a node that is split always has room above it
		if t.header(s.node).count == innerEntries {
			if depth == 0 {
				return t.growRoot()
			}
			return t.splitInner(p.steps[depth-1])
		}
	}
	above := p.steps[p.depth-1]
	parent := t.inner(above.node)
	full := t.leaf(parent.children[above.at])
	last := above.at == int(parent.count)-1
	switch {
	case last && t.isRightmost(p) && t.isBehind(full, key):
		return t.addLast(above)
	case !last && t.header(parent.children[above.at+1]).count <= siblingEntriesMax:
		t.shiftRight(parent, above.at)
	case above.at > 0 && t.header(parent.children[above.at-1]).count <= siblingEntriesMax:
		t.shiftLeft(parent, above.at)
	default:
		return t.splitLeaf(above)
	}
	return nil
}

func (t *Tree) newNode(level uint8) (arena.Ref, error) {
	ref, err := t.nodes.Alloc(nodeBytes)
	if err == nil {
		*t.header(ref) = header{level: level}
	}
	return ref, err
}

// growRoot puts a root with one child above the root.
func (t *Tree) growRoot() error {
	root, err := t.newNode(t.header(t.root).level + 1)
	if err != nil {
		return err
	}
	n := t.inner(root)
	n.children[0], n.count = t.root, 1
	t.root = root
	if old := t.header(n.children[0]); old.level > 0 {
		return t.splitInner(step{root, 0})
	}
	return t.splitLeaf(step{root, 0})
}

// isRightmost reports whether a path leads to the last leaf.
func (t *Tree) isRightmost(p *path) bool {
	for _, s := range p.steps[:p.depth] {
		if s.at != int(t.header(s.node).count)-1 {
			return false
		}
	}
	return true
}

func (t *Tree) isBehind(l *leaf, key []byte) bool {
	at, _ := t.searchLeaf(l, key)
	return at == int(l.count)
}

// addLast moves the last reference of the last leaf to a new one behind it.
func (t *Tree) addLast(above step) error {
	fresh, err := t.newNode(0)
	if err != nil {
		return err
	}
	parent := t.inner(above.node)
	full, l := t.leaf(parent.children[above.at]), t.leaf(fresh)
	l.refs[0], l.count = full.refs[full.count-1], 1
	full.count--
	l.heads[0] = head2(t.keys.Key(l.refs[0]))
	t.addChild(parent, above.at+1, fresh)
	return nil
}

// addChild puts a node behind child at-1.
func (t *Tree) addChild(parent *inner, at int, child arena.Ref) {
	parent.insertAt(at, t.firstKey(child), child)
	if n := parent.count; n&(n-1) == 0 {
		t.setInnerPrefix(parent) // at 2, 4, 8 … children: prefixes only shrink otherwise
	}
}

func (t *Tree) splitLeaf(above step) error {
	fresh, err := t.newNode(0)
	if err != nil {
		return err
	}
	parent := t.inner(above.node)
	left, right := t.leaf(parent.children[above.at]), t.leaf(fresh)
	keep := int(left.count) / 2
	right.count = uint16(copy(right.refs[:], left.refs[keep:left.count]))
	left.count = uint16(keep)
	t.setPrefix(left)
	t.setPrefix(right)
	t.addChild(parent, above.at+1, fresh)
	return nil
}

func (t *Tree) splitInner(above step) error {
	parent := t.inner(above.node)
	left := t.inner(parent.children[above.at])
	fresh, err := t.newNode(left.level)
	if err != nil {
		return err
	}
	right := t.inner(fresh)
	keep := int(left.count) / 2
	right.count = uint16(copy(right.children[:], left.children[keep:left.count]))
	left.count = uint16(keep)
	t.setInnerPrefix(left)
	t.setInnerPrefix(right)
	t.addChild(parent, above.at+1, fresh)
	return nil
}

// shiftRight evens out child at and the one behind it.
func (t *Tree) shiftRight(parent *inner, at int) {
	left, right := t.leaf(parent.children[at]), t.leaf(parent.children[at+1])
	n := (int(left.count) - int(right.count)) / 2
	for range n {
		ref := left.refs[left.count-1]
		right.insertAt(0, t.keys.Key(ref), ref)
		left.count--
	}
	parent.setSeparator(at+1, t.keys.Key(right.refs[0]))
}

// shiftLeft evens out child at and the one before it.
func (t *Tree) shiftLeft(parent *inner, at int) {
	left, right := t.leaf(parent.children[at-1]), t.leaf(parent.children[at])
	n := (int(right.count) - int(left.count)) / 2
	for _, ref := range right.refs[:n] {
		left.insertAt(int(left.count), t.keys.Key(ref), ref)
	}
	copy(right.heads[:], right.heads[n:right.count])
	copy(right.refs[:], right.refs[n:right.count])
	right.count -= uint16(n)
	parent.setSeparator(at, t.keys.Key(right.refs[0]))
}

// Remove takes a key out, which must be there.
func (t *Tree) Remove(key []byte) {
	var p path
	l := t.descend(key, &p)
	at, found := t.searchLeaf(l, key)
	if !found {
		panic("order: a key to be removed is missing")
	}
	l.removeAt(at)
	t.count--
	t.shrink(&p)
}

// shrink removes or merges what has become too empty along a path, from below.
func (t *Tree) shrink(p *path) {
	for depth := p.depth; depth > 0; depth-- {
		h := t.header(p.steps[depth].node)
		above := p.steps[depth-1]
		parent := t.inner(above.node)
		switch {
		case h.count == 0:
			t.nodes.Free(p.steps[depth].node)
			parent.removeAt(above.at)
		case h.level == 0 && h.count < leafEntries*3/10:
			t.mergeLeaf(parent, above.at)
		case h.level > 0 && h.count < innerEntries*3/10:
			t.mergeInner(parent, above.at)
		default:
			return // nothing above has changed
		}
	}
	for t.root != 0 {
		h := t.header(t.root)
		old := t.root
		switch {
		case h.count == 0:
			t.root = 0
		case h.level > 0 && h.count == 1:
			t.root = t.inner(old).children[0]
		default:
			return
		}
		t.nodes.Free(old)
	}
}

// mergeLeaf joins child at with a sibling where four fifths of a leaf hold both.
func (t *Tree) mergeLeaf(parent *inner, at int) {
	const most = leafEntries * 4 / 5
	for _, left := range [...]int{at, at - 1} {
		if left < 0 || left+1 >= int(parent.count) {
			continue
		}
		l, r := t.leaf(parent.children[left]), t.leaf(parent.children[left+1])
		if l.count+r.count > most {
			continue
		}
		copy(l.refs[l.count:], r.refs[:r.count])
		l.count += r.count
		t.setPrefix(l)
		t.nodes.Free(parent.children[left+1])
		parent.removeAt(left + 1)
		return
	}
}

func (t *Tree) mergeInner(parent *inner, at int) {
	const most = innerEntries * 4 / 5
	for _, left := range [...]int{at, at - 1} {
		if left < 0 || left+1 >= int(parent.count) {
			continue
		}
		l, r := t.inner(parent.children[left]), t.inner(parent.children[left+1])
		if l.count+r.count > most {
			continue
		}
		copy(l.children[l.count:], r.children[:r.count])
		l.count += r.count
		t.setInnerPrefix(l)
		t.nodes.Free(parent.children[left+1])
		parent.removeAt(left + 1)
		return
	}
}

// Build fills an empty tree with references that are in order.
func (t *Tree) Build(refs []arena.Ref) error {
	const fill = leafEntries * 9 / 10
	var nodes []arena.Ref
	for rest := refs; len(rest) > 0; {
		ref, err := t.newNode(0)
		if err != nil {
			return err
		}
		l := t.leaf(ref)
		n := copy(l.refs[:fill], rest)
		l.count = uint16(n)
		t.setPrefix(l)
		rest = rest[n:]
		nodes = append(nodes, ref)
	}
	for level := uint8(1); len(nodes) > 1; level++ {
		above := nodes[:0]
		for rest := nodes; len(rest) > 0; {
			ref, err := t.newNode(level)
			if err != nil {
				return err
			}
			n := t.inner(ref)
			n.count = uint16(copy(n.children[:innerEntries*9/10], rest))
			t.setInnerPrefix(n)
			rest = rest[n.count:]
			above = append(above, ref) // never overtakes rest
		}
		nodes = above
	}
	if len(nodes) == 1 {
		t.root = nodes[0]
	}
	t.count = len(refs)
	return nil
}

// Compact moves one node where holes are many, and reports whether it did.
func (t *Tree) Compact() bool {
	old, ok := t.nodes.NextMove()
	if !ok {
		return false
	}
	fresh, err := t.nodes.Alloc(nodeBytes)
	if err != nil {
		t.nodes.SkipMove(old)
		return false
	}
	copy(t.nodes.Bytes(fresh), t.nodes.Bytes(old))
	key := t.firstKey(fresh)
	if t.root == old {
		t.root = fresh
	} else {
		ref := t.root
		for {
			n := t.inner(ref)
			at := t.searchInner(n, key)
			if n.children[at] == old {
				n.children[at] = fresh
				break
			}
			ref = n.children[at]
		}
	}
	t.nodes.Free(old)
	return true
}
