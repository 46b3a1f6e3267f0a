package raftfsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"golang.org/x/time/rate"

	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

var roleNames = map[raft.RaftState]string{
	raft.Follower: "follower", raft.Candidate: "candidate", raft.Leader: "leader", raft.Shutdown: "shutdown",
}

func (l *life) isLeader() bool { return l.raft.State() == raft.Leader }

// Host runs all replicas of one node: it starts and stops groups, owns the confirmation rounds that they
// share, and the scheduler that takes snapshots, removes expired keys and looks after stuck groups.
type Host struct {
	cfg       Config
	confirmer *confirmer
	scheduler *scheduler
	memory    *memory
	auditor   *auditor
	verifier  *verifier
	reaped    atomic.Uint64
	reapTime  atomic.Int64 // nanoseconds
	useWindow atomic.Int64 // nanoseconds; see ShardUse.Window
	// snapshotThrottle paces the snapshots of all replicas together.
	snapshotThrottle *rate.Limiter

	mu     sync.RWMutex
	closed bool
	groups map[shard.ID]*Group
	// ordered are the groups by shard; a change makes another slice, since Groups gives it out.
	ordered []*Group
	meta    *Meta
}

// NewHost starts a host without replicas.
func NewHost(cfg Config) (*Host, error) {
	full, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	h := &Host{cfg: full, groups: make(map[shard.ID]*Group),
		snapshotThrottle: rate.NewLimiter(rate.Limit(full.Snapshots.BytesPerSecond), snapshotSliceBytes)}
	h.confirmer = newConfirmer(full.Node, full.Timing.Election, full.Transport.Confirm)
	h.memory, h.auditor, h.verifier = newMemory(&full), newAuditor(full.Verify), newVerifier()
	h.scheduler = newScheduler(h)
	full.Transport.OnGone(h.nodeGone)
	return h, nil
}

// Bootstrap writes the first configuration of one group's replica on this node, without starting it. It is
// safe to repeat as long as no replica of the node has been started.
func (h *Host) Bootstrap(group shard.ID, id shard.ReplicaID, members []Member) error {
	r := replica{host: h, group: group, id: id, log: h.cfg.Logger.With("shard", group, "replica", id)}
	if err := r.bootstrap(members); err != nil {
		return fmt.Errorf("bootstrapping replica %d of shard %d: %w", id, group, err)
	}
	return nil
}

// StartMeta starts this node's replica of the meta group. seed is what the first leader logs if the group
// has no state yet.
func (h *Host) StartMeta(id shard.ReplicaID, seed *ClusterState) (*Meta, error) {
	return h.startMeta(newMeta(h, id, seed))
}

// StartMetaJoiner is StartJoiner for the meta group.
func (h *Host) StartMetaJoiner(id shard.ReplicaID, settled func() error) (*Meta, error) {
	m := newMeta(h, id, nil)
	m.replica.join(settled)
	return h.startMeta(m)
}

