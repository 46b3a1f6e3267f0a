package raftfsm

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// A log entry of a shard is one msgpack array:
//
//	[format, kind, time, payload…]
//
//	format  1
//	kind    entryOps | entryOwn | entryTick | entryReap
//	time    shard time in milliseconds, stamped by the leader, never below an earlier entry's
//
//	ops     [op, op, …]         op = [kind, flags, client, request, lowest, attempt, key, value, old, delta, ttl,
//	                             version, value bytes at most]
//	own     [[from, to], …]     the slots a shard is born with, [from, to)
//	tick    nothing             moves shard time on
//	reap    slot, cutoff, limit removes expired keys
//
// An entry of a higher format or another kind stops the replica (design.md "Formats live long").
const entryFormat = 1

type entryKind uint8

const (
	entryOps  entryKind = 1
	entryOwn  entryKind = 2
	entryTick entryKind = 3
	entryReap entryKind = 4
)

// Session identifies a write to those who must recognise its retry. A zero ClientID means no session.
type Session struct {
	ClientID [16]byte
	// Request counts a client's writes from 1 and is the same on each attempt.
	Request uint64
	// Lowest is the lowest request the client still waits for: records below it may be dropped.
	Lowest uint64
	// Attempt is 1 for the first sending.
	Attempt uint32
}

// sessionOp is one mutation with the identity of its sender.
type sessionOp struct {
	Op      store.Op
	Session Session
}

// entry is a decoded log entry of a shard. Which fields mean anything depends on Kind.
type entry struct {
	Kind   entryKind
	Time   store.Time
	Ops    []sessionOp
	Ranges []shard.Range
	Slot   uint16
	Cutoff store.Time
	Limit  int
}

const (
	opFields = 13

	flagKeepTTL        = 1 << 0
	flagReturnPrevious = 1 << 1
	flagConditionShift = 4 // the condition's number sits in bits 4..7

	// opOverhead bounds what an encoded op takes beyond key, value and old.
	opOverhead = 96
	// entryOpsMax bounds what decoding allocates for an entry's op list before it has read them.
	entryOpsMax = 1 << 16
)

// encodedSize is an upper bound of an op's bytes inside an entry.
func encodedSize(op *store.Op) int { return opOverhead + len(op.Key) + len(op.Value) + len(op.Old) }

// entryEncoder builds entries in a buffer of its own. One goroutine's.
type entryEncoder struct{ buf []byte }

// encoderBytesMax is the largest buffer that an encoder keeps; one grown by a larger operation is let go.
const encoderBytesMax = 1 << 20

// done returns a copy of what was built: raft keeps it in its log, for as long as it may be sent to others.
func (e *entryEncoder) done() []byte {
	data := bytes.Clone(e.buf)
	if cap(e.buf) > encoderBytesMax {
		e.buf = nil
	}
	return data
}

// encode returns an entry's bytes; they are the caller's.
func (e *entryEncoder) encode(ent *entry) ([]byte, error) {
	switch ent.Kind {
	case entryOps:
		e.begin(ent.Kind, ent.Time, 1)
		e.buf = appendArray(e.buf, len(ent.Ops))
		for i := range ent.Ops {
			e.buf = appendOp(e.buf, &ent.Ops[i].Op, &ent.Ops[i].Session)
		}
	case entryOwn:
		e.begin(ent.Kind, ent.Time, 1)
		e.buf = appendArray(e.buf, len(ent.Ranges))
		for _, r := range ent.Ranges {
			e.buf = appendArray(e.buf, 2)
			e.buf = appendUint(e.buf, uint64(r.From))
			e.buf = appendUint(e.buf, uint64(r.To))
		}
	case entryTick:
		e.begin(ent.Kind, ent.Time, 0)
	case entryReap:
		e.begin(ent.Kind, ent.Time, 3)
		e.buf = appendUint(e.buf, uint64(ent.Slot))
		e.buf = appendInt(e.buf, int64(ent.Cutoff))
		e.buf = appendInt(e.buf, int64(ent.Limit))
	default:
		return nil, fmt.Errorf("%w: kind %d", ErrUnknownEntry, ent.Kind)
	}
	return e.done(), nil
}

// encodeWrites is encode for an entry of these mutations.
func (e *entryEncoder) encodeWrites(at store.Time, writes []*Write) []byte {
	e.begin(entryOps, at, 1)
	e.buf = appendArray(e.buf, len(writes))
	for _, w := range writes {
		e.buf = appendOp(e.buf, &w.Op, &w.Session)
	}
	return e.done()
}

func (e *entryEncoder) begin(kind entryKind, at store.Time, payload int) {
	e.buf = appendArray(e.buf[:0], 3+payload)
	e.buf = appendUint(e.buf, entryFormat)
	e.buf = appendUint(e.buf, uint64(kind))
	e.buf = appendInt(e.buf, int64(at))
}

