package server

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// A plan is everything that a cluster's first members must agree on: here it is drawn up, chosen, checked and read.

const (
	planFormat  = 1
	shardsMax   = 256
	replicasMax = 7
	// clusterIDBytesMax bounds a cluster's id, which every handshake carries. Ours have 32.
	clusterIDBytesMax = 64
)

// newPlan draws up a cluster: its id, its map, and who votes in the meta group.
func newPlan(req *ostrakapb.BootstrapRequest) (*ostrakapb.BootstrapPlan, error) {
	var id [16]byte
	rand.Read(id[:])
	nodes := make([]shard.Node, len(req.GetNodes()))
	meta := make([]*ostrakapb.MapReplica, len(nodes))
	for i, spec := range req.GetNodes() {
		nodes[i] = shard.Node{ID: shard.NodeID(spec.GetId()), Address: spec.GetAddress(), Zone: spec.GetZone()}
		meta[i] = &ostrakapb.MapReplica{Id: uint64(i + 1), Node: spec.GetId(), Voter: i < raftfsm.MetaVotersMax}
	}
	m, err := shard.Initial(nodes, int(req.GetShards()), int(req.GetReplicas()), shard.ReplicaID(len(nodes)+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBootstrapRequest, err)
	}
	return &ostrakapb.BootstrapPlan{Format: planFormat, ClusterId: hex.EncodeToString(id[:]), Map: encodeMap(m), Meta: meta,
		NextReplicaId: uint64(len(nodes)) + uint64(req.GetShards())*uint64(req.GetReplicas()) + 1,
		FormatLevel:   FormatLevel, Request: req}, nil
}

// choosePlan returns the plan to carry out, and whether all that is done already. A node whose phase this build
// doesn't know counts as a member: that is the side on which nothing is forgotten.
func choosePlan(req *ostrakapb.BootstrapRequest, found []*ostrakapb.HelloResponse) (plan *ostrakapb.BootstrapPlan, already bool, err error) {
	var blank, members []string
	for _, answer := range found {
		node, held := answer.GetSelf().GetNodeId(), answer.GetPlan()
		if held == nil {
			blank = append(blank, node)
			continue
		}
		cluster := held.GetClusterId()
		switch {
		case !proto.Equal(held.GetRequest(), req):
			return nil, false, fmt.Errorf("%w: node %s is of cluster %s, which was made with other arguments", ErrAlreadyMember, node, cluster)
		case plan != nil && plan.GetClusterId() != cluster:
			return nil, false, fmt.Errorf("%w: node %s is of cluster %s, another of %s", ErrAlreadyMember, node, cluster, plan.GetClusterId())
		}
		plan = held
		if answer.GetPhase() != ostrakapb.NodePhase_NODE_PHASE_ADOPTING {
			members = append(members, node)
		}
	}
	switch {
	case plan == nil:
		plan, err = newPlan(req)
		return plan, false, err
	case len(members) > 0 && len(blank) > 0:
		return nil, false, fmt.Errorf("%w: cluster %s runs on %s, but %s is blank: its data is gone, so that it can't be bootstrapped "+
			"again; the others take it back by themselves once a majority of them runs", ErrAlreadyMember, plan.GetClusterId(),
			strings.Join(members, ", "), strings.Join(blank, ", "))
	}
	return plan, len(members) == len(found), nil
}