func (h *Host) startMeta(m *Meta) (*Meta, error) {
	err := h.start(&m.replica, func() { h.meta = m })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// StartGroup starts this node's replica of one shard.
func (h *Host) StartGroup(spec GroupSpec) (*Group, error) { return h.startGroup(newGroup(h, spec)) }

// StartJoiner starts this node's replica of one shard under an id that has never been used, without data: it gets them from
// the shard's leader, once that has taken it in as a member without a vote.
//
// A replica without data that is started in any other way is taken for one that lost them. So that its id is a fresh one
// must be remembered by the caller, durably, until settled is called, and not a moment longer: settled must make durable
// that the replica is an ordinary one. That is called, on a goroutine of the scheduler's, once the replica durably has its
// first configuration, and a replica gets a vote only after that. An error is logged, and settled called again.
func (h *Host) StartJoiner(spec GroupSpec, settled func() error) (*Group, error) {
	g := newGroup(h, spec)
	g.replica.join(settled)
	return h.startGroup(g)
}

func (h *Host) startGroup(g *Group) (*Group, error) {
	err := h.start(&g.replica, func() {
		h.groups[g.spec.Shard] = g
		h.orderLocked()
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// start starts a replica and publishes it, unless the host is closed.
func (h *Host) start(r *replica, publish func()) error {
	if err := r.start(); err != nil {
		return err
	}
	h.mu.Lock()
	closed := h.closed
	if !closed {
		publish()
	}
	h.mu.Unlock()
	if closed {
		return errors.Join(ErrStopped, r.stop())
	}
	return nil
}

// Drop stops this node's replica of a group, if there is one, and forgets it; its data stay. After that another may be
// started.
func (h *Host) Drop(group shard.ID) error {
	r := h.replica(group)
	if r == nil {
		return nil
	}
	err := r.stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	if group == shard.MetaGroup {
		h.meta = nil
	} else {
		delete(h.groups, group)
		h.orderLocked()
	}
	return err
}

func (h *Host) orderLocked() {
	h.ordered = slices.SortedFunc(maps.Values(h.groups), func(a, b *Group) int { return cmp.Compare(a.spec.Shard, b.spec.Shard) })
}

// Damaged are the groups whose replicas here met damage in their logs while they ran, with what they met. They must be
// dropped, and replaced: what they hold can't be served to others.
func (h *Host) Damaged() map[shard.ID]error {
	damaged := make(map[shard.ID]error)
	for _, r := range h.replicas() {
		if l := r.current.Load(); l != nil {
			if err := l.stores.Log.Damage(); err != nil {
				damaged[r.group] = err
			}
		}
	}
	return damaged
}

// Meta returns this node's replica of the meta group; nil: none runs.
func (h *Host) Meta() *Meta {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.meta
}

// replica returns this node's replica of a group, or nil.
func (h *Host) replica(group shard.ID) *replica {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if group == shard.MetaGroup {
		if h.meta == nil {
			return nil
		}
		return &h.meta.replica
	}
	if g := h.groups[group]; g != nil {
		return &g.replica
	}
	return nil
}

// Group returns this node's replica of a shard.
func (h *Host) Group(id shard.ID) (*Group, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	g, ok := h.groups[id]
	return g, ok
}

// Groups returns the node's replicas ordered by shard. The slice is shared: it must not be changed.
func (h *Host) Groups() []*Group {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.ordered
}

// replicas returns the plumbing of all replicas, the meta group's first.
func (h *Host) replicas() []*replica {
	h.mu.RLock()
	meta := h.meta
	h.mu.RUnlock()
	var all []*replica
	if meta != nil {
		all = append(all, &meta.replica)
	}
	for _, g := range h.Groups() {
		all = append(all, &g.replica)
	}
	return all
}

// AnswerConfirm answers another node's confirmation round: for each item whether that replica of this node is
// still in that term. It is transport.Config's Confirmer.
func (h *Host) AnswerConfirm(items []transport.ConfirmItem) []bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	answers := make([]bool, len(items))
	for i, item := range items {
		if item.Group == shard.MetaGroup {
			answers[i] = h.meta != nil && h.meta.replica.sameTerm(item)
		} else if g := h.groups[item.Group]; g != nil {
			answers[i] = g.replica.sameTerm(item)
		}
	}
	return answers
}

// HandOver gives every leadership of this node to another voter, a few at a time, until the context ends.
func (h *Host) HandOver(ctx context.Context) error {
	const parallel = 8
	h.scheduler.stopBalancing()
	places := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for _, r := range h.replicas() {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			wg.Wait()
			return errors.Join(failed, ctx.Err())
		}
		wg.Go(func() {
			defer func() { <-places }()
			if err := r.handOver(); err != nil {
				mu.Lock()
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}

// Close stops every replica and joins all goroutines. It neither hands leaderships over nor drains: see
// HandOver.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	h.mu.Unlock()
	h.scheduler.close()
	var failed error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, r := range h.replicas() {
		wg.Go(func() {
			if err := r.stop(); err != nil {
				mu.Lock()
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	h.confirmer.close()
	return failed
}
