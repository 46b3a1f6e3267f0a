package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// A node whose data directory is gone starts blank, under its old id:
//
//	blank ◄──hello── the others, who can't hear it       It is met at its address, or says hello itself by --peers.
//	  │
//	  │       the meta group's leader: a new life of the node, with fresh ids for all its replicas, is committed
//	  ▼                                     │
//	member ◄────────────rejoin──────────────┘            What it is told is the cluster as it stands from then on.
//	  │
//	  └─ its replicas start empty; each group's leader removes the old one, takes in the fresh one, and gives it a vote
//
// Should the one before it still be somewhere, perhaps cut off, it is of an earlier life: nobody speaks to it any more, and
// its replicas are members of nothing.

// blankNodes are nodes of the cluster that were met without data.
type blankNodes struct {
	mu sync.Mutex
	at map[shard.NodeID]string
}

// meetBlank notes that a node without data answers at an address, if it has the id of a node of this cluster.
func (n *Node) meetBlank(id shard.NodeID, address string) {
	part := n.membership.Load()
	if part == nil || id == n.NodeID() || checkReachable("address", address) != nil {
		return
	}
	state := part.state()
	if state == nil {
		return
	}
	if _, member := state.Map.Node(id); !member {
		return // so that there are never more than the cluster has nodes
	}
	n.blanks.mu.Lock()
	defer n.blanks.mu.Unlock()
	if n.blanks.at == nil {
		n.blanks.at = make(map[shard.NodeID]string)
	}
	n.blanks.at[id] = address
}

// takeBlanks returns those that were met since the last call.
func (b *blankNodes) take() map[shard.NodeID]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	met := b.at
	b.at = nil
	return met
}

// takeBackAll takes back every node that was met without data, if this one leads the meta group.
func (n *Node) takeBackAll(part *membership) {
	met := n.blanks.take()
	meta := part.host.Meta()
	if len(met) == 0 || meta == nil || !meta.IsLeader() || n.draining.Load() {
		return
	}
	for id, address := range met {
		ctx, cancel := context.WithTimeout(n.life, 5*time.Second)
		if err := n.takeBack(ctx, part, meta, id, address); err != nil && n.life.Err() == nil {
			n.cfg.Logger.Warn("a node that lost its data was not taken back yet", "lost", id, "address", address, "error", err)
		}
		cancel()
	}
}

// errStillHere: a node without data has the id of one that is connected.
var errStillHere = errors.New("the node of that id is here, with its data")

func (n *Node) takeBack(ctx context.Context, part *membership, meta *raftfsm.Meta, id shard.NodeID, address string) error {
	if id == n.NodeID() || n.transport.Stats()[id].Connected {
		return errStillHere
	}
	// A connection may be down for a moment. Who is where he was, and has his data, is not lost.
	if known, ok := n.book.address(id); ok && known != address {
		asked, cancel := context.WithTimeout(ctx, time.Second)
		answer, err := n.hello(asked, known, "")
		cancel()
		if self := answer.GetSelf(); err == nil && self.GetNodeId() == string(id) && self.GetClusterId() == n.ClusterID() {
			return errStillHere
		}
	}
	// Asked once more: what it is to be told is worth a new life only if it is there to hear it.
	answer, err := n.hello(ctx, address, id)
	switch {
	case err != nil:
		return err
	case answer.GetSelf().GetNodeId() != string(id):
		return fmt.Errorf("%w: %q answers", transport.ErrWrongNode, answer.GetSelf().GetNodeId())
	case answer.GetPhase() != ostrakapb.NodePhase_NODE_PHASE_BLANK:
		return nil
	}
	known, ok := part.state().Map.Node(id)
	if !ok {
		return transport.ErrStranger
	}
	state, err := meta.Rejoin(ctx, id, address, known.Incarnation)
	if err != nil {
		return err
	}
	n.book.learnMap(state.Map)
	reborn, _ := state.Map.Node(id)
	n.cfg.Logger.Info("a node lost its data; it is taken back, with fresh replicas", "lost", id, "address", address, "life", shard.Life(reborn.Incarnation))
	req := &ostrakapb.RejoinRequest{From: n.handshake(id), Plan: planOf(state, n.identity.Load().plan), Incarnation: reborn.Incarnation}
	return n.withConn(address, func(conn *grpc.ClientConn) error {
		_, err := ostrakapb.NewMembersClient(conn).Rejoin(ctx, req)
		return err
	})
}

