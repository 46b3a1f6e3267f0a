package raftfsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// Meta is this node's replica of the meta group, the one Raft group that holds the cluster's own state. Every
// node has a replica; at most MetaVotersMax of them vote.
type Meta struct {
	replica replica
	seed    *ClusterState
	changes *broadcast
}

// MetaVotersMax bounds the voters of the meta group: more would slow its elections and commits.
const MetaVotersMax = 5

func newMeta(h *Host, id shard.ReplicaID, seed *ClusterState) *Meta {
	m := &Meta{seed: seed, changes: newBroadcast()}
	m.replica = replica{host: h, group: shard.MetaGroup, id: id,
		log:        h.cfg.Logger.With("shard", "meta", "replica", id),
		newMachine: func() machine { return newMetaMachine(m.changes.notify) },
		stamp:      func(machine) store.Time { return 0 },
		ready:      m.plant,
	}
	return m
}

// plant logs the cluster's first state where there is none. Every first member knows it from the bootstrap
// plan, so whoever leads first logs the same.
func (m *Meta) plant(ctx context.Context, l *life) error {
	if m.seed == nil || l.fsm.machine.(*metaMachine).state.Load() != nil {
		return nil
	}
	return m.change(ctx, l, &metaEntry{Kind: metaInit, State: m.seed})
}

// State returns the cluster's state as this replica has applied it; nil before the first entry.
func (m *Meta) State() *ClusterState {
	l := m.replica.current.Load()
	if l == nil {
		return nil
	}
	return l.fsm.machine.(*metaMachine).state.Load()
}

// Changed returns a channel that is closed at the next change of State.
func (m *Meta) Changed() <-chan struct{} { return m.changes.wait() }

// Leader returns the node that this replica believes to lead the meta group; empty where none is known.
func (m *Meta) Leader() shard.NodeID {
	if l := m.replica.current.Load(); l != nil {
		return l.leaderNode()
	}
	return ""
}

// Status returns how this replica stands.
func (m *Meta) Status() Status { return m.replica.status() }

// SetNode records a node's address, learnt at the given incarnation, and returns the epoch that holds it. It
// is a no-op where the state has that already or something newer. Leader only: ErrNotLeader otherwise.
func (m *Meta) SetNode(ctx context.Context, node shard.NodeID, address string, incarnation uint64) (shard.Epoch, error) {
	l := m.replica.current.Load()
	if l == nil {
		return 0, ErrStopped
	}
	if _, err := l.leading(); err != nil {
		return 0, err
	}
	if state := l.fsm.machine.(*metaMachine).state.Load(); state != nil {
		known, ok := state.Map.Node(node)
		if !ok {
			return 0, fmt.Errorf("%w: node %q is not of this cluster", ErrBadMeta, node)
		}
		if known.Incarnation >= incarnation {
			return state.Map.Epoch(), nil
		}
	}
	state, err := m.commit(ctx, l, &metaEntry{Kind: metaSetNode, Node: node, Address: address, Incarnation: incarnation})
	if err != nil {
		return 0, err
	}
	return state.Map.Epoch(), nil
}

// Replace gives the place of a replica to a fresh one on the same node, which doesn't vote yet, and returns the state that
// says so. Whoever runs the old one must wipe it: see StartJoiner. Whether its group can do without it is the caller's to
// find out. Leader only. Errors: ErrStaleReplica, ErrLastVoter, and those of writes.
func (m *Meta) Replace(ctx context.Context, group shard.ID, old shard.ReplicaID) (*ClusterState, error) {
	return m.lead(ctx, &metaEntry{Kind: metaReplace, Group: group, Replica: old})
}

// Promoted records that a replica has a vote. It may be repeated. Leader only; errors as those of Replace.
func (m *Meta) Promoted(ctx context.Context, group shard.ID, id shard.ReplicaID) error {
	_, err := m.lead(ctx, &metaEntry{Kind: metaPromoted, Group: group, Replica: id})
	return err
}

// Rejoin gives fresh ids to all replicas of a node that has lost its data, begins the node's next life at the address, and
// returns the state that says so. incarnation is the one in which the node is known: if it is in another by then, nothing
// is done. Leader only; errors as those of Replace.
func (m *Meta) Rejoin(ctx context.Context, node shard.NodeID, address string, incarnation uint64) (*ClusterState, error) {
	return m.lead(ctx, &metaEntry{Kind: metaRejoin, Node: node, Address: address, Incarnation: incarnation})
}

// lead replicates a change if this replica leads.
func (m *Meta) lead(ctx context.Context, ent *metaEntry) (*ClusterState, error) {
	l, err := m.replica.leading()
	if err != nil {
		return nil, err
	}
	return m.commit(ctx, l, ent)
}

// IsLeader reports whether this replica leads the meta group and is ready.
func (m *Meta) IsLeader() bool {
	_, err := m.replica.leading()
	return err == nil
}

// commit replicates a change and returns the state after it, or a later one.
func (m *Meta) commit(ctx context.Context, l *life, ent *metaEntry) (*ClusterState, error) {
	if err := m.change(ctx, l, ent); err != nil {
		return nil, err
	}
	if state := m.State(); state != nil {
		return state, nil
	}
	return nil, ErrStopped
}

// change replicates one change of the cluster's state.
func (m *Meta) change(ctx context.Context, l *life, ent *metaEntry) error {
	data, err := encodeMetaEntry(ent)
	if err != nil {
		return err
	}
	response, err := l.proposer.encoded(ctx, data)
	if errors.Is(err, ErrNotLeader) {
		return l.notLeader()
	}
	if err != nil {
		return err
	}
	refused, _ := response.(error)
	return refused
}
