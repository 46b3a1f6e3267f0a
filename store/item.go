package store

import (
	"encoding/binary"
	"math/bits"

	"github.com/ostraka-db/ostraka/store/internal/arena"
)

// An item is one key's state as it lies in a cell of the arena:
//
//	┌───────┬────────────┬──────────────┬─────────┬──────┬────────────┬─────┬───────┐
//	│ flags │ key length │ value length │ version │ slot │ expires at │ key │ value │
//	│ 1     │ 1 or 2     │ 1, 2 or 4    │ 1 to 8  │ 2    │ 0 or 8     │     │       │
//	└───────┴────────────┴──────────────┴─────────┴──────┴────────────┴─────┴───────┘
//
//	flags  bits 0..2  bytes of the version, less 1
//	       bit  3     it has an expiry time
//	       bit  4     the key length takes 2 bytes
//	       bit  5     the value length takes 2 bytes
//	       bit  6     the value is large: it lies elsewhere, and 4 bytes in place of its length are its number
//
// Numbers are little-endian but for slot and expiry time: those are big-endian, so that "slot, expires at, key" is one run of bytes that
// orders as the order of reaping does. The slot is there for compaction, which comes upon an item by its place in memory.
const (
	flagExpires   = 1 << 3
	flagLongKey   = 1 << 4
	flagWideValue = 1 << 5
	flagLarge     = 1 << 6

	// itemBytesMax bounds an item whose value lies with it, unless its length takes one byte.
	itemBytesMax = 16 << 10
	// headerBytesMax is the longest header there is.
	headerBytesMax = 1 + 2 + 4 + 8 + 2 + 8
)

// headerBytes is where the key begins, by flags.
var headerBytes = func() (n [1 << 7]uint8) {
	for flags := range n {
		n[flags] = 1 + 1 + 1 + uint8(flags&7) + 1 + 2
		if flags&flagExpires != 0 {
			n[flags] += 8
		}
		if flags&flagLongKey != 0 {
			n[flags]++
		}
		if flags&flagWideValue != 0 {
			n[flags]++
		}
		if flags&flagLarge != 0 {
			n[flags] += 3
		}
	}
	return n
}()

// itemClasses has a cell for every item: the largest are keys of 32 KiB with their values elsewhere.
var itemClasses = arena.SteppedClasses(headerBytesMax + keyBytesHardMax)

// record is an item decoded. Its slices are the store's memory, unless the value is one that was just made for it.
type record struct {
	ref       arena.Ref // 0 before it has a place
	key       []byte
	value     []byte // nil where large is not 0, see items.load
	version   Version
	expiresAt Time // 0: does not expire
	large     uint32
	slot      uint16
}

func (r *record) expired(now Time) bool {
	return r.expiresAt != 0 && r.expiresAt <= now
}

func (r *record) versionOrZero() Version {
	if r == nil {
		return 0
	}
	return r.version
}

func (r *record) meta() Meta {
	return Meta{Version: r.version, ExpiresAt: r.expiresAt, ValueBytes: len(r.value)}
}

func (r *record) bytes() int { return len(r.key) + len(r.value) }

func (r *record) checksum() uint64 { return hashItem(r.key, r.value, r.version, r.expiresAt) }

// flags returns the first byte of the record as an item with a value of length bytes.
func (r *record) flags(length int) byte {
	flags := byte(max(bits.Len64(uint64(r.version)), 1)-1) / 8
	if r.expiresAt != 0 {
		flags |= flagExpires
	}
	if len(r.key) > 0xff {
		flags |= flagLongKey
	}
	if length <= 0xff {
		return flags
	}
	if int(headerBytes[flags|flagWideValue])+len(r.key)+length > itemBytesMax {
		return flags | flagLarge
	}
	return flags | flagWideValue
}

// appendHeader appends everything before the key.
func (r *record) appendHeader(b []byte, flags byte, length int) []byte {
	b = append(b, flags, byte(len(r.key)))
	if flags&flagLongKey != 0 {
		b = append(b, byte(len(r.key)>>8))
	}
	switch {
	case flags&flagLarge != 0:
		b = binary.LittleEndian.AppendUint32(b, r.large)
	case flags&flagWideValue != 0:
		b = binary.LittleEndian.AppendUint16(b, uint16(length))
	default:
		b = append(b, byte(length))
	}
	version := r.version
	for range flags&7 + 1 {
		b = append(b, byte(version))
		version >>= 8
	}
	b = binary.BigEndian.AppendUint16(b, r.slot)
	if flags&flagExpires != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(r.expiresAt))
	}
	return b
}

// setLarge writes the number of an item's large value into it.
func setLarge(item []byte, number uint32) {
	at := 2
	if item[0]&flagLongKey != 0 {
		at = 3
	}
	binary.LittleEndian.PutUint32(item[at:], number)
}

// keyOf returns the key of the item in a cell.
func keyOf(cell []byte) []byte {
	flags := cell[0]
	length := int(cell[1])
	if flags&flagLongKey != 0 {
		length |= int(cell[2]) << 8
	}
	at := int(headerBytes[flags&0x7f])
	return cell[at : at+length]
}

// dueKeyOf returns slot, expiry time and key of an item that has an expiry time.
func dueKeyOf(cell []byte) []byte {
	flags := cell[0]
	length := int(cell[1])
	if flags&flagLongKey != 0 {
		length |= int(cell[2]) << 8
	}
	at := int(headerBytes[flags&0x7f])
	return cell[at-10 : at+length]
}

// versionOf returns the version of the item in a cell.
func versionOf(cell []byte) Version {
	flags := cell[0]
	at := int(headerBytes[flags&0x7f]) - 2
	if flags&flagExpires != 0 {
		at -= 8
	}
	var version Version
	for n := int(flags & 7); n >= 0; n-- {
		at--
		version = version<<8 | Version(cell[at])
	}
	return version
}

// decodeItem returns the item in a cell, without a value that is large.
func decodeItem(cell []byte) record {
	flags := cell[0]
	r := record{key: keyOf(cell), version: versionOf(cell)}
	at := int(headerBytes[flags&0x7f])
	end := at + len(r.key)
	if flags&flagExpires != 0 {
		r.expiresAt = Time(binary.BigEndian.Uint64(cell[at-8:]))
		at -= 8
	}
	r.slot = binary.BigEndian.Uint16(cell[at-2:])
	lengthAt := 2
	if flags&flagLongKey != 0 {
		lengthAt = 3
	}
	switch {
	case flags&flagLarge != 0:
		r.large = binary.LittleEndian.Uint32(cell[lengthAt:])
	case flags&flagWideValue != 0:
		r.value = cell[end : end+int(binary.LittleEndian.Uint16(cell[lengthAt:]))]
	default:
		r.value = cell[end : end+int(cell[lengthAt])]
	}
	return r
}