func appendOp(b []byte, op *store.Op, session *Session) []byte {
	flags := uint64(op.Condition) << flagConditionShift
	if op.KeepTTL {
		flags |= flagKeepTTL
	}
	if op.ReturnPrevious {
		flags |= flagReturnPrevious
	}
	b = appendArray(b, opFields)
	b = appendUint(b, uint64(op.Kind))
	b = appendUint(b, flags)
	if session.ClientID == ([16]byte{}) {
		b = appendBytes(b, nil)
	} else {
		b = appendBytes(b, session.ClientID[:])
	}
	b = appendUint(b, session.Request)
	b = appendUint(b, session.Lowest)
	b = appendUint(b, uint64(session.Attempt))
	b = appendBytes(b, op.Key)
	b = appendBytes(b, op.Value)
	b = appendBytes(b, op.Old)
	b = appendInt(b, op.Delta)
	b = appendInt(b, op.TTL)
	b = appendUint(b, uint64(op.IfVersion))
	return appendUint(b, uint64(op.ValueBytesMax))
}

// decodeEntry reads one entry. Keys and values are data's own. Anything this build doesn't know is ErrUnknownEntry.
func decodeEntry(data []byte) (*entry, error) {
	ent := new(entry)
	if err := ent.decode(data); err != nil {
		return nil, err
	}
	return ent, nil
}

// decode is decodeEntry into an entry whose list of operations is used again.
func (ent *entry) decode(data []byte) error {
	r := fieldReader{data: data}
	fields := r.array(16)
	format := r.uint()
	if r.err == nil && format != entryFormat {
		return fmt.Errorf("%w: format %d, this build reads up to %d", ErrUnknownEntry, format, entryFormat)
	}
	*ent = entry{Kind: entryKind(r.uintMax(255)), Ops: ent.Ops[:0]}
	ent.Time = store.Time(r.int())
	want := 3
	switch ent.Kind {
	case entryOps:
		want = 4
		n := r.array(entryOpsMax)
		ent.Ops = slices.Grow(ent.Ops, min(n, len(data)/opFields))
		for i := 0; i < n && r.err == nil; i++ {
			ent.Ops = append(ent.Ops, sessionOp{})
			r.op(&ent.Ops[i])
		}
	case entryOwn:
		want = 4
		n := r.array(store.SlotCount)
		for i := 0; i < n && r.err == nil; i++ {
			ent.Ranges = append(ent.Ranges, r.slotRange())
		}
	case entryTick:
	case entryReap:
		want = 6
		ent.Slot = uint16(r.uintMax(store.SlotCount - 1))
		ent.Cutoff = store.Time(r.int())
		ent.Limit = int(r.uintMax(1 << 20))
	default:
		return fmt.Errorf("%w: kind %d", ErrUnknownEntry, ent.Kind)
	}
	if r.err == nil && fields != want {
		r.err = fmt.Errorf("%d fields for kind %d, want %d", fields, ent.Kind, want)
	}
	if r.err == nil && r.left() != 0 {
		r.err = fmt.Errorf("%d bytes after the end", r.left())
	}
	if r.err != nil {
		return fmt.Errorf("%w: %w", ErrUnknownEntry, r.err)
	}
	return nil
}

func (r *fieldReader) op(so *sessionOp) {
	if n := r.array(opFields); r.err == nil && n != opFields {
		r.fail(fmt.Errorf("op of %d fields, want %d", n, opFields))
		return
	}
	op := &so.Op
	op.Kind = store.OpKind(r.uintMax(255))
	flags := r.uintMax(255)
	op.KeepTTL = flags&flagKeepTTL != 0
	op.ReturnPrevious = flags&flagReturnPrevious != 0
	op.Condition = store.Condition(flags >> flagConditionShift)
	client := r.bytes()
	if len(client) != 0 && len(client) != len(so.Session.ClientID) {
		r.fail(fmt.Errorf("client id of %d bytes", len(client)))
	}
	copy(so.Session.ClientID[:], client)
	so.Session.Request = r.uint()
	so.Session.Lowest = r.uint()
	so.Session.Attempt = uint32(r.uintMax(1<<32 - 1))
	op.Key = r.bytes()
	op.Value = r.bytes()
	op.Old = r.bytes()
	op.Delta = r.int()
	op.TTL = r.int()
	op.IfVersion = store.Version(r.uint())
	op.ValueBytesMax = int(r.uintMax(1 << 40))
}

func (r *fieldReader) slotRange() shard.Range {
	if n := r.array(2); r.err == nil && n != 2 {
		r.fail(fmt.Errorf("range of %d fields, want 2", n))
	}
	rng := shard.Range{From: uint16(r.uintMax(store.SlotCount)), To: uint16(r.uintMax(store.SlotCount))}
	if r.err == nil && rng.From >= rng.To {
		r.fail(fmt.Errorf("slots [%d, %d) are empty", rng.From, rng.To))
	}
	return rng
}
