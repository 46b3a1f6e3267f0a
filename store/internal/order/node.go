package order

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

const (
	nodeBytes      = 512
	prefixBytesMax = 28
	leafEntries    = 80
	innerEntries   = 40
)

// header begins every node.
type header struct {
	count     uint16
	level     uint8 // 0: leaf
	prefixLen uint8
	prefix    [prefixBytesMax]byte // prefix[:prefixLen] begins every key of a leaf, every separator of an inner node
}

// leaf holds references in order of their keys. heads[i] are the two bytes behind the prefix of key i, zeros where it ends before:
// 0 <= i < j < count implies heads[i] <= heads[j].
type leaf struct {
	header
	heads [leafEntries]uint16
	refs  [leafEntries]arena.Ref
}

// inner holds children in order. For i > 0, heads[i] are eight bytes behind the prefix, zeros where it ends before, of a key that is
// greater than all of child i-1 and at most the first of child i. It need not be in the tree any more. heads[0] means nothing.
type inner struct {
	header
	heads    [innerEntries]uint64
	children [innerEntries]arena.Ref
}

// Both fill a cell.
var (
	_ [nodeBytes - unsafe.Sizeof(leaf{})]struct{}
	_ [nodeBytes - unsafe.Sizeof(inner{})]struct{}
	_ [unsafe.Sizeof(leaf{}) - nodeBytes]struct{}
	_ [unsafe.Sizeof(inner{}) - nodeBytes]struct{}
)

func (t *Tree) header(ref arena.Ref) *header {
	return (*header)(unsafe.Pointer((*[nodeBytes]byte)(t.nodes.Bytes(ref))))
}

func (t *Tree) leaf(ref arena.Ref) *leaf {
	return (*leaf)(unsafe.Pointer((*[nodeBytes]byte)(t.nodes.Bytes(ref))))
}

func (t *Tree) inner(ref arena.Ref) *inner {
	return (*inner)(unsafe.Pointer((*[nodeBytes]byte)(t.nodes.Bytes(ref))))
}

// head2 and head8 are the first bytes of what follows a prefix, as a number that orders as they do.
func head2(tail []byte) uint16 {
	if len(tail) >= 2 {
		return binary.BigEndian.Uint16(tail)
	}
	if len(tail) == 1 {
		return uint16(tail[0]) << 8
	}
	return 0
}

func head8(tail []byte) uint64 {
	if len(tail) >= 8 {
		return binary.BigEndian.Uint64(tail)
	}
	var padded [8]byte
	copy(padded[:], tail)
	return binary.BigEndian.Uint64(padded[:])
}

// comparePrefix orders a key against all keys that begin with the node's prefix; 0: it begins with it, too.
func (h *header) comparePrefix(key []byte) int {
	prefix := h.prefix[:h.prefixLen]
	return bytes.Compare(key[:min(len(key), len(prefix))], prefix)
}

