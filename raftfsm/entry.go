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
//	format  1, or 2 for ops with sessions
//	kind    entryOps | entryOwn | entryTick | entryReap
//	time    shard time in milliseconds, stamped by the leader, never below an earlier entry's
//
//	ops     [op, op, …]         op = [kind, flags, client, request, lowest, attempt, key, value, old, delta, ttl,
//	                             version, value bytes at most]
//	own     [[from, to], …]     the slots a shard is born with, [from, to)
//	tick    nothing             moves shard time on
//	reap    slot, cutoff, limit removes expired keys; of limit 0 it is a mark for an audit of the slots [slot, cutoff): audit.go
//
// In format 2, which nobody writes below format level 2:
//
//	ops     [session, session, …], [op, op, …]
//	                            session = [client, age, lowest], age: how long before the entry's time it was born
//	                            op = [kind, flags, session, request, attempt, key, value, old, delta, ttl, version,
//	                             value bytes at most], session: its number in the list, from 1; 0: none
//
// A busy client has many ops in an entry: its session stands there once. An entry of a higher format or another kind
// stops the replica (design.md "Formats live long").
const (
	entryFormat = 2
	// entryPlain is the format of all entries but ops with sessions.
	entryPlain = 1
)

type entryKind uint8

const (
	entryOps  entryKind = 1
	entryOwn  entryKind = 2
	entryTick entryKind = 3
	entryReap entryKind = 4
)

// Session identifies a write to those who must recognise its retry. A zero ClientID or Born means no session: the write is
// applied each time that it comes.
type Session struct {
	ClientID [16]byte
	// Born is the shard's time when the client began the session, as a replica told it (Group.SessionTime).
	Born store.Time
	// Request counts a session's writes from 1 and is the same on each attempt.
	Request uint64
	// Lowest is the lowest request the client still waits for, at most Request: records below it may be dropped.
	Lowest uint64
	// Attempt is 1 for the first sending.
	Attempt uint32
}

func (s *Session) none() bool { return s.Born == 0 || s.ClientID == [16]byte{} }

// sessionOp is one mutation with the identity of its sender.
type sessionOp struct {
	Op      store.Op
	Session Session
	// row is the session's place in the entry; noRow: it has none.
	row int32
}

const noRow = -1

// sessionRow is a session of an entry. lowest is the highest that one of its ops says.
type sessionRow struct {
	sessionName
	lowest uint64
}

// entry is a decoded log entry of a shard. Which fields mean anything depends on Kind.
type entry struct {
	Kind     entryKind
	Time     store.Time
	Sessions []sessionRow
	Ops      []sessionOp
	Ranges   []shard.Range
	Slot     uint16
	Cutoff   store.Time
	Limit    int
}

const (
	opFields = 13
	// Of format 2.
	onceFields       = 12
	sessionRowFields = 3

	flagKeepTTL        = 1 << 0
	flagReturnPrevious = 1 << 1
	flagConditionShift = 4 // the condition's number sits in bits 4..7

	// opOverhead bounds what an encoded op takes beyond key, value and old, with its session.
	opOverhead = 112
	// entryOpsMax bounds what decoding allocates for an entry's op list before it has read them.
	entryOpsMax = 1 << 16
)

// encodedSize is an upper bound of an op's bytes inside an entry.
func encodedSize(op *store.Op) int { return opOverhead + len(op.Key) + len(op.Value) + len(op.Old) }

// entryEncoder builds entries in a buffer of its own. One goroutine's.
type entryEncoder struct {
	buf []byte
	// sessions of the entry being built, and for each of its ops which it is of.
	sessions []sessionRow
	rows     []int32
	// rowOf finds sessions where there are more than a few.
	rowOf map[sessionName]int32
}

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
		e.beginOps()
		for i := range ent.Ops {
			e.note(&ent.Ops[i].Session)
		}
		e.headOps(ent.Time, len(ent.Ops))
		for i := range ent.Ops {
			e.op(i, &ent.Ops[i].Op, &ent.Ops[i].Session)
		}
	case entryOwn:
		e.begin(entryPlain, ent.Kind, ent.Time, 1)
		e.buf = appendArray(e.buf, len(ent.Ranges))
		for _, r := range ent.Ranges {
			e.buf = appendArray(e.buf, 2)
			e.buf = appendUint(e.buf, uint64(r.From))
			e.buf = appendUint(e.buf, uint64(r.To))
		}
	case entryTick:
		e.begin(entryPlain, ent.Kind, ent.Time, 0)
	case entryReap:
		e.begin(entryPlain, ent.Kind, ent.Time, 3)
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
	e.beginOps()
	for _, w := range writes {
		e.note(&w.Session)
	}
	e.headOps(at, len(writes))
	for i, w := range writes {
		e.op(i, &w.Op, &w.Session)
	}
	return e.done()
}

