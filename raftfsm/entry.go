package raftfsm

import (
	"bytes"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"

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
type entryEncoder struct {
	buf bytes.Buffer
	enc *msgpack.Encoder
}

func newEntryEncoder() *entryEncoder {
	e := &entryEncoder{}
	e.enc = msgpack.NewEncoder(&e.buf)
	e.enc.UseCompactInts(true)
	return e
}

// encode returns the entry's bytes; they are the caller's, since raft keeps them in its log.
func (e *entryEncoder) encode(ent *entry) ([]byte, error) {
	e.buf.Reset()
	w := fieldWriter{enc: e.enc}
	switch ent.Kind {
	case entryOps:
		w.header(ent, 1)
		w.array(len(ent.Ops))
		for i := range ent.Ops {
			w.op(&ent.Ops[i])
		}
	case entryOwn:
		w.header(ent, 1)
		w.array(len(ent.Ranges))
		for _, r := range ent.Ranges {
			w.array(2)
			w.uint(uint64(r.From))
			w.uint(uint64(r.To))
		}
	case entryTick:
		w.header(ent, 0)
	case entryReap:
		w.header(ent, 3)
		w.uint(uint64(ent.Slot))
		w.int(int64(ent.Cutoff))
		w.int(int64(ent.Limit))
	default:
		return nil, fmt.Errorf("%w: kind %d", ErrUnknownEntry, ent.Kind)
	}
	return bytes.Clone(e.buf.Bytes()), w.err
}

// fieldWriter writes msgpack fields and keeps the first error, which a bytes.Buffer never gives in practice.
type fieldWriter struct {
	enc *msgpack.Encoder
	err error
}

func (w *fieldWriter) note(err error) {
	if w.err == nil {
		w.err = err
	}
}
func (w *fieldWriter) array(n int)    { w.note(w.enc.EncodeArrayLen(n)) }
func (w *fieldWriter) uint(v uint64)  { w.note(w.enc.EncodeUint(v)) }
func (w *fieldWriter) int(v int64)    { w.note(w.enc.EncodeInt(v)) }
func (w *fieldWriter) bytes(b []byte) { w.note(w.enc.EncodeBytes(b)) }

func (w *fieldWriter) header(ent *entry, payload int) {
	w.array(3 + payload)
	w.uint(entryFormat)
	w.uint(uint64(ent.Kind))
	w.int(int64(ent.Time))
}

func (w *fieldWriter) op(so *sessionOp) {
	op := &so.Op
	flags := uint64(op.Condition) << flagConditionShift
	if op.KeepTTL {
		flags |= flagKeepTTL
	}
	if op.ReturnPrevious {
		flags |= flagReturnPrevious
	}
	w.array(opFields)
	w.uint(uint64(op.Kind))
	w.uint(flags)
	if so.Session.ClientID == ([16]byte{}) {
		w.bytes(nil)
	} else {
		w.bytes(so.Session.ClientID[:])
	}
	w.uint(so.Session.Request)
	w.uint(so.Session.Lowest)
	w.uint(uint64(so.Session.Attempt))
	w.bytes(op.Key)
	w.bytes(op.Value)
	w.bytes(op.Old)
	w.int(op.Delta)
	w.int(op.TTL)
	w.uint(uint64(op.IfVersion))
	w.uint(uint64(op.ValueBytesMax))
}

// decodeEntry reads one entry. Anything this build doesn't know is ErrUnknownEntry.
func decodeEntry(data []byte) (*entry, error) {
	r := newFieldReader(data)
	fields := r.array(16)
	format := r.uint()
	if r.err == nil && format != entryFormat {
		return nil, fmt.Errorf("%w: format %d, this build reads up to %d", ErrUnknownEntry, format, entryFormat)
	}
	ent := &entry{Kind: entryKind(r.uint())}
	ent.Time = store.Time(r.int())
	want := 3
	switch ent.Kind {
	case entryOps:
		want = 4
		n := r.array(entryOpsMax)
		ent.Ops = make([]sessionOp, 0, min(n, len(data)/opFields))
		for i := 0; i < n && r.err == nil; i++ {
			ent.Ops = append(ent.Ops, r.op())
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
		return nil, fmt.Errorf("%w: kind %d", ErrUnknownEntry, ent.Kind)
	}
	if r.err == nil && fields != want {
		r.err = fmt.Errorf("%d fields for kind %d, want %d", fields, ent.Kind, want)
	}
	if r.err == nil && r.left() != 0 {
		r.err = fmt.Errorf("%d bytes after the end", r.left())
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknownEntry, r.err)
	}
	return ent, nil
}

// fieldReader reads msgpack fields and keeps the first error; after it every field reads as zero.
type fieldReader struct {
	src *bytes.Reader
	dec *msgpack.Decoder
	err error
}

func newFieldReader(data []byte) *fieldReader {
	src := bytes.NewReader(data)
	return &fieldReader{src: src, dec: msgpack.NewDecoder(src)}
}

func (r *fieldReader) left() int { return r.src.Len() }

func (r *fieldReader) array(most int) int {
	if r.err != nil {
		return 0
	}
	n, err := r.dec.DecodeArrayLen()
	switch {
	case err != nil:
		r.err = err
	case n < 0 || n > most:
		r.err = fmt.Errorf("array of %d, at most %d are allowed", n, most)
	default:
		return n
	}
	return 0
}

func (r *fieldReader) uint() uint64 {
	if r.err != nil {
		return 0
	}
	var v uint64
	v, r.err = r.dec.DecodeUint64()
	return v
}

func (r *fieldReader) uintMax(most uint64) uint64 {
	v := r.uint()
	if r.err == nil && v > most {
		r.err = fmt.Errorf("%d where at most %d is allowed", v, most)
		return 0
	}
	return v
}

func (r *fieldReader) int() int64 {
	if r.err != nil {
		return 0
	}
	var v int64
	v, r.err = r.dec.DecodeInt64()
	return v
}

// bytes returns a field's bytes. A claimed length over what is left is refused before anything is allocated.
func (r *fieldReader) bytes() []byte {
	if r.err != nil {
		return nil
	}
	n, err := r.dec.DecodeBytesLen()
	if err != nil {
		r.err = err
		return nil
	}
	if n <= 0 {
		return nil
	}
	if n > r.left() {
		r.err = fmt.Errorf("%d bytes claimed, %d left", n, r.left())
		return nil
	}
	b := make([]byte, n)
	r.err = r.dec.ReadFull(b)
	return b
}

func (r *fieldReader) op() sessionOp {
	var so sessionOp
	if n := r.array(opFields); r.err == nil && n != opFields {
		r.err = fmt.Errorf("op of %d fields, want %d", n, opFields)
		return so
	}
	op := &so.Op
	op.Kind = store.OpKind(r.uintMax(255))
	flags := r.uintMax(255)
	op.KeepTTL = flags&flagKeepTTL != 0
	op.ReturnPrevious = flags&flagReturnPrevious != 0
	op.Condition = store.Condition(flags >> flagConditionShift)
	client := r.bytes()
	if len(client) != 0 && len(client) != len(so.Session.ClientID) && r.err == nil {
		r.err = fmt.Errorf("client id of %d bytes", len(client))
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
	return so
}

func (r *fieldReader) slotRange() shard.Range {
	if n := r.array(2); r.err == nil && n != 2 {
		r.err = fmt.Errorf("range of %d fields, want 2", n)
	}
	rng := shard.Range{From: uint16(r.uintMax(store.SlotCount)), To: uint16(r.uintMax(store.SlotCount))}
	if r.err == nil && rng.From >= rng.To {
		r.err = fmt.Errorf("slots [%d, %d) are empty", rng.From, rng.To)
	}
	return rng
}
