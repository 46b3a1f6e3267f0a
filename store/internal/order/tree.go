// Package order keeps references in the order of their keys: a B+-tree whose nodes lie in an arena and hold references only, no keys.
//
// A key is where its item is, and looking there costs a cache miss. So nodes keep what tells most keys apart: the bytes that all
// keys of the node begin with, once, and of each key the first bytes that follow, its head.
//
//	leaf, 512 bytes                               keys      user:1007  user:1012  user:1119
//	┌────────┬────────┬───────────┬───────────┐   prefix    user:1
//	│ header │ prefix │ head × 80 │ ref × 80  │   heads     00         01         11
//	│ 4      │ 28     │ 2 each    │ 4 each    │
//	└────────┴────────┴───────────┴───────────┘   a search looks at one key, seldom at more
//
//	inner node, 512 bytes
//	┌────────┬────────┬───────────┬───────────┐
//	│ header │ prefix │ head × 40 │ child × 40│   heads of what separates a child from the one before; where the head alone
//	│ 4      │ 28     │ 8 each    │ 4 each    │   doesn't tell, the first key under the child does
//	└────────┴────────┴───────────┴───────────┘
//
// A full leaf first gives to a sibling and is split only when both have little room: leaves are four fifths full then. One that is
// full at the right end of the tree is left full, so ascending keys fill leaves wholly.
//
// A Tree has no lock. Ascend, First and Find read; everything else changes the tree and is serialised by the caller.
package order

import (
	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// Keys gives the key of a reference that is in a tree.
type Keys interface {
	Key(arena.Ref) []byte
}

// Tree is a set of references with different keys.
type Tree struct {
	keys  Keys
	nodes *arena.Arena
	root  arena.Ref // 0: the tree is empty
	count int
}

// depthMax bounds the levels of a tree: with at least 2 children in all but the rightmost nodes, 2^32 references have fewer.
const depthMax = 40

// path leads from the root to a leaf.
type path struct {
	steps [depthMax]step
	depth int
}

// step is a node and which of its children the path takes.
type step struct {
	node arena.Ref
	at   int
}

var nodeClass = arena.NewClasses(nodeBytes)

// New returns an empty tree of the keys given.
func New(keys Keys) *Tree {
	return &Tree{keys: keys, nodes: arena.New(nodeClass, arena.Config{HugeFrom: 4 << 20})}
}

// Count returns the number of references.
func (t *Tree) Count() int { return t.count }

// Usage returns the figures of all nodes.
func (t *Tree) Usage() arena.Usage { return t.nodes.Usage() }

// descend leads to the leaf where a key is or belongs. The tree is not empty.
func (t *Tree) descend(key []byte, p *path) *leaf {
	p.depth = 0
	ref := t.root
	for t.header(ref).level > 0 {
		n := t.inner(ref)
		at := t.searchInner(n, key)
		p.steps[p.depth] = step{ref, at}
		p.depth++
		ref = n.children[at]
	}
	p.steps[p.depth] = step{node: ref}
	return t.leaf(ref)
}

// leafOf is descend for those who need no path.
func (t *Tree) leafOf(key []byte) *leaf {
	ref := t.root
	for t.header(ref).level > 0 {
		n := t.inner(ref)
		ref = n.children[t.searchInner(n, key)]
	}
	return t.leaf(ref)
}

// Find returns the reference of a key, 0 if there is none.
func (t *Tree) Find(key []byte) arena.Ref {
	if t.root == 0 {
		return 0
	}
	l := t.leafOf(key)
	if at, found := t.searchLeaf(l, key); found {
		return l.refs[at]
	}
	return 0
}

// Replace puts another reference in the place of that of a key, which must be there.
func (t *Tree) Replace(key []byte, ref arena.Ref) {
	l := t.leafOf(key)
	at, found := t.searchLeaf(l, key)
	if !found {
		panic("order: a key to be replaced is missing")
	}
	l.refs[at] = ref
}

// Ascend calls fn with references in order, from the first key that is at least from on, as many at a time as lie together.
// It ends when fn returns false. The slice must not be modified.
func (t *Tree) Ascend(from []byte, fn func(refs []arena.Ref) bool) {
	if t.root == 0 {
		return
	}
	var p path
	l := t.descend(from, &p)
	at, _ := t.searchLeaf(l, from)
	for {
		if refs := l.refs[at:l.count]; len(refs) > 0 && !fn(refs) {
			return
		}
		if l = t.next(&p); l == nil {
			return
		}
		at = 0
	}
}

// next leads a path to the leaf that follows; nil: there is none.
func (t *Tree) next(p *path) *leaf {
	depth := p.depth - 1
	for depth >= 0 && p.steps[depth].at == int(t.header(p.steps[depth].node).count)-1 {
		depth--
	}
	if depth < 0 {
		return nil
	}
	p.steps[depth].at++
	for ; depth < p.depth; depth++ {
		s := p.steps[depth]
		p.steps[depth+1] = step{node: t.inner(s.node).children[s.at]}
	}
	return t.leaf(p.steps[p.depth].node)
}

// First returns the reference of the least key that is at least from, 0 if there is none.
func (t *Tree) First(from []byte) (first arena.Ref) {
	t.Ascend(from, func(refs []arena.Ref) bool {
		first = refs[0]
		return false
	})
	return first
}