func (e *entryEncoder) begin(format uint64, kind entryKind, at store.Time, payload int) {
	e.buf = appendArray(e.buf[:0], 3+payload)
	e.buf = appendUint(e.buf, format)
	e.buf = appendUint(e.buf, uint64(kind))
	e.buf = appendInt(e.buf, int64(at))
}

// An entry of ops is built in three steps: note each op's session, headOps, op for each.

func (e *entryEncoder) beginOps() {
	e.sessions, e.rows = e.sessions[:0], e.rows[:0]
	clear(e.rowOf)
}

// sessionsFew is how many sessions are looked through one by one.
const sessionsFew = 8

func (e *entryEncoder) note(s *Session) {
	row := int32(noRow)
	if !s.none() {
		row = e.row(sessionName{s.ClientID, s.Born})
		e.sessions[row].lowest = max(e.sessions[row].lowest, min(s.Lowest, s.Request))
	}
	e.rows = append(e.rows, row)
}

// row returns the place of a session, which is the last op's, most of the time.
func (e *entryEncoder) row(name sessionName) int32 {
	if n := len(e.rows); n > 0 && e.rows[n-1] != noRow && e.sessions[e.rows[n-1]].sessionName == name {
		return e.rows[n-1]
	}
	if len(e.sessions) <= sessionsFew {
		for i := range e.sessions {
			if e.sessions[i].sessionName == name {
				return int32(i)
			}
		}
	} else if row, ok := e.rowOf[name]; ok {
		return row
	}
	row := int32(len(e.sessions))
	e.sessions = append(e.sessions, sessionRow{sessionName: name})
	switch {
	case row < sessionsFew:
	case row == sessionsFew:
		if e.rowOf == nil {
			e.rowOf = make(map[sessionName]int32)
		}
		for i := range e.sessions {
			e.rowOf[e.sessions[i].sessionName] = int32(i)
		}
	default:
		e.rowOf[name] = row
	}
	return row
}

func (e *entryEncoder) headOps(at store.Time, ops int) {
	if len(e.sessions) == 0 {
		e.begin(entryPlain, entryOps, at, 1)
	} else {
		e.begin(entryFormat, entryOps, at, 2)
		e.buf = appendArray(e.buf, len(e.sessions))
		for i := range e.sessions {
			s := &e.sessions[i]
			e.buf = appendArray(e.buf, sessionRowFields)
			e.buf = appendBytes(e.buf, s.client[:])
			e.buf = appendInt(e.buf, int64(at-s.born))
			e.buf = appendUint(e.buf, s.lowest)
		}
	}
	e.buf = appendArray(e.buf, ops)
}

func (e *entryEncoder) op(i int, op *store.Op, session *Session) {
	if len(e.sessions) == 0 {
		e.buf = appendOp(e.buf, op, session)
	} else {
		e.buf = appendOnceOp(e.buf, op, session, e.rows[i])
	}
}

// appendOnceOp appends an op of format 2.
func appendOnceOp(b []byte, op *store.Op, session *Session, row int32) []byte {
	b = appendArray(b, onceFields)
	b = appendUint(b, uint64(op.Kind))
	b = appendUint(b, opFlags(op))
	b = appendUint(b, uint64(row+1))
	b = appendUint(b, session.Request)
	b = appendUint(b, uint64(session.Attempt))
	return appendOpRest(b, op)
}

func opFlags(op *store.Op) uint64 {
	flags := uint64(op.Condition) << flagConditionShift
	if op.KeepTTL {
		flags |= flagKeepTTL
	}
	if op.ReturnPrevious {
		flags |= flagReturnPrevious
	}
	return flags
}

