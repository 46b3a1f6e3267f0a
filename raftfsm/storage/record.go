package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A record is a small fact about a replica that must never be forgotten: its term, its vote, its minimum index,
// that it was removed. Each is kept twice, in the write-ahead log and in meta/, and written to the first before the
// second; nothing is answered before both are durable.
//
//	format  counter   payload    CRC-32C
//	1 byte  8 bytes   any bytes  4 bytes     big-endian; the checksum covers the key and all before it
//
// The counter is 1 at a record's first write and steps by one. It tells the residue of a crash from rot:
//
//	first copy   second copy   meaning
//	n            n             the record, if the payloads are alike; else rot
//	n + 1        n, or none    the power went between the two writes, or the second copy's file fell back to an
//	             and n = 0     older page (bolt does so silently). The first copy counts: nobody was told of it,
//	                           but remembering a vote that nobody counted harms nobody.
//	             removed       the replica was removed, whatever the first copy says: what it had there is gone.
//	anything else              rot. The first copy can't be behind, nor ahead by two.
//
// A copy that is present but doesn't check is rot, whatever the other says: design.md's rule is not to vote
// where they disagree, and a file that is wrong in one place may be in others.
type record struct {
	counter uint64
	payload []byte
}

// ErrVoteRecordDamaged means that a replica can't know its term, its vote or its minimum index for certain. It
// must never vote again under its id.
var ErrVoteRecordDamaged = errors.New("storage: term or vote record is damaged")

const (
	recordFormat    = 1
	recordHeadBytes = 1 + 8
	recordSumBytes  = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordKey is unique to the replica for ever, as replica ids are.
func recordKey(who identity, name string) string {
	return fmt.Sprintf("%d/%d/%s", uint32(who.group), uint64(who.replica), name)
}

// checksum of the key too, so that one replica's record is never taken for another's.
func (r record) encode(key string) []byte {
	b := make([]byte, 0, recordHeadBytes+len(r.payload)+recordSumBytes)
	b = append(b, recordFormat)
	b = binary.BigEndian.AppendUint64(b, r.counter)
	b = append(b, r.payload...)
	return binary.BigEndian.AppendUint32(b, recordSum(key, b))
}

func recordSum(key string, head []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(key), castagnoli), castagnoli, head)
}

// decodeRecord reads one copy. A missing one is the zero record.
func decodeRecord(key string, b []byte) (record, error) {
	if b == nil {
		return record{}, nil
	}
	if len(b) < recordHeadBytes+recordSumBytes {
		return record{}, fmt.Errorf("%d bytes, a record has at least %d", len(b), recordHeadBytes+recordSumBytes)
	}
	head, sum := b[:len(b)-recordSumBytes], binary.BigEndian.Uint32(b[len(b)-recordSumBytes:])
	if got := recordSum(key, head); got != sum {
		return record{}, fmt.Errorf("checksum %08x, stored %08x", got, sum)
	}
	if head[0] != recordFormat {
		return record{}, fmt.Errorf("format %d, this build reads %d", head[0], recordFormat)
	}
	r := record{counter: binary.BigEndian.Uint64(head[1:]), payload: head[recordHeadBytes:]}
	if r.counter == 0 {
		return record{}, errors.New("counter 0")
	}
	return r, nil
}

// readRecord reads both copies of a record and decides what it is. behind says that the second copy is to be
// written again.
func readRecord(copies [2]recordStore, who identity, name string) (r record, behind bool, err error) {
	var got [2]record
	key := recordKey(who, name)
	for i, c := range copies {
		raw, err := c.get(who, name)
		if err == nil {
			got[i], err = decodeRecord(key, raw)
		}
		if err != nil {
			return record{}, false, fmt.Errorf("%w: %s: record %q: %w", ErrVoteRecordDamaged, c.name(), key, err)
		}
	}
	first, second := got[0], got[1]
	switch {
	case first.counter == second.counter && string(first.payload) == string(second.payload):
		return first, false, nil
	case first.counter == second.counter+1:
		return first, true, nil
	}
	return record{}, false, fmt.Errorf("%w: record %q is write %d in %s and write %d in %s, which no crash leaves behind",
		ErrVoteRecordDamaged, key, first.counter, copies[0].name(), second.counter, copies[1].name())
}

// writeRecord writes both copies, in the order that readRecord relies on.
func writeRecord(copies [2]recordStore, who identity, name string, r record) error {
	key := recordKey(who, name)
	encoded := r.encode(key)
	for _, c := range copies {
		if err := c.set(who, name, encoded); err != nil {
			return fmt.Errorf("%s: record %q: %w", c.name(), key, err)
		}
	}
	return nil
}
