package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/shard"
)

// A segment is a head followed by frames; what lies behind the last frame is zeros, or frames of the file's former life.
// Integers are big-endian, everything is aligned to 8 bytes.
//
//	head   "OSTRAWAL"  format  CRC-32C   sequence  salt     bytes
//	       8 bytes     4       4         8         8        8      then zeros up to headBytes
//
//	frame   0  length of the payload, extensions included
//	        4  CRC-32C of all the rest, padding included
//	        8  low half of the segment's sequence
//	       12  kind      13  type of an entry      14  check of the header, 2 bytes
//	       16  shard
//	       20  length of the extensions, which come first in the payload
//	       24  replica
//	       32  index
//	       40  term
//	       48  count: the replica's frames are numbered, without a gap; of the log's own: how many frames of replicas
//	           were written before, of all together
//	       56  time: when a leader appended an entry, Unix nanoseconds; 0: not known
//	       64  payload, padded with zeros to a multiple of 8
//
// The checksum goes on from a seed made of the segment's sequence and salt, and from the frame's offset. So a frame checks
// only where and when it was written: not moved, not in a file that was recycled (the sequence in the frame says that
// without any chance, and the salt keeps a value that looks like a frame from passing as one).
//
// The header has a check of its own, from the same seed, so that whoever looks for the next frame behind bytes that don't
// check believes no length before it has seen that: a torn value full of what looks like headers of huge frames would else
// be read through once for each of them, for hours.
const (
	segmentMagic  = "OSTRAWAL"
	segmentFormat = 1
	headBytes     = 512 // a sector: what is written together is torn together
	headUsedBytes = 8 + 4 + 4 + 8 + 8 + 8
	frameBytes    = 64
	alignment     = 8
)

// kind says what a frame is.
type kind uint8

const (
	// kindMark begins each write. Segment term, offset index: up to there its writer knew the log to be durable.
	kindMark kind = 1 + iota
	// kindSeal ends a segment. It is written once all before it is durable.
	kindSeal
	// kindSummary is the first frame of a segment behind the mark: every replica's count.
	kindSummary
	// kindEntry appends an entry; all at its index and above are gone.
	kindEntry
	// kindMoved is an entry that was appended earlier, copied so that its old segment can go. It replaces nothing.
	kindMoved
	// kindTruncate deletes the entries from index on.
	kindTruncate
	// kindCompact deletes the entries up to index.
	kindCompact
	// kindClear deletes all entries.
	kindClear
	// kindRecord sets a named value: name in the extensions, value in the data. The latest counts.
	kindRecord
	// kindForget deletes the replica's entries and records.
	kindForget
	// kindLost stands in a rewritten segment for bytes that did not check; its data says where they were.
	kindLost

	kindEnd
)

var kindNames = [kindEnd]string{"", "mark", "seal", "summary", "entry", "moved", "truncate", "compact", "clear", "record", "forget", "lost"}

func (k kind) String() string {
	if k == 0 || k >= kindEnd {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return kindNames[k]
}

// ofReplica tells whether frames of the kind belong to a replica, and are numbered.
func (k kind) ofReplica() bool { return k >= kindEntry && k <= kindForget }

// frame is a decoded frame. Its slices share the buffer it was decoded from.
type frame struct {
	kind       kind
	entryType  uint8
	id         ID
	index      uint64
	term       uint64
	count      uint64
	time       int64
	extensions []byte
	data       []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// padded rounds a length up to the alignment.
func padded(n int) int { return (n + alignment - 1) &^ (alignment - 1) }

// size is what the frame takes in a segment.
func (f *frame) size() int { return frameBytes + padded(len(f.extensions)+len(f.data)) }

// seed is the identity of one life of a segment file.
type seed struct {
	sequence uint64
	salt     uint64
}

// sum is the checksum to go on from, for a frame at an offset. Checksums that go on from different sums differ for the same
// bytes, so a frame never checks at another offset of its segment. It is the CRC-32C of three big-endian numbers, byte by
// byte: what crc32.Checksum is given it cannot prove to stay on the stack, and this runs for every frame.
func (s seed) sum(offset int64) uint32 {
	if knownbad.Seed {
		return 0
	}
	sum := ^uint32(0)
	for _, word := range [...]uint64{s.sequence, s.salt, uint64(offset)} {
		for shift := 56; shift >= 0; shift -= 8 {
			sum = castagnoli[byte(sum)^byte(word>>shift)] ^ sum>>8
		}
	}
	return ^sum
}

// headerSum covers a frame's header but the sum and the check, which counts as zeros.
func (s seed) headerSum(offset int64, b []byte) uint32 {
	sum := crc32.Update(s.sum(offset), castagnoli, b[:4])
	sum = crc32.Update(sum, castagnoli, b[8:14])
	sum = crc32.Update(sum, castagnoli, noCheck)
	return crc32.Update(sum, castagnoli, b[16:frameBytes])
}

// noCheck stands for the check of a header in its own sum.
var noCheck = make([]byte, 2)

// headerCheck is the check of a header that has a sum.
func headerCheck(sum uint32) uint16 { return uint16(sum>>16) ^ uint16(sum) }

// appendFrame encodes a frame that will lie at an offset of the segment. It allocates only to grow b.
func appendFrame(b []byte, s seed, offset int64, f *frame) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.extensions)+len(f.data)))
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(s.sequence))
	b = append(b, byte(f.kind), f.entryType, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(f.id.Shard))
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.extensions)))
	b = binary.BigEndian.AppendUint64(b, uint64(f.id.Replica))
	b = binary.BigEndian.AppendUint64(b, f.index)
	b = binary.BigEndian.AppendUint64(b, f.term)
	b = binary.BigEndian.AppendUint64(b, f.count)
	b = binary.BigEndian.AppendUint64(b, uint64(f.time))
	b = append(b, f.extensions...)
	b = append(b, f.data...)
	var zeros [alignment]byte
	b = append(b, zeros[:at+f.size()-len(b)]...)
	sum := s.headerSum(offset, b[at:])
	binary.BigEndian.PutUint16(b[at+14:], headerCheck(sum))
	binary.BigEndian.PutUint32(b[at+4:], crc32.Update(sum, castagnoli, b[at+frameBytes:]))
	return b
}