// errNotBlank: only a node that holds nothing is taken back.
var errNotBlank = fmt.Errorf("%w: the node holds data", ErrAlreadyMember)

// rejoin makes this blank node a member in a new life. ctx is the caller's: if it has given up, the life may not be the
// newest any more.
func (n *Node) rejoin(ctx context.Context, req *ostrakapb.RejoinRequest) error {
	plan, life := req.GetPlan(), req.GetIncarnation()
	if err := checkPlan(plan, n.NodeID()); err != nil {
		return err
	}
	m, err := decodeMap(plan.GetMap())
	if err != nil {
		return err
	}
	self, ok := m.Node(n.NodeID())
	if !ok || self.Incarnation != life || shard.Life(life) == 0 {
		return fmt.Errorf("%w: incarnation %#x is not the one in the plan", ErrBootstrapRequest, life)
	}
	n.adoption.Lock()
	defer n.adoption.Unlock()
	if err := overdue(ctx); err != nil {
		return err
	}
	if n.identity.Load().Phase != phaseBlank {
		return errNotBlank
	}
	err = n.changeIdentity(func(id *identity) error {
		if err := id.adopt(plan); err != nil {
			return err
		}
		id.Phase, id.Incarnation = phaseMember, life+1
		for group, held := range id.holdings(m) {
			id.hold(group, heldReplica{ID: held.ID, Joining: true})
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.book.setSelf(n.advertisedAddress(), n.Incarnation())
	n.cfg.Logger.Info("the cluster has taken this node back; its replicas begin empty", "cluster", plan.GetClusterId(), "incarnation", n.Incarnation())
	return n.join(n.identity.Load().plan)
}

// seekCluster is what a blank node does that was given --peers: it says hello to them, and to whom they know, for one of
// them may lead a cluster that this node was a part of.
func (n *Node) seekCluster() {
	const targetsMax = 64
	greeted := map[string]bool{n.advertisedAddress(): true}
	targets := n.cfg.Peers
	for i := 0; i < len(targets) && len(greeted) <= targetsMax && n.life.Err() == nil; i++ {
		if greeted[targets[i]] {
			continue
		}
		greeted[targets[i]] = true
		ctx, cancel := context.WithTimeout(n.life, 2*time.Second)
		answer, err := n.hello(ctx, targets[i], "")
		cancel()
		if err != nil {
			n.cfg.Logger.Debug("no answer to hello", "address", targets[i], "error", err)
			continue
		}
		for _, other := range answer.GetNodes() {
			if checkReachable("address", other.GetAddress()) == nil {
				targets = append(targets[:len(targets):len(targets)], other.GetAddress())
			}
		}
	}
}

// outlived implements transport's Outlived.
func (n *Node) outlived(id shard.NodeID, incarnation uint64) bool {
	m := n.Map()
	if m == nil {
		return false
	}
	known, ok := m.Node(id)
	return ok && shard.Life(incarnation) < shard.Life(known.Incarnation)
}

// learnOfSelf hears what another node of the cluster knows of this one.
func (n *Node) learnOfSelf(self *ostrakapb.MapNode) {
	if shard.NodeID(self.GetId()) != n.NodeID() || shard.Life(self.GetIncarnation()) <= shard.Life(n.Incarnation()) {
		return
	}
	if !n.superseded.Swap(true) {
		n.health.setServing(false)
		n.cfg.Logger.Error("the cluster has gone on with another life of this node; what is in the data directory is out of date: "+
			"stop the node, remove the directory, and start it again", "life_here", shard.Life(n.Incarnation()), "life_there", shard.Life(self.GetIncarnation()))
	}
}
