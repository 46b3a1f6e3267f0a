package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// sortByKey sorts references by their items' keys. Comparing keys where they lie would be a cache miss for each of 20 comparisons a
// key; so eight bytes of each are brought together with its reference and those are sorted, and what has equal ones is sorted by
// the next eight that differ.
func sortByKey(refs []arena.Ref, cells arena.Reader) {
	if len(refs) < 2 {
		return
	}
	list := make([]headed, len(refs))
	for i, ref := range refs {
		list[i].ref = ref
	}
	keySorter{cells}.sort(list, 0)
	for i := range list {
		refs[i] = list[i].ref
	}
}

type headed struct {
	head uint64 // bytes of the key, as a number
	ref  arena.Ref
}

type keySorter struct{ cells arena.Reader }

func (k keySorter) key(h headed) []byte { return keyOf(k.cells.Bytes(h.ref)) }

// sort sorts by keys that have their first depth bytes in common.
func (k keySorter) sort(list []headed, depth int) {
	if len(list) < 8 {
		slices.SortFunc(list, k.compare)
		return
	}
	first := k.key(list[0])
	common, shortest := len(first), len(first)
	for _, h := range list[1:] {
		key := k.key(h)
		shortest = min(shortest, len(key))
		common = min(common, len(key))
		for i := depth; i < common; i++ {
			if key[i] != first[i] {
				common = i
				break
			}
		}
	}
	for i := range list {
		list[i].head = headOf(k.key(list[i])[common:])
	}
	slices.SortFunc(list, func(a, b headed) int { return cmp.Compare(a.head, b.head) })
	for start := 0; start < len(list); {
		end := start + 1
		for end < len(list) && list[end].head == list[start].head {
			end++
		}
		if end-start > 1 {
			k.sortEqual(list[start:end], common, shortest)
		}
		start = end
	}
}

// sortEqual sorts keys with equal heads.
func (k keySorter) sortEqual(list []headed, common, shortest int) {
	if shortest < common+8 { // where keys end within the head it is padded, and equal heads need not be equal bytes
		slices.SortFunc(list, k.compare)
		return
	}
	k.sort(list, common+8)
}

func (k keySorter) compare(a, b headed) int { return bytes.Compare(k.key(a), k.key(b)) }

func headOf(tail []byte) uint64 {
	if len(tail) >= 8 {
		return binary.BigEndian.Uint64(tail)
	}
	var padded [8]byte
	copy(padded[:], tail)
	return binary.BigEndian.Uint64(padded[:])
}