func commonLen(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// search returns the place of a key, or where it belongs.
func (t *Tree) searchLeaf(l *leaf, key []byte) (at int, found bool) {
	switch c := l.comparePrefix(key); {
	case c < 0:
		return 0, false
	case c > 0:
		return int(l.count), false
	}
	head := head2(key[l.prefixLen:])
	low, high := 0, int(l.count)
	for low < high {
		if middle := int(uint(low+high) >> 1); l.heads[middle] < head {
			low = middle + 1
		} else {
			high = middle
		}
	}
	// Those with the same head are few, unless keys have long parts in common that aren't at their beginning.
	high = int(l.count)
	if high-low > 4 && l.heads[low+4] != head {
		high = low + 4
	}
	for low < high {
		middle := int(uint(low+high) >> 1)
		if l.heads[middle] > head {
			high = middle
			continue
		}
		switch c := bytes.Compare(t.keys.Key(l.refs[middle]), key); {
		case c == 0:
			return middle, true
		case c < 0:
			low = middle + 1
		default:
			high = middle
		}
	}
	return low, false
}

// searchInner returns the child that a key belongs to.
func (t *Tree) searchInner(n *inner, key []byte) int {
	switch c := n.comparePrefix(key); {
	case c < 0:
		return 0
	case c > 0:
		return int(n.count) - 1
	}
	head := head8(key[n.prefixLen:])
	low, high := 1, int(n.count)
	for low < high {
		middle := int(uint(low+high) >> 1)
		switch {
		case n.heads[middle] < head:
			low = middle + 1
		case n.heads[middle] > head:
			high = middle
		case bytes.Compare(t.firstKey(n.children[middle]), key) <= 0:
			low = middle + 1
		default:
			high = middle
		}
	}
	return low - 1
}

// firstKey returns the least key under a node.
func (t *Tree) firstKey(ref arena.Ref) []byte {
	for t.header(ref).level > 0 {
		ref = t.inner(ref).children[0]
	}
	return t.keys.Key(t.leaf(ref).refs[0])
}

// shortenPrefix makes room for a key that has only n bytes of the prefix. Heads take in what the prefix loses; nothing is looked up.
func (l *leaf) shortenPrefix(n int) {
	lost := l.prefix[n:l.prefixLen]
	for i := range l.heads[:l.count] {
		l.heads[i] = uint16(behind(lost, uint64(l.heads[i])<<48) >> 48)
	}
	l.prefixLen = uint8(n)
}

func (n *inner) shortenPrefix(to int) {
	lost := n.prefix[to:n.prefixLen]
	for i := 1; i < int(n.count); i++ {
		n.heads[i] = behind(lost, n.heads[i])
	}
	n.prefixLen = uint8(to)
}

// behind returns the first eight bytes of lost followed by the bytes of head.
func behind(lost []byte, head uint64) uint64 {
	if len(lost) >= 8 {
		return binary.BigEndian.Uint64(lost)
	}
	for i := len(lost) - 1; i >= 0; i-- {
		head = head>>8 | uint64(lost[i])<<56
	}
	return head
}

// setPrefix makes the prefix as long as it can be and computes the heads from the keys.
func (t *Tree) setPrefix(l *leaf) {
	if l.count == 0 {
		l.prefixLen = 0
		return
	}
	first, last := t.keys.Key(l.refs[0]), t.keys.Key(l.refs[l.count-1])
	n := min(commonLen(first, last), prefixBytesMax)
	copy(l.prefix[:n], first)
	l.prefixLen = uint8(n)
	for i, ref := range l.refs[:l.count] {
		l.heads[i] = head2(t.keys.Key(ref)[n:])
	}
}

// setInnerPrefix is setPrefix for an inner node: its separators become the first keys of its children.
func (t *Tree) setInnerPrefix(n *inner) {
	if n.count < 2 {
		n.prefixLen = 0
		return
	}
	first, last := t.firstKey(n.children[1]), t.firstKey(n.children[n.count-1])
	length := min(commonLen(first, last), prefixBytesMax)
	copy(n.prefix[:length], first)
	n.prefixLen = uint8(length)
	for i := 1; i < int(n.count); i++ {
		n.heads[i] = head8(t.firstKey(n.children[i])[length:])
	}
}

// insertAt puts a reference at its place in a leaf that is not full.
func (l *leaf) insertAt(at int, key []byte, ref arena.Ref) {
	if n := commonLen(l.prefix[:l.prefixLen], key); n < int(l.prefixLen) {
		l.shortenPrefix(n)
	}
	end := int(l.count) + 1
	copy(l.heads[at+1:end], l.heads[at:])
	copy(l.refs[at+1:end], l.refs[at:])
	l.heads[at], l.refs[at] = head2(key[l.prefixLen:]), ref
	l.count++
}

func (l *leaf) removeAt(at int) {
	copy(l.heads[at:], l.heads[at+1:l.count])
	copy(l.refs[at:], l.refs[at+1:l.count])
	l.count--
}

// insertAt puts a child, whose first key is given, at its place in a node that is not full; at > 0.
func (n *inner) insertAt(at int, key []byte, child arena.Ref) {
	end := int(n.count) + 1
	copy(n.heads[at+1:end], n.heads[at:])
	copy(n.children[at+1:end], n.children[at:])
	n.children[at] = child
	n.count++
	n.setSeparator(at, key)
}

// setSeparator makes key the separator before child at > 0.
func (n *inner) setSeparator(at int, key []byte) {
	if common := commonLen(n.prefix[:n.prefixLen], key); common < int(n.prefixLen) {
		n.shortenPrefix(common)
	}
	n.heads[at] = head8(key[n.prefixLen:])
}

func (n *inner) removeAt(at int) {
	copy(n.heads[at:], n.heads[at+1:n.count])
	copy(n.children[at:], n.children[at+1:n.count])
	n.count--
}
