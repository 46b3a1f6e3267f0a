package order

import (
	"bytes"
	"fmt"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// Check returns an error where the tree contradicts itself or its keys. It looks at everything, and is for tests.
func (t *Tree) Check() error {
	if err := t.nodes.Check(); err != nil {
		return err
	}
	nodes, count := 0, 0
	var last []byte
	var walk func(ref arena.Ref, level int) error
	walk = func(ref arena.Ref, level int) error {
		nodes++
		h := t.header(ref)
		if h.count == 0 || (level >= 0 && int(h.level) != level) {
			return fmt.Errorf("order: node of %d at level %d, want level %d", h.count, h.level, level)
		}
		prefix := h.prefix[:h.prefixLen]
		if h.level == 0 {
			l := t.leaf(ref)
			for i, ref := range l.refs[:l.count] {
				key := t.keys.Key(ref)
				if count > 0 && bytes.Compare(last, key) >= 0 {
					return fmt.Errorf("order: %q follows %q", key, last)
				}
				if !bytes.HasPrefix(key, prefix) || l.heads[i] != head2(key[len(prefix):]) {
					return fmt.Errorf("order: %q with prefix %q, head %#x", key, prefix, l.heads[i])
				}
				last = append(last[:0], key...)
				count++
			}
			return nil
		}
		n := t.inner(ref)
		for i, child := range n.children[:n.count] {
			if i > 0 {
				first := t.firstKey(child)
				if t.comparesBelow(n, i, last) || !t.comparesBelowOrEqual(n, i, first) {
					return fmt.Errorf("order: separator %#x behind prefix %q does not separate %q and %q", n.heads[i], prefix, last, first)
				}
			}
			if err := walk(child, int(n.level)-1); err != nil {
				return err
			}
		}
		return nil
	}
	if t.root != 0 {
		if err := walk(t.root, -1); err != nil {
			return err
		}
	}
	if count != t.count {
		return fmt.Errorf("order: %d references, counted %d", count, t.count)
	}
	if used := t.nodes.Usage().Used; used != int64(nodes*nodeBytes) {
		return fmt.Errorf("order: %d nodes in the tree, %d bytes of nodes in use", nodes, used)
	}
	return nil
}

// comparesBelow reports whether separator at is below a key by its prefix and head alone; for equal heads it is not.
func (t *Tree) comparesBelow(n *inner, at int, key []byte) bool {
	if c := n.comparePrefix(key); c != 0 {
		return c > 0
	}
	return n.heads[at] < head8(key[n.prefixLen:])
}

func (t *Tree) comparesBelowOrEqual(n *inner, at int, key []byte) bool {
	if c := n.comparePrefix(key); c != 0 {
		return c > 0
	}
	return n.heads[at] <= head8(key[n.prefixLen:])
}