// errNoFrame means bytes that are no frame of this segment at this place.
var errNoFrame = errors.New("no frame")

// checkHeader reads the size of the frame at the beginning of b, which holds at least frameBytes, and the sum of its
// header. Not ok: b begins with no header of this segment at this place.
func checkHeader(b []byte, s seed, offset int64) (size int64, sum uint32, ok bool) {
	length, extensions := int64(binary.BigEndian.Uint32(b)), int64(binary.BigEndian.Uint32(b[20:]))
	k := kind(b[12])
	if binary.BigEndian.Uint32(b[8:]) != uint32(s.sequence) && !knownbad.Seed || k == 0 || k >= kindEnd || extensions > length {
		return 0, 0, false
	}
	sum = s.headerSum(offset, b)
	return frameBytes + (length+alignment-1)&^(alignment-1), sum, headerCheck(sum) == binary.BigEndian.Uint16(b[14:])
}

// decodeFrame decodes the frame at the beginning of b, which lies at an offset of the segment.
func decodeFrame(b []byte, s seed, offset int64) (frame, int, error) {
	if len(b) < frameBytes {
		return frame{}, 0, errNoFrame
	}
	room, sum, ok := checkHeader(b, s, offset)
	if !ok || room > int64(len(b)) {
		return frame{}, 0, errNoFrame
	}
	size := int(room)
	if crc32.Update(sum, castagnoli, b[frameBytes:size]) != binary.BigEndian.Uint32(b[4:]) {
		return frame{}, 0, errNoFrame
	}
	length, extensions := int(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint32(b[20:]))
	f := frame{
		kind: kind(b[12]), entryType: b[13],
		id:    ID{Shard: shard.ID(binary.BigEndian.Uint32(b[16:])), Replica: shard.ReplicaID(binary.BigEndian.Uint64(b[24:]))},
		index: binary.BigEndian.Uint64(b[32:]), term: binary.BigEndian.Uint64(b[40:]),
		count: binary.BigEndian.Uint64(b[48:]), time: int64(binary.BigEndian.Uint64(b[56:])),
		extensions: b[frameBytes : frameBytes+extensions : frameBytes+extensions],
		data:       b[frameBytes+extensions : frameBytes+length : frameBytes+length],
	}
	return f, size, nil
}

// segmentHead is a segment file's first bytes.
type segmentHead struct {
	seed
	bytes int64 // of the whole file
}

func (h segmentHead) encode() []byte {
	b := make([]byte, headBytes)
	copy(b, segmentMagic)
	binary.BigEndian.PutUint32(b[8:], segmentFormat)
	binary.BigEndian.PutUint64(b[16:], h.sequence)
	binary.BigEndian.PutUint64(b[24:], h.salt)
	binary.BigEndian.PutUint64(b[32:], uint64(h.bytes))
	binary.BigEndian.PutUint32(b[12:], headSum(b))
	return b
}

// headSum covers all of the head but itself.
func headSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, b[16:headBytes])
}

func decodeHead(b []byte) (segmentHead, error) {
	var h segmentHead
	if len(b) < headBytes || string(b[:8]) != segmentMagic {
		return h, errors.New("no segment head")
	}
	if headSum(b) != binary.BigEndian.Uint32(b[12:]) {
		return h, errors.New("the segment's head does not check")
	}
	// Only now, so that a flipped bit is not taken for a format from the future.
	if format := binary.BigEndian.Uint32(b[8:]); format != segmentFormat {
		return h, fmt.Errorf("%w: %d, this build reads %d", ErrFormat, format, segmentFormat)
	}
	h.sequence, h.salt = binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:])
	h.bytes = int64(binary.BigEndian.Uint64(b[32:]))
	return h, nil
}

// summaryItem is one replica's line in a summary frame.
type summaryItem struct {
	id    ID
	count uint64
}

const summaryItemBytes = 4 + 8 + 8

func appendSummary(b []byte, items []summaryItem) []byte {
	for _, it := range items {
		b = binary.BigEndian.AppendUint32(b, uint32(it.id.Shard))
		b = binary.BigEndian.AppendUint64(b, uint64(it.id.Replica))
		b = binary.BigEndian.AppendUint64(b, it.count)
	}
	return b
}

func decodeSummary(b []byte) ([]summaryItem, error) {
	if len(b)%summaryItemBytes != 0 {
		return nil, fmt.Errorf("a summary of %d bytes", len(b))
	}
	items := make([]summaryItem, 0, len(b)/summaryItemBytes)
	for ; len(b) > 0; b = b[summaryItemBytes:] {
		items = append(items, summaryItem{
			id:    ID{Shard: shard.ID(binary.BigEndian.Uint32(b)), Replica: shard.ReplicaID(binary.BigEndian.Uint64(b[4:]))},
			count: binary.BigEndian.Uint64(b[12:]),
		})
	}
	return items, nil
}
