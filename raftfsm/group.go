package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// Member is one replica of a group's first configuration.
type Member struct {
	Node    shard.NodeID
	Replica shard.ReplicaID
	Voter   bool
}

// GroupSpec names a shard's replica on this node.
type GroupSpec struct {
	Shard   shard.ID
	Replica shard.ReplicaID
	// Ranges are the slots the shard is born with. The first leader logs them; afterwards the log decides.
	Ranges []shard.Range
}

// Group is this node's replica of one shard. All methods may be called from any goroutine.
//
// A write waits in the proposer's queue, becomes part of a log entry, and its result comes back once a
// majority holds the entry and this replica applied it. A linearizable read waits for a confirmation of
// leadership that began after it did, and then reads the store.
type Group struct {
	replica replica
	spec    GroupSpec
	// verifying holds a token while the group's replicas are compared: a mark ends the audit of the one before.
	verifying chan struct{}
}

// ReadLevel says what a read promises.
type ReadLevel uint8

const (
	// Linearizable sees every write acknowledged before the read began.
	Linearizable ReadLevel = iota
	// Stale sees some past state of this replica.
	Stale
)

func newGroup(h *Host, spec GroupSpec) *Group {
	g := &Group{spec: spec, verifying: make(chan struct{}, 1)}
	g.replica = replica{host: h, group: spec.Shard, id: spec.Replica,
		log: h.cfg.Logger.With("shard", spec.Shard, "replica", spec.Replica),
		newMachine: func() machine {
			m := newShardMachine(spec.Shard, h.cfg.Clock)
			m.reverses, m.replica, m.auditor = spec.Replica%2 == 1, spec.Replica, h.auditor
			if h.cfg.HistoryBytes > 0 {
				m.keepHistory(h.cfg.HistoryBytes)
			}
			return m
		},
		stamp: func(m machine) store.Time { return m.(*shardMachine).now() },
		ready: g.own,
	}
	return g
}

// Shard returns the group's shard.
func (g *Group) Shard() shard.ID { return g.spec.Shard }

// life returns the current raft instance and its machine; ErrStopped when the group is closed or restarting.
func (g *Group) life() (*life, *shardMachine, error) {
	l := g.replica.current.Load()
	if l == nil {
		return nil, nil, ErrStopped
	}
	return l, l.fsm.machine.(*shardMachine), nil
}

// own gives a newborn shard its slots: a leader that finds none logs those of the spec.
func (g *Group) own(ctx context.Context, l *life) error {
	m := l.fsm.machine.(*shardMachine)
	if len(g.spec.Ranges) == 0 || len(m.store.Load().OwnedSlots()) > 0 {
		return nil
	}
	_, err := l.proposer.entry(ctx, &entry{Kind: entryOwn, Ranges: g.spec.Ranges})
	return err
}

// Write replicates one mutation and returns its result. A lost condition is a result, not an error. Errors:
// ErrNotLeader, ErrNotReady, ErrOverloaded, ErrNoSpace, ErrMemory, ErrDeadline, ErrStopped: not done. ErrOutcomeUnknown:
// it may have been, or yet be, done; sent again in the same session it is done once. ErrSessionUnknown, ErrResultForgotten: this
// sending was not done, an earlier one may have been.
func (g *Group) Write(ctx context.Context, op *store.Op, session Session) (store.Result, error) {
	l, err := g.writable()
	if err != nil {
		return store.Result{}, err
	}
	if why := l.pressed(); why != nil && l.grows(op, &session) {
		return store.Result{}, why
	}
	return l.proposer.write(ctx, &Write{Op: *op, Session: session, life: l})
}

// Submit begins mutations without waiting for them: each comes back to its receiver once, with its result or its error.
// It returns how many were taken, the first ones; the others were refused with the error, and nothing of them was done.
func (g *Group) Submit(writes []*Write) (accepted int, err error) {
	l, err := g.writable()
	if err != nil {
		return 0, err
	}
	for _, w := range writes {
		w.life = l
	}
	if why := l.pressed(); why != nil {
		return l.submitPressed(writes, why)
	}
	return l.proposer.submit(writes)
}

// SessionTime is shard time as this replica has applied it: a session that begins now is born then. 0: there is nothing yet.
func (g *Group) SessionTime() store.Time {
	_, m, err := g.life()
	if err != nil {
		return 0
	}
	return m.pace.Load().last
}

