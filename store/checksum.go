package store

import (
	"encoding/binary"
	"math/bits"
)

// A checksum over a set of items is the sum of their hashes modulo 2^64: independent of order, and
// kept up to date by one addition or subtraction per write. It tells replicas that drifted apart by a fault
// of hardware or program; it is no defence against someone who constructs collisions.
//
// The hash multiplies 64×64→128 bits and folds the halves together, 16 bytes a step, after wyhash. An
// XOR or CRC would not do: both are linear, so differences in two items could cancel out in the sum.
//
// Replicas of different builds compare checksums, so the function is fixed: a golden test holds it.
// Changing it means a new name wherever checksums are exchanged.

// The odd constants are wyhash's default secret.
const (
	hashSeed    = 0xa0761d6478bd642f
	hashLow     = 0xe7037ed1a0b428db
	hashVersion = 0x8ebc6af09c88c6e3
	hashExpiry  = 0x589965cc75374cc3
)

func hashItem(key, value []byte, version Version, expiresAt Time) uint64 {
	h := hashBytes(hashSeed, key)
	h = hashBytes(h, value)
	h = fold(h^uint64(version), hashVersion)
	return fold(h^uint64(expiresAt), hashExpiry)
}

// hashBytes mixes b into h. The length goes in first, so that zeros padding the tail, and bytes moved from
// key to value, change the result.
func hashBytes(h uint64, b []byte) uint64 {
	h = fold(h^uint64(len(b)), hashLow)
	for ; len(b) >= 16; b = b[16:] {
		h = fold(binary.LittleEndian.Uint64(b)^hashLow, binary.LittleEndian.Uint64(b[8:])^h)
	}
	if len(b) > 0 {
		var tail [16]byte
		copy(tail[:], b)
		h = fold(binary.LittleEndian.Uint64(tail[:])^hashLow, binary.LittleEndian.Uint64(tail[8:])^h)
	}
	return h
}

func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}
