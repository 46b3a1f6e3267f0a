package store

import "encoding/binary"

// A change as a history holds it, little endian:
//
//	size 4 │ flags 1 │ key's length 2 │ value's length 4 │ version 8 │ index 4 │ time 8 │ expires at 8, if flagged
//	│ previous version 8, previous value's length 4, if flagged │ key │ value │ previous value
const (
	changeHeaderBytes = 4 + 1 + 2 + 4 + 8 + 4 + 8

	changeKindMask = 0x03
	changeExpires  = 0x04
	changeExisted  = 0x08
)

// encodedBytes is the size of a change whose value is followed by a tail.
func (c *Change) encodedBytes(tail int) int {
	size := changeHeaderBytes + len(c.Key) + len(c.Value) + tail
	if c.ExpiresAt != 0 {
		size += 8
	}
	if c.Existed {
		size += 8 + 4 + len(c.Previous)
	}
	return size
}

// encode appends the change to b, which has room for it.
func (c *Change) encode(b []byte, size int, tail []byte) {
	flags := byte(c.Kind)
	if c.ExpiresAt != 0 {
		flags |= changeExpires
	}
	if c.Existed {
		flags |= changeExisted
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = append(b, flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(c.Key)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.Value)+len(tail)))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.Position.Version))
	b = binary.LittleEndian.AppendUint32(b, c.Position.Index)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.Time))
	if c.ExpiresAt != 0 {
		b = binary.LittleEndian.AppendUint64(b, uint64(c.ExpiresAt))
	}
	if c.Existed {
		b = binary.LittleEndian.AppendUint64(b, uint64(c.PreviousVersion))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(c.Previous)))
	}
	b = append(b, c.Key...)
	b = append(b, c.Value...)
	b = append(b, tail...)
	if c.Existed {
		copy(b[len(b):size], c.Previous)
	}
}

// decode makes c the change that b begins with; its slices are parts of b. It returns the change's size.
func (c *Change) decode(b []byte) (size int) {
	size = int(binary.LittleEndian.Uint32(b))
	flags := b[4]
	keyBytes := int(binary.LittleEndian.Uint16(b[5:]))
	valueBytes := int(binary.LittleEndian.Uint32(b[7:]))
	*c = Change{Kind: ChangeKind(flags & changeKindMask), Time: Time(binary.LittleEndian.Uint64(b[23:])),
		Position: Position{Version(binary.LittleEndian.Uint64(b[11:])), binary.LittleEndian.Uint32(b[19:])}}
	at := changeHeaderBytes
	if flags&changeExpires != 0 {
		c.ExpiresAt = Time(binary.LittleEndian.Uint64(b[at:]))
		at += 8
	}
	previousBytes := 0
	if flags&changeExisted != 0 {
		c.Existed, c.PreviousVersion = true, Version(binary.LittleEndian.Uint64(b[at:]))
		previousBytes = int(binary.LittleEndian.Uint32(b[at+8:]))
		at += 8 + 4
	}
	cut := func(n int) []byte {
		part := b[at : at+n : at+n]
		at += n
		return part
	}
	c.Key, c.Value, c.Previous = cut(keyBytes), cut(valueBytes), cut(previousBytes)
	return size
}