// submitPressed is Submit while growth is refused: what is not taken is given back, so that all count as taken.
func (l *life) submitPressed(writes []*Write, why *MemoryError) (accepted int, err error) {
	others := l.refuseGrowth(writes, why)
	taken, err := l.proposer.submit(others)
	if left := others[taken:]; len(left) > 0 {
		for _, w := range left {
			w.Err = err
		}
		giveBack(left)
	}
	return len(writes), nil
}

// writable returns the life of a replica that leads, is ready, and whose disk has room.
func (g *Group) writable() (*life, error) {
	l, _, err := g.life()
	if err != nil {
		return nil, err
	}
	if _, err := l.leading(); err != nil {
		return nil, err
	}
	if err := l.stores.Log.Full(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return l, nil
}

// Read is a store to read from, and the shard time by which the reader should judge what has expired.
type Read struct {
	Store *store.Store
	// Applied is the log index the store had reached, at least.
	Applied uint64

	ctx     context.Context
	life    *life
	machine *shardMachine
	level   ReadLevel
}

// Read returns the store once it may be read at the level. Errors as those of Write, and ErrNotConfirmed; a
// read changes nothing, so all of them mean that it may be tried again.
func (g *Group) Read(ctx context.Context, level ReadLevel) (*Read, error) {
	l, m, err := g.life()
	if err != nil {
		return nil, err
	}
	if level == Linearizable {
		if err := l.readIndex(ctx); err != nil {
			return nil, err
		}
	}
	return &Read{Store: m.store.Load(), Applied: l.fsm.applied.load(), ctx: ctx, life: l, machine: m, level: level}, nil
}

// Get appends the value of a key to dst. ok is false where the key is missing or expired. Errors:
// shard.ErrStaleEpoch where the shard does not own the key's slot, ErrNotConfirmed.
func (r *Read) Get(key, dst []byte) (value []byte, m store.Meta, ok bool, err error) {
	slot := uint16(shard.SlotOf(key))
	value, m, ok = r.Store.Get(slot, key, dst)
	if ok && r.expiredUnlogged(m) {
		if err := r.logExpiry(); err != nil {
			return dst, store.Meta{}, false, err
		}
		value, m, ok = r.Store.Get(slot, key, dst)
	}
	return value, m, ok, r.checkOwned(slot, ok)
}

// Peek is Get without the value.
func (r *Read) Peek(key []byte) (m store.Meta, ok bool, err error) {
	slot := uint16(shard.SlotOf(key))
	m, ok = r.Store.Peek(slot, key)
	if ok && r.expiredUnlogged(m) {
		if err := r.logExpiry(); err != nil {
			return store.Meta{}, false, err
		}
		m, ok = r.Store.Peek(slot, key)
	}
	return m, ok, r.checkOwned(slot, ok)
}

// expiredUnlogged holds for a key that has expired by this leader's clock, but not yet by the log's time.
func (r *Read) expiredUnlogged(m store.Meta) bool {
	return r.level == Linearizable && m.ExpiresAt != 0 && r.machine.now() >= m.ExpiresAt
}

// logExpiry commits a tick, so that what is reported as expired after it stays so under every later leader. The proposer
// stamps it, at the moment it is proposed: a time from here could be an earlier term's by then.
func (r *Read) logExpiry() error {
	if _, err := r.life.proposer.entry(r.ctx, &entry{Kind: entryTick}); err != nil {
		return fmt.Errorf("%w: the key's expiry could not be committed: %w", ErrNotConfirmed, err)
	}
	return nil
}

// checkOwned tells a missing key from one whose slot is another shard's.
func (r *Read) checkOwned(slot uint16, found bool) error {
	if found || r.Store.Owns(slot) {
		return nil
	}
	return fmt.Errorf("%w: slot %d is not shard %d's", shard.ErrStaleEpoch, slot, r.life.replica.group)
}

// TTL returns what is left of a key's life by this node's view of shard time, at least 1 ms; 0: it has no end.
func (r *Read) TTL(m store.Meta) time.Duration {
	if m.ExpiresAt == 0 {
		return 0
	}
	const most = store.Time(math.MaxInt64 / int64(time.Millisecond))
	return time.Duration(min(max(m.ExpiresAt-r.machine.now(), 1), most)) * time.Millisecond
}

// TransferLeadership hands the lead to the group's voter on node, which raft brings up to date first. It
// returns once raft has given the lead away or gave up; entries are refused meanwhile.
func (g *Group) TransferLeadership(node shard.NodeID) error {
	l, _, err := g.life()
	if err != nil {
		return err
	}
	for _, v := range l.currentVoters() {
		if v.node == node {
			return l.transferLeadership(v)
		}
	}
	return fmt.Errorf("%w: %s holds no voter of shard %d", ErrNotLeader, node, g.spec.Shard)
}

// handOver gives the lead to any other voter that has caught up, if this replica leads. A group with one voter keeps it.
func (r *replica) handOver() error {
	l := r.current.Load()
	if l == nil || !l.isLeader() {
		return nil
	}
	var failed error
	for _, v := range l.currentVoters() {
		if v.node == r.host.cfg.Node {
			continue
		}
		err := l.transferLeadership(v)
		if err == nil || !l.isLeader() {
			return nil
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// IsLeader reports whether this replica leads and is ready to serve.
func (g *Group) IsLeader() bool {
	_, err := g.replica.leading()
	return err == nil
}

// Leader returns the node that this replica believes to lead; empty where none is known.
func (g *Group) Leader() shard.NodeID {
	l := g.replica.current.Load()
	if l == nil {
		return ""
	}
	return l.leaderNode()
}

// Status tells how a replica stands.
type Status struct {
	Shard    shard.ID
	Replica  shard.ReplicaID
	Role     string // "leader", "follower", "candidate", "shutdown"
	Leader   shard.NodeID
	Term     uint64
	Commit   uint64
	Applied  uint64
	Last     uint64 // of the log
	Snapshot uint64 // index of the newest; 0: none
	Voter    bool
	// Joining: it was started empty, and has not settled: see Host.StartJoiner.
	Joining bool
	// Lost: it lost data that it may have vouched for, and doesn't run. Set by whoever keeps account of that.
	Lost     bool
	Restarts uint32
	// What the store holds; zero for the meta group.
	Keys, Bytes, Expiring uint64
	Checksum              uint64
	Version               store.Version
	// Reads of keys since the replica began, estimated from samples.
	Reads uint64
	// Alarm: see Group.Alarm.
	Alarm string
}

// Status returns how this replica stands.
func (g *Group) Status() Status {
	s := g.replica.status()
	if _, m, err := g.life(); err == nil {
		st := m.store.Load()
		stats := st.Stats()
		s.Keys, s.Bytes, s.Expiring = uint64(stats.Keys), uint64(stats.Bytes), uint64(stats.Expiring)
		s.Checksum, s.Version, s.Alarm, s.Reads = stats.Checksum, st.Version(), g.Alarm(), st.Reads()
	}
	return s
}

func (r *replica) status() Status {
	s := Status{Shard: r.group, Replica: r.id, Role: "shutdown", Joining: r.joining.Load(), Restarts: r.restarts.Load()}
	l := r.current.Load()
	if l == nil {
		return s
	}
	s.Role = roleNames[l.raft.State()]
	s.Leader = l.leaderNode()
	s.Term, s.Commit, s.Applied, s.Last = l.raft.CurrentTerm(), l.raft.CommitIndex(), l.fsm.applied.load(), l.raft.LastIndex()
	for _, v := range l.currentVoters() {
		s.Voter = s.Voter || v.replica == r.id
	}
	s.Snapshot = l.snapshotIndex()
	return s
}

// snapshotIndex is the index of the newest snapshot; 0: there is none.
func (l *life) snapshotIndex() uint64 {
	snaps, err := l.stores.Snapshots.List()
	if err != nil || len(snaps) == 0 {
		return 0
	}
	return snaps[0].Index
}

// sameTerm answers another node's question whether this replica is still in the term: the heart of a
// linearizable read. raft raises its term, durably, before it grants a vote in a newer one.
func (r *replica) sameTerm(item transport.ConfirmItem) bool {
	l := r.current.Load()
	return l != nil && r.id == item.Replica && l.raft.CurrentTerm() == item.Term
}
