package raftfsm

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/knownbad"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// shardMachine is the replicated state of one shard: its store and its sessions, driven by log entries.
//
// apply, freeze and restore run on raft's FSM goroutine. Readers take the store from an atomic pointer, since
// a restore builds another store aside and swaps it in.
type shardMachine struct {
	shard shard.ID
	clock Clock
	// reverses: see knownbad.ApplyOrder; replica is for knownbad.MemoryBit.
	reverses bool
	replica  shard.ReplicaID
	store    atomic.Pointer[store.Store]
	// sessions are raft's FSM goroutine's alone.
	sessions *sessionTable
	// found are the sessions of the entry that is being applied, by their rows in it.
	found []foundSession
	// history is the store's latest changes, for those who watch it; nil: none are kept. It outlives restores.
	history *store.History
	// pace relates shard time to this node's monotonic clock; leaders stamp entries by it.
	pace atomic.Pointer[pace]
	// capture is the latest audit; auditor counts it.
	capture atomic.Pointer[capture]
	auditor *auditor
}

// foundSession is the session of an entry's row, as found in the table.
type foundSession struct {
	session *session // nil: none, or not looked for yet
	refused refusal
	// evictions is the table's count when it was found: after another one it may be gone.
	evictions uint64
	looked    bool
}

// pace is the last entry's time and when, by this node's monotonic clock, it was applied.
type pace struct {
	last store.Time
	at   time.Duration
}

// formatLimits are what a replica applies whatever its node's configuration says: replicas with different
// limits would come to differ. The limits that users set are checked before an op is proposed, and for what
// only applying can tell (the length after an append) the leader stamps its limit into the op.
var formatLimits = store.MaxLimits()

func newShardMachine(id shard.ID, clock Clock) *shardMachine {
	m := &shardMachine{shard: id, clock: clock, auditor: newAuditor(VerifyConfig{})}
	m.swap(store.New(formatLimits), newSessionTable(formatBounds))
	return m
}

func (m *shardMachine) swap(s *store.Store, sessions *sessionTable) {
	if m.history != nil {
		s.KeepHistory(m.history)
	}
	m.store.Store(s)
	m.sessions = sessions
	m.keepPace(s.Time())
}

// keepHistory begins a history of so many bytes. Before anything is applied.
func (m *shardMachine) keepHistory(bytes int) {
	m.history = store.NewHistory(bytes)
	m.swap(m.store.Load(), m.sessions)
}

func (m *shardMachine) keepPace(t store.Time) {
	m.pace.Store(&pace{last: t, at: m.clock.Monotonic()})
}

// now is shard time as this node would stamp it: the last applied entry's time moved on by the monotonic
// clock. Before a shard's first entry it is the wall clock, read that once (design.md "Time").
func (m *shardMachine) now() store.Time {
	p := m.pace.Load()
	if p.last == 0 {
		return store.Time(m.clock.WallMilli())
	}
	return p.last + store.Time((m.clock.Monotonic()-p.at)/time.Millisecond)
}

// entries are used again by all machines, for the sake of their lists of operations.
var entries = sync.Pool{New: func() any { return new(entry) }}

// release gives an entry back. It lets go of the log's bytes, which keys and values are.
func (ent *entry) release() {
	clear(ent.Ops)
	*ent = entry{Ops: ent.Ops[:0], Sessions: ent.Sessions[:0]}
	entries.Put(ent)
}

// opResults is the response to an entry of ops.
type opResults struct {
	// results has one for each, in order.
	results []store.Result
	// refused says which of them were not applied, and have no result; nil: all were.
	refused []refusal
	// now is shard time at the entry.
	now store.Time
}

func (r *opResults) refuse(i int, why refusal) {
	if r.refused == nil {
		r.refused = make([]refusal, len(r.results))
	}
	r.refused[i] = why
}

