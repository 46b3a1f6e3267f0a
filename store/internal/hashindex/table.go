// Package hashindex finds references by key: one Table for each slot, of blocks that lie in an arena.
//
// A block is a row of buckets of one cache line each, so that a look-up costs one miss for the bucket and one for the item:
//
//	bucket, 64 bytes
//	┌──────────────┬──────────────┬────────────┬──────────────────────────────┐
//	│ tag × 12     │ passed       │ entries    │ ref × 12                     │
//	│ 1 byte each  │ uint16       │ uint16     │ uint32 each                  │
//	└──────────────┴──────────────┴────────────┴──────────────────────────────┘
//	tag      a byte of the key's hash, 0: free
//	passed   how many entries would belong here but lie further on, this bucket having been full: a look-up ends at a bucket
//	         that nobody passed
//	entries  of the whole block, in the first bucket only
//
// A block grows by a quarter when it is 7/8 full. At 64 buckets it is split in two by the next bit of the hash, and
// the table gets a directory, as in extendible hashing; so no step rebuilds more than 700 entries. Blocks of all sizes between 32
// and 64 buckets are in use at any time, which keeps them fuller than equal pages would be: 79 % and not 69 %.
//
// The hash is seeded by the process. Nothing of it may be seen by whoever compares replicas: a Table has no order.
//
// An Index has no lock. Find and Refs read; everything else changes the index and is serialised by the caller.
package hashindex

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

const (
	bucketBytes   = 64
	bucketEntries = 12
	passedAt      = 12
	entriesAt     = 14
	refsAt        = 16

	bucketsMax = 64 // of a block
)

// Keys gives the key of a reference that is in an index.
type Keys interface {
	Key(arena.Ref) []byte
}

// Index is what the tables of one store share.
type Index struct {
	keys   Keys
	blocks *arena.Arena
	seed   maphash.Seed
}

// Table is a set of references with different keys. The zero value is empty.
type Table struct {
	block     arena.Ref   // the only block, 0 with no entry; or
	directory []arena.Ref // 2^bits blocks by the hash's upper bits, each occurring 2^k times in a row
	bits      uint8
	count     int
}

// New returns an index of the keys given.
func New(keys Keys) *Index {
	sizes := make([]int, 0, bucketsMax)
	for n := 1; n <= bucketsMax; n++ {
		sizes = append(sizes, n*bucketBytes)
	}
	return &Index{
		keys:   keys,
		blocks: arena.New(arena.NewClasses(sizes...), arena.Config{HugeFrom: 4 << 20}),
		seed:   maphash.MakeSeed(),
	}
}

// Usage returns the figures of all blocks.
func (x *Index) Usage() arena.Usage { return x.blocks.Usage() }

// Hash returns a key's hash, which the other functions want.
func (x *Index) Hash(key []byte) uint64 { return maphash.Bytes(x.seed, key) }

// Count returns the number of entries.
func (t *Table) Count() int { return t.count }

// blockOf returns the block that a hash belongs to, and its place in the directory.
func (t *Table) blockOf(hash uint64) (block arena.Ref, at int) {
	if t.directory == nil {
		return t.block, 0
	}
	at = int(hash >> (64 - t.bits))
	return t.directory[at], at
}

func tagOf(hash uint64) byte {
	return max(byte(hash), 1)
}

// homeOf returns the bucket of n that a hash belongs to. It takes bits that neither the tag nor, within 2^24 blocks, the directory uses.
func homeOf(hash uint64, n int) int {
	return int(uint64(uint32(hash>>8)) * uint64(n) >> 32)
}

// matches returns a mask with the lowest bit of byte i set where tag i may be the one wanted; a rare bit is wrong.
func matches(word uint64, tag byte) uint64 {
	const low, high = 0x0101010101010101, 0x8080808080808080
	x := word ^ low*uint64(tag)
	return (x - low) &^ x & high
}

// Find returns the reference of a key, 0 if there is none.
func (x *Index) Find(t *Table, hash uint64, key []byte) arena.Ref {
	ref, _, _ := x.find(t, hash, key)
	return ref
}

// find also returns where it stands: the block, and the place of the ref in bytes.
func (x *Index) find(t *Table, hash uint64, key []byte) (ref arena.Ref, block []byte, at int) {
	blockRef, _ := t.blockOf(hash)
	if blockRef == 0 {
		return 0, nil, 0
	}
	block = x.blocks.Bytes(blockRef)
	tag := tagOf(hash)
	start := homeOf(hash, len(block)/bucketBytes) * bucketBytes
	for bucket := start; ; {
		b := block[bucket : bucket+bucketBytes : bucket+bucketBytes]
		for m := matches(binary.LittleEndian.Uint64(b), tag); m != 0; m &= m - 1 {
			i := bits.TrailingZeros64(m) / 8
			ref := refAt(b, i)
			if b[i] == tag && string(x.keys.Key(ref)) == string(key) {
				return ref, block, bucket + refsAt + 4*i
			}
		}
		for m := matches(uint64(binary.LittleEndian.Uint32(b[8:])), tag) & 0xffffffff; m != 0; m &= m - 1 {
			i := 8 + bits.TrailingZeros64(m)/8
			ref := refAt(b, i)
			if b[i] == tag && string(x.keys.Key(ref)) == string(key) {
				return ref, block, bucket + refsAt + 4*i
			}
		}
		if binary.LittleEndian.Uint16(b[passedAt:]) == 0 {
			return 0, nil, 0
		}
		if bucket += bucketBytes; bucket == len(block) {
			bucket = 0
		}
		if bucket == start {
			return 0, nil, 0
		}
	}
}

func refAt(bucket []byte, i int) arena.Ref {
	return arena.Ref(binary.LittleEndian.Uint32(bucket[refsAt+4*i:]))
}

// Replace puts another reference in the place of old, which has the same key and must be there.
func (x *Index) Replace(t *Table, hash uint64, key []byte, ref arena.Ref) {
	_, block, at := x.find(t, hash, key)
	binary.LittleEndian.PutUint32(block[at:], uint32(ref))
}

// Refs calls fn for references in blocks that begin at the hash from or behind, and returns where to go on after about atLeast of
// them; 0 after the last. An entry that is there all the time between calls is passed at least once, whatever else happens to
// the table between them.
func (x *Index) Refs(t *Table, from uint64, atLeast int, fn func(arena.Ref)) (next uint64) {
	if t.directory == nil {
		if from == 0 && t.block != 0 {
			eachRef(x.blocks.Bytes(t.block), fn)
		}
		return 0
	}
	passed := 0
	for at := int(from >> (64 - t.bits)); at < len(t.directory); {
		block := t.directory[at]
		end := at + 1
		for end < len(t.directory) && t.directory[end] == block {
			end++
		}
		eachRef(x.blocks.Bytes(block), func(ref arena.Ref) {
			passed++
			fn(ref)
		})
		at = end
		if passed >= atLeast && at < len(t.directory) {
			return uint64(at) << (64 - t.bits)
		}
	}
	return 0
}

func eachRef(block []byte, fn func(arena.Ref)) {
	for ; len(block) > 0; block = block[bucketBytes:] {
		for i := range bucketEntries {
			if block[i] != 0 {
				fn(refAt(block, i))
			}
		}
	}
}
