package shard

import (
	"bytes"
	"strconv"
	"unsafe"
)

// Slot is one of the SlotCount hash buckets of keys. Always < SlotCount.
type Slot uint16

// SlotCount is how many slots there are. Fixed for ever: it is Redis Cluster's, and every map, snapshot and
// token counts on it.
const SlotCount = 16384

// SlotOf returns the slot of a key: CRC16/XMODEM of the key, or of its hash tag, modulo SlotCount.
//
// The hash tag is what stands between the first '{' and the first '}' after it, if that is not empty. Keys with
// equal tags share a slot, which is how callers put keys together for an atomic batch:
//
//	{user1000}.following   hashes "user1000"
//	foo{}{bar}             hashes all of it: the first pair of braces is empty
//	foo{{bar}}zap          hashes "{bar"
//	foo{bar}{zap}          hashes "bar"
//
// It allocates nothing. Source: Redis Cluster specification, "Key distribution model" and "Hash tags".
func SlotOf(key []byte) Slot {
	if open := bytes.IndexByte(key, '{'); open >= 0 {
		if length := bytes.IndexByte(key[open+1:], '}'); length > 0 {
			key = key[open+1 : open+1+length]
		}
	}
	var crc uint16
	for _, b := range key {
		crc = crc<<8 ^ crcTable[byte(crc>>8)^b]
	}
	return Slot(crc % SlotCount)
}

// SlotOfString is SlotOf for a string. It lends SlotOf the string's bytes, which neither writes nor keeps them: a
// conversion would copy, and one generic loop for both took twice as long, for want of bytes.IndexByte.
func SlotOfString(key string) Slot { return SlotOf(unsafe.Slice(unsafe.StringData(key), len(key))) }

// crcPolynomial is x^16 + x^12 + x^5 + 1, most significant bit first. XMODEM starts from 0 and inverts nothing.
const crcPolynomial = 0x1021

// crcTable holds, for each byte, what its eight bits do to the register.
var crcTable = makeCRCTable()

func makeCRCTable() (table [256]uint16) {
	for i := range table {
		crc := uint16(i) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= crcPolynomial
			}
		}
		table[i] = crc
	}
	return table
}

// Range is the slots [From, To). To may be SlotCount. A valid range is not empty.
type Range struct{ From, To uint16 }

// Len is the number of slots in the range.
func (r Range) Len() int { return int(r.To) - int(r.From) }

// Contains says whether the slot lies in [From, To).
func (r Range) Contains(s Slot) bool { return r.From <= uint16(s) && uint16(s) < r.To }

// String is the range as people write it, both ends included: "0-5460", or "7" for one slot.
func (r Range) String() string {
	if r.Len() <= 0 {
		return "empty"
	}
	first, last := strconv.Itoa(int(r.From)), strconv.Itoa(int(r.To)-1)
	if first == last {
		return first
	}
	return first + "-" + last
}

func (r Range) valid() bool { return r.From < r.To && r.To <= SlotCount }