// checkPlan says what is wrong with a plan from the wire, as ErrBootstrapRequest: once adopted it is believed.
func checkPlan(plan *ostrakapb.BootstrapPlan, self shard.NodeID) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: the plan %s", ErrBootstrapRequest, fmt.Sprintf(format, args...))
	}
	switch n := len(plan.GetClusterId()); {
	case plan.GetFormat() != planFormat:
		return refuse("has format %d, this build reads up to %d", plan.GetFormat(), planFormat)
	case n == 0 || n > clusterIDBytesMax:
		return refuse("has a cluster id of %d bytes, want 1 to %d", n, clusterIDBytesMax)
	case plan.GetFormatLevel() < 1 || plan.GetFormatLevel() > FormatLevel:
		return refuse("has format level %d, this build can do 1 to %d", plan.GetFormatLevel(), FormatLevel)
	}
	m, err := decodeMap(plan.GetMap())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBootstrapRequest, err)
	}
	for _, n := range m.Nodes() {
		if err := CheckNodeID(string(n.ID)); err != nil {
			return refuse("names a node wrongly: %v", err)
		}
		if err := checkReachable("address of "+string(n.ID), n.Address); err != nil {
			return refuse("has a wrong address: %v", err)
		}
	}
	if n := len(m.Shards()); n > shardsMax {
		return refuse("has %d shards; at most %d are possible", n, shardsMax)
	}
	replicas := make(map[shard.ReplicaID]bool)
	for _, s := range m.Shards() {
		if len(s.Replicas) > replicasMax {
			return refuse("has %d replicas of shard %d; at most %d are possible", len(s.Replicas), s.ID, replicasMax)
		}
		for _, r := range s.Replicas {
			replicas[r.ID] = true
		}
	}
	if err := checkMeta(plan, m, replicas); err != nil {
		return refuse("%v", err)
	}
	for id := range replicas {
		if uint64(id) >= plan.GetNextReplicaId() {
			return refuse("has a replica %d, which the next id %d would give out again", id, plan.GetNextReplicaId())
		}
	}
	if _, err := metaReplicaOf(plan, self); err != nil {
		return fmt.Errorf("%w: %w", ErrBootstrapRequest, err)
	}
	return nil
}

// checkMeta says what is wrong with a plan's meta group, and adds its replicas to those that have an id.
func checkMeta(plan *ostrakapb.BootstrapPlan, m *shard.Map, replicas map[shard.ReplicaID]bool) error {
	voters := 0
	nodes := make(map[shard.NodeID]bool)
	for _, r := range membersOf(plan.GetMeta()) {
		_, known := m.Node(r.Node)
		switch {
		case r.Replica == 0:
			return fmt.Errorf("has a meta replica without an id on node %s", r.Node)
		case replicas[r.Replica]:
			return fmt.Errorf("gives replica id %d twice", r.Replica)
		case !known || nodes[r.Node]:
			return fmt.Errorf("places a meta replica on %q, which is no node, or has one", r.Node)
		}
		replicas[r.Replica], nodes[r.Node] = true, true
		if r.Voter {
			voters++
		}
	}
	if voters < 1 || voters > raftfsm.MetaVotersMax {
		return fmt.Errorf("has %d voters in the meta group, want 1 to %d", voters, raftfsm.MetaVotersMax)
	}
	return nil
}

func membersOf(replicas []*ostrakapb.MapReplica) []raftfsm.Member {
	members := make([]raftfsm.Member, len(replicas))
	for i, r := range replicas {
		members[i] = raftfsm.Member{Node: shard.NodeID(r.GetNode()), Replica: shard.ReplicaID(r.GetId()), Voter: r.GetVoter()}
	}
	return members
}

// planOf puts the cluster's state into the form of a plan: what a node needs to be a member of it from now on. made is the
// plan that the cluster was made by, so that a repeated bootstrap is still recognised.
func planOf(state *raftfsm.ClusterState, made *ostrakapb.BootstrapPlan) *ostrakapb.BootstrapPlan {
	plan := &ostrakapb.BootstrapPlan{Format: planFormat, ClusterId: state.ClusterID, Map: encodeMap(state.Map),
		NextReplicaId: uint64(state.NextReplica), FormatLevel: state.FormatLevel, Request: made.GetRequest()}
	for _, m := range state.Meta {
		plan.Meta = append(plan.Meta, &ostrakapb.MapReplica{Id: uint64(m.Replica), Node: string(m.Node), Voter: m.Voter})
	}
	return plan
}

// stateOf is the inverse of planOf, for a plan that checkPlan has passed.
func stateOf(plan *ostrakapb.BootstrapPlan) (*raftfsm.ClusterState, error) {
	m, err := decodeMap(plan.GetMap())
	if err != nil {
		return nil, err
	}
	return &raftfsm.ClusterState{ClusterID: plan.GetClusterId(), FormatLevel: plan.GetFormatLevel(), Map: m,
		Meta: membersOf(plan.GetMeta()), NextReplica: shard.ReplicaID(plan.GetNextReplicaId())}, nil
}

// metaReplicaOf returns the id of a node's replica of the meta group, which every node of a plan has.
func metaReplicaOf(plan *ostrakapb.BootstrapPlan, node shard.NodeID) (shard.ReplicaID, error) {
	for _, m := range membersOf(plan.GetMeta()) {
		if m.Node == node {
			return m.Replica, nil
		}
	}
	return 0, fmt.Errorf("the plan of cluster %s does not name node %s", plan.GetClusterId(), node)
}