// appendOp appends an op of format 1.
func appendOp(b []byte, op *store.Op, session *Session) []byte {
	b = appendArray(b, opFields)
	b = appendUint(b, uint64(op.Kind))
	b = appendUint(b, opFlags(op))
	if session.ClientID == ([16]byte{}) {
		b = appendBytes(b, nil)
	} else {
		b = appendBytes(b, session.ClientID[:])
	}
	b = appendUint(b, session.Request)
	b = appendUint(b, session.Lowest)
	b = appendUint(b, uint64(session.Attempt))
	return appendOpRest(b, op)
}

// appendOpRest appends what both formats end with.
func appendOpRest(b []byte, op *store.Op) []byte {
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

// decode is decodeEntry into an entry whose lists are used again.
func (ent *entry) decode(data []byte) error {
	r := fieldReader{data: data}
	fields := r.array(16)
	format := r.uint()
	*ent = entry{Kind: entryKind(r.uintMax(255)), Ops: ent.Ops[:0], Sessions: ent.Sessions[:0]}
	if r.err == nil && format != entryPlain && (format != entryFormat || ent.Kind != entryOps) {
		return fmt.Errorf("%w: format %d of kind %d, this build reads up to %d", ErrUnknownEntry, format, ent.Kind, entryFormat)
	}
	ent.Time = store.Time(r.int())
	want := 3
	switch ent.Kind {
	case entryOps:
		want = 4
		if format == entryFormat {
			want = 5
			r.sessions(ent)
		}
		n := r.array(entryOpsMax)
		ent.Ops = slices.Grow(ent.Ops, min(n, len(data)/onceFields))
		for i := 0; i < n && r.err == nil; i++ {
			ent.Ops = append(ent.Ops, sessionOp{row: noRow})
			if format == entryFormat {
				r.onceOp(ent, &ent.Ops[i])
			} else {
				r.op(&ent.Ops[i])
			}
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

func (r *fieldReader) sessions(ent *entry) {
	n := r.array(entryOpsMax)
	for i := 0; i < n && r.err == nil; i++ {
		if n := r.array(sessionRowFields); r.err == nil && n != sessionRowFields {
			r.fail(fmt.Errorf("session of %d fields, want %d", n, sessionRowFields))
		}
		var row sessionRow
		client := r.bytes()
		if r.err == nil && len(client) != len(row.client) {
			r.fail(fmt.Errorf("client id of %d bytes", len(client)))
		}
		copy(row.client[:], client)
		row.born = ent.Time - store.Time(r.int())
		row.lowest = r.uint()
		ent.Sessions = append(ent.Sessions, row)
	}
}

// onceOp reads an op of format 2.
func (r *fieldReader) onceOp(ent *entry, so *sessionOp) {
	if n := r.array(onceFields); r.err == nil && n != onceFields {
		r.fail(fmt.Errorf("op of %d fields, want %d", n, onceFields))
		return
	}
	so.Op.Kind = store.OpKind(r.uintMax(255))
	r.opFlags(&so.Op)
	so.row = int32(r.uintMax(uint64(len(ent.Sessions)))) - 1
	so.Session.Request = r.uint()
	so.Session.Attempt = uint32(r.uintMax(1<<32 - 1))
	r.opRest(&so.Op)
	if so.row != noRow {
		row := &ent.Sessions[so.row]
		so.Session.ClientID, so.Session.Born, so.Session.Lowest = row.client, row.born, row.lowest
	}
}

// op reads an op of format 1.
func (r *fieldReader) op(so *sessionOp) {
	if n := r.array(opFields); r.err == nil && n != opFields {
		r.fail(fmt.Errorf("op of %d fields, want %d", n, opFields))
		return
	}
	so.Op.Kind = store.OpKind(r.uintMax(255))
	r.opFlags(&so.Op)
	client := r.bytes()
	if len(client) != 0 && len(client) != len(so.Session.ClientID) {
		r.fail(fmt.Errorf("client id of %d bytes", len(client)))
	}
	copy(so.Session.ClientID[:], client)
	so.Session.Request = r.uint()
	so.Session.Lowest = r.uint()
	so.Session.Attempt = uint32(r.uintMax(1<<32 - 1))
	r.opRest(&so.Op)
}

func (r *fieldReader) opFlags(op *store.Op) {
	flags := r.uintMax(255)
	op.KeepTTL = flags&flagKeepTTL != 0
	op.ReturnPrevious = flags&flagReturnPrevious != 0
	op.Condition = store.Condition(flags >> flagConditionShift)
}

func (r *fieldReader) opRest(op *store.Op) {
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