// err is why an op was not applied; nil: it was.
func (r *opResults) err(i int, attempt uint32) error {
	if r.refused == nil {
		return nil
	}
	return r.refused[i].err(r.now, attempt)
}

// apply implements machine. Nothing here depends on a clock, a random source or map order, except keepPace,
// which only leaders' later stamps depend on.
func (m *shardMachine) apply(index uint64, data []byte) (any, error) {
	ent := entries.Get().(*entry)
	defer ent.release()
	if err := ent.decode(data); err != nil {
		return nil, err
	}
	s := m.store.Load()
	s.SetTime(ent.Time)
	m.keepPace(s.Time())
	response, err := m.applyEntry(s, index, ent)
	if m.history != nil {
		m.history.Publish()
	}
	m.sessions.age(s.Time())
	m.sessions.trim(s.Time())
	return response, err
}

func (m *shardMachine) applyEntry(s *store.Store, index uint64, ent *entry) (any, error) {
	switch ent.Kind {
	case entryOps:
		return m.applyOps(s, ent)
	case entryOwn:
		// Every leader that finds its shard without slots proposes this; only the first counts.
		if len(s.OwnedSlots()) == 0 {
			for _, r := range ent.Ranges {
				for slot := r.From; slot < r.To; slot++ {
					s.Own(slot)
				}
			}
		}
		return nil, nil
	case entryTick:
		return nil, nil
	case entryReap:
		if ent.isMark() {
			m.mark(index, ent.Slot, ent.Cutoff)
			return index, nil
		}
		return m.reap(s, ent), nil
	}
	return nil, fmt.Errorf("%w: kind %d", ErrUnknownEntry, ent.Kind)
}

func (m *shardMachine) applyOps(s *store.Store, ent *entry) (any, error) {
	if knownbad.ApplyOrder && m.reverses {
		slices.Reverse(ent.Ops)
	}
	m.found = append(m.found[:0], make([]foundSession, len(ent.Sessions))...)
	r := opResults{results: make([]store.Result, len(ent.Ops)), now: s.Time()}
	for i := range ent.Ops {
		op := &ent.Ops[i]
		if err := op.Op.Validate(); errors.Is(err, store.ErrOpUnknown) {
			return nil, fmt.Errorf("%w: %w", ErrUnknownEntry, err)
		}
		slot := uint16(shard.SlotOf(op.Op.Key))
		if op.row == noRow || knownbad.RetryTable {
			r.results[i] = s.Apply(slot, &op.Op)
			m.rot(s, op.Op.Key)
			continue
		}
		if why := m.applyOnce(s, ent, op, slot, &r.results[i]); why != refusedNot {
			r.refuse(i, why)
		}
	}
	if knownbad.ApplyOrder && m.reverses {
		slices.Reverse(r.results)
	}
	return r, nil
}

// applyOnce applies a write of a session, unless that was done before.
func (m *shardMachine) applyOnce(s *store.Store, ent *entry, op *sessionOp, slot uint16, result *store.Result) refusal {
	t := m.sessions
	f := &m.found[op.row]
	row := &ent.Sessions[op.row]
	switch {
	case !f.looked:
		f.session, f.refused = t.use(row.sessionName, row.lowest, s.Time())
		f.evictions, f.looked = t.evictions, true
	case f.session != nil && f.evictions != t.evictions && !t.has(f.session):
		f.session, f.refused = nil, refusedUnknown
	}
	if f.session == nil {
		return f.refused
	}
	known, done, at, why := t.lookUp(f.session, op.Session.Request)
	switch {
	case why != refusedNot:
		return why
	case done:
		*result = known
		return refusedNot
	}
	*result = s.Apply(slot, &op.Op)
	m.rot(s, op.Op.Key)
	// A slot that is another shard's was not asked: the write goes on to that one.
	if result.Status != store.StatusNotOwned {
		t.keep(f.session, at, op.Session.Request, slot, result)
		f.evictions = t.evictions // it may have made others go, not this one
	}
	return refusedNot
}
