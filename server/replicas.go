package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// A node holds what its identity says, and takes up what the cluster's state says instead:
//
//	lost ──reported──► the state names a fresh id ─► the group's leader has let go of the old one ─► data wiped, the fresh
//	                                ▲                                                               one started empty
//	        `ostraka cluster replace`
//
// The order matters twice. What is there, damaged or not, is wiped only when a majority of the others has shown that it
// can do without: until then it may be the best that is left. And the old id is marked as used up before the identity
// names the fresh one, so that at no moment a crash leaves a node that would start the old one again.

// lostReplica is a replica that must not run again.
type lostReplica struct {
	id  shard.ReplicaID
	why error
}

// setLost notes that a group's replica here is lost; nil: it isn't.
func (m *membership) setLost(group shard.ID, lost *lostReplica) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if lost == nil {
		delete(m.lost, group)
	} else {
		m.lost[group] = *lost
	}
}

func (m *membership) lostReplica(group shard.ID) (lostReplica, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	lost, ok := m.lost[group]
	return lost, ok
}

// lostReplicas are the node's lost replicas by group.
func (m *membership) lostReplicas() map[shard.ID]lostReplica {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.lost)
}

// state is the newest state of the cluster known here; nil: none is. Every change of the state has an epoch of its own.
func (m *membership) state() *raftfsm.ClusterState {
	told := m.told.Load()
	meta := m.host.Meta()
	if meta == nil {
		return told
	}
	own := meta.State()
	if own == nil || told != nil && told.Map.Epoch() > own.Map.Epoch() {
		return told
	}
	return own
}

// newestMap is the map of state, or before that of the plan.
func (m *membership) newestMap() *shard.Map {
	if state := m.state(); state != nil {
		return state.Map
	}
	return m.planned
}

// metaLeader is the node believed to lead the meta group; empty where none is known.
func (m *membership) metaLeader() shard.NodeID {
	if meta := m.host.Meta(); meta != nil {
		return meta.Leader()
	}
	return ""
}

// keepBeat is how often a node looks whether it holds what it should.
const keepBeat = 500 * time.Millisecond

// keepReplicas is the goroutine that makes this node hold what the cluster's state says. It ends with the node's life.
func (n *Node) keepReplicas(part *membership) {
	for n.pause(keepBeat) {
		if n.draining.Load() {
			continue
		}
		if n.metaAway(part) {
			n.askState(part)
		}
		n.noteLost(part)
		if state := part.state(); state != nil {
			n.followState(part, state)
		}
	}
}

// metaAway: the node's own replica of the meta group can't be relied on for the newest state. One that hears no leader may
// have been replaced while the node was down, and then never will.
func (n *Node) metaAway(part *membership) bool {
	held := n.identity.Load().holdings(part.planned)[shard.MetaGroup]
	meta := part.host.Meta()
	return meta == nil || held.Joining || meta.Leader() == ""
}

// askState asks the other nodes, in a random order, for the cluster's state until one knows more than this one.
func (n *Node) askState(part *membership) {
	known := uint64(0)
	if state := part.state(); state != nil {
		known = uint64(state.Map.Epoch())
	}
	for id := range n.book.snapshot() { // in random order
		if id == n.NodeID() || n.life.Err() != nil {
			continue
		}
		state, err := n.clusterStateOf(id, known)
		if err != nil {
			n.cfg.Logger.Debug("the cluster's state was not told", "by", id, "error", err)
			continue
		}
		if state != nil && uint64(state.Map.Epoch()) > known {
			part.told.Store(state)
			return
		}
	}
}

// noteLost finds replicas that were found damaged while they ran.
func (n *Node) noteLost(part *membership) {
	for group, err := range part.host.Damaged() {
		held := n.identity.Load().holdings(part.planned)[group]
		n.cfg.Logger.Error("a replica is damaged; it stops, and is to be replaced", "shard", group, "replica", held.ID, "error", err)
		if err := part.host.Drop(group); err != nil {
			n.cfg.Logger.Warn("stopping a damaged replica", "shard", group, "error", err)
		}
		part.setLost(group, &lostReplica{id: held.ID, why: err})
	}
}

// followState takes one step with each replica that is not as the state wants it.
func (n *Node) followState(part *membership, state *raftfsm.ClusterState) {
	held := n.identity.Load().holdings(part.planned)
	for _, group := range slices.Sorted(maps.Keys(held)) {
		want, ok := state.MemberOn(group, n.NodeID())
		// Ids only grow: a state that names a lower one is older than what is held here.
		if !ok || want.Replica < held[group].ID {
			continue
		}
		ctx, cancel := context.WithTimeout(n.life, 5*time.Second)
		var err error
		if want.Replica > held[group].ID {
			err = n.takeUp(ctx, part, state, group, held[group], want.Replica)
		} else if lost, ok := part.lostReplica(group); ok && lost.id == want.Replica {
			err = n.report(ctx, part, group, lost.id, ostrakapb.ReplicaEvent_REPLICA_EVENT_LOST)
		}
		cancel()
		if err != nil && n.life.Err() == nil {
			n.cfg.Logger.Info("a replica can't be replaced yet", "shard", group, "replica", held[group].ID, "error", err)
		}
	}
}

// takeUp gives a fresh replica the place of the one held, once its group has let go of that.
func (n *Node) takeUp(ctx context.Context, part *membership, state *raftfsm.ClusterState, group shard.ID, old heldReplica, fresh shard.ReplicaID) error {
	if err := n.letGo(ctx, state, group, old.ID); err != nil {
		return err
	}
	n.adoption.Lock()
	defer n.adoption.Unlock()
	if n.draining.Load() {
		return nil
	}
	if err := part.host.Drop(group); err != nil {
		n.cfg.Logger.Warn("stopping a replica that was replaced", "shard", group, "replica", old.ID, "error", err)
	}
	if err := part.storage.Remove(group, old.ID); err != nil {
		return err
	}
	held := heldReplica{ID: fresh, Joining: true}
	if err := n.changeIdentity(func(id *identity) error { id.hold(group, held); return nil }); err != nil {
		return err
	}
	n.cfg.Logger.Info("a replica was wiped, and a fresh one begins in its place", "shard", group, "old", old.ID, "fresh", fresh)
	return n.startReplica(part, group, held)
}

// errStillMember: a group counts a replica among its members that is to be wiped.
var errStillMember = errors.New("the group has not let go of the old replica yet")

// letGo is nil once the leader of a group says that a replica is no member of it.
func (n *Node) letGo(ctx context.Context, state *raftfsm.ClusterState, group shard.ID, id shard.ReplicaID) error {
	switch answer := n.leaderOn(ctx, state, group, id); {
	case answer == nil:
		return fmt.Errorf("%w: nobody leads it", errStillMember)
	case answer.GetMember():
		return errStillMember
	}
	return nil
}
