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

// shardMachine is the replicated state of one shard: its store, driven by log entries.
//
// apply, freeze and restore run on raft's FSM goroutine. Readers take the store from an atomic pointer, since
// a restore builds another store aside and swaps it in.
type shardMachine struct {
	shard shard.ID
	clock Clock
	// reverses: see knownbad.ApplyOrder.
	reverses bool
	store    atomic.Pointer[store.Store]
	// pace relates shard time to this node's monotonic clock; leaders stamp entries by it.
	pace atomic.Pointer[pace]
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
	m := &shardMachine{shard: id, clock: clock}
	m.swap(store.New(formatLimits))
	return m
}

func (m *shardMachine) swap(s *store.Store) {
	m.store.Store(s)
	m.keepPace(s.Time())
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
	*ent = entry{Ops: ent.Ops[:0]}
	entries.Put(ent)
}

// opResults is the response to an entry of ops: one result each, in order.
type opResults []store.Result

// apply implements machine. Nothing here depends on a clock, a random source or map order, except keepPace,
// which only leaders' later stamps depend on.
func (m *shardMachine) apply(_ uint64, data []byte) (any, error) {
	ent := entries.Get().(*entry)
	defer ent.release()
	if err := ent.decode(data); err != nil {
		return nil, err
	}
	s := m.store.Load()
	s.SetTime(ent.Time)
	m.keepPace(s.Time())
	switch ent.Kind {
	case entryOps:
		if knownbad.ApplyOrder && m.reverses {
			slices.Reverse(ent.Ops)
		}
		results := make(opResults, len(ent.Ops))
		for i := range ent.Ops {
			op := &ent.Ops[i].Op
			if err := op.Validate(); errors.Is(err, store.ErrOpUnknown) {
				return nil, fmt.Errorf("%w: %w", ErrUnknownEntry, err)
			}
			results[i] = s.Apply(uint16(shard.SlotOf(op.Key)), op)
		}
		if knownbad.ApplyOrder && m.reverses {
			slices.Reverse(results)
		}
		return results, nil
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
		return s.Reap(ent.Slot, ent.Cutoff, ent.Limit), nil
	}
	return nil, fmt.Errorf("%w: kind %d", ErrUnknownEntry, ent.Kind)
}
