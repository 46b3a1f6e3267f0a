package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// membersService is what nodes say to each other about their replicas.
type membersService struct {
	ostrakapb.UnimplementedMembersServer
	node *Node
}

// asked returns the running part of the cluster that the asking node is of too.
func (s *membersService) asked(from *ostrakapb.Handshake) (*membership, error) {
	part := s.node.membership.Load()
	id := shard.NodeID(from.GetNodeId())
	switch {
	case part == nil || from.GetClusterId() != part.clusterID:
		return nil, transport.ErrWrongCluster
	case from.GetTargetNodeId() != s.node.cfg.ID:
		return nil, fmt.Errorf("%w: meant for node %q", transport.ErrWrongNode, from.GetTargetNodeId())
	case s.node.outlived(id, from.GetIncarnation()):
		return nil, transport.ErrOutlived
	case !s.node.book.isMember(id):
		return nil, fmt.Errorf("%w: %q", transport.ErrStranger, id)
	}
	return part, nil
}

// Rejoin implements ostrakapb.MembersServer.
func (s *membersService) Rejoin(ctx context.Context, req *ostrakapb.RejoinRequest) (*ostrakapb.RejoinResponse, error) {
	if target := req.GetFrom().GetTargetNodeId(); target != s.node.cfg.ID {
		return nil, fmt.Errorf("%w: meant for node %q", transport.ErrWrongNode, target)
	}
	if err := s.node.rejoin(ctx, req); err != nil {
		return nil, err
	}
	return &ostrakapb.RejoinResponse{}, nil
}

// ClusterState implements ostrakapb.MembersServer.
func (s *membersService) ClusterState(_ context.Context, req *ostrakapb.ClusterStateRequest) (*ostrakapb.ClusterStateResponse, error) {
	part, err := s.asked(req.GetFrom())
	if err != nil {
		return nil, err
	}
	answer := &ostrakapb.ClusterStateResponse{MetaLeader: string(part.metaLeader())}
	if state := part.state(); state != nil && uint64(state.Map.Epoch()) > req.GetKnownEpoch() {
		answer.State = planOf(state, s.node.identity.Load().plan)
	}
	return answer, nil
}

// Standing implements ostrakapb.MembersServer.
func (s *membersService) Standing(_ context.Context, req *ostrakapb.StandingRequest) (*ostrakapb.StandingResponse, error) {
	part, err := s.asked(req.GetFrom())
	if err != nil {
		return nil, err
	}
	group, id := shard.ID(req.GetGroup()), shard.ReplicaID(req.GetReplica())
	st := part.host.Standing(group, id)
	lost, ok := part.lostReplica(group)
	return &ostrakapb.StandingResponse{Running: st.Running, Joining: st.Joining, Leads: st.Leads, Voter: st.Voter, Term: st.Term,
		AppliedIndex: st.Applied, LastIndex: st.Last, Lost: ok && lost.id == id}, nil
}

// Membership implements ostrakapb.MembersServer.
func (s *membersService) Membership(_ context.Context, req *ostrakapb.StandingRequest) (*ostrakapb.MembershipResponse, error) {
	part, err := s.asked(req.GetFrom())
	if err != nil {
		return nil, err
	}
	return membershipIn(part.host, shard.ID(req.GetGroup()), shard.ReplicaID(req.GetReplica())), nil
}

// membershipIn is what this node, if it leads the group, says of a replica.
func membershipIn(host *raftfsm.Host, group shard.ID, id shard.ReplicaID) *ostrakapb.MembershipResponse {
	member, err := host.HasMember(group, id)
	if err != nil {
		return &ostrakapb.MembershipResponse{}
	}
	answer := &ostrakapb.MembershipResponse{Leads: true, Member: member}
	if err := host.Spare(group, id); err != nil {
		answer.Needed = err.Error()
	}
	return answer
}

// Report implements ostrakapb.MembersServer.
func (s *membersService) Report(ctx context.Context, req *ostrakapb.ReportRequest) (*ostrakapb.ReportResponse, error) {
	part, err := s.asked(req.GetFrom())
	if err != nil {
		return nil, err
	}
	meta := part.host.Meta()
	if meta == nil || !meta.IsLeader() {
		return &ostrakapb.ReportResponse{Leader: string(part.metaLeader())}, nil
	}
	group, id := shard.ID(req.GetGroup()), shard.ReplicaID(req.GetReplica())
	err = s.node.hearReport(ctx, part, meta, shard.NodeID(req.GetFrom().GetNodeId()), group, id, req.GetEvent())
	if errors.Is(err, raftfsm.ErrNotLeader) {
		return &ostrakapb.ReportResponse{Leader: string(part.metaLeader())}, nil
	}
	if err != nil {
		return nil, err
	}
	return &ostrakapb.ReportResponse{Accepted: true}, nil
}

// hearReport acts, as the meta group's leader, on what happened to a replica.
func (n *Node) hearReport(ctx context.Context, part *membership, meta *raftfsm.Meta, from shard.NodeID, group shard.ID, id shard.ReplicaID, event ostrakapb.ReplicaEvent) error {
	switch event {
	case ostrakapb.ReplicaEvent_REPLICA_EVENT_PROMOTED:
		return meta.Promoted(ctx, group, id)
	case ostrakapb.ReplicaEvent_REPLICA_EVENT_LOST:
		held, ok := part.state().MemberOn(group, from)
		if !ok || held.Replica != id {
			return fmt.Errorf("%w: %w: replica %d of shard %d is not on %s", raftfsm.ErrBadMeta, raftfsm.ErrStaleReplica, id, group, from)
		}
		if err := n.checkLost(ctx, part, from, group, id); err != nil {
			return err
		}
		_, err := n.replace(ctx, part, meta, group, id)
		return err
	}
	return fmt.Errorf("%w: event %d", errUnsupported, event)
}

// errNotLost: a replica that was reported lost isn't, by its node's own words.
var errNotLost = fmt.Errorf("%w: the replica is not lost", raftfsm.ErrBadMeta)

// checkLost asks a node whether its replica is lost: whoever reaches the port can report it.
func (n *Node) checkLost(ctx context.Context, part *membership, from shard.NodeID, group shard.ID, id shard.ReplicaID) error {
	if from == n.NodeID() {
		if lost, ok := part.lostReplica(group); !ok || lost.id != id {
			return errNotLost
		}
		return nil
	}
	client, err := n.members(from)
	if err != nil {
		return err
	}
	standing, err := client.Standing(ctx, n.standingRequest(from, group, id))
	if err != nil {
		return err
	}
	if !standing.GetLost() || standing.GetRunning() {
		return errNotLost
	}
	return nil
}

// replace gives a replica's place to a fresh one, once its group has shown that it can do without it.
func (n *Node) replace(ctx context.Context, part *membership, meta *raftfsm.Meta, group shard.ID, id shard.ReplicaID) (fresh shard.ReplicaID, err error) {
	state := part.state()
	if err := n.spared(ctx, state, group, id); err != nil {
		return 0, err
	}
	node := shard.NodeID("")
	members, _ := state.Members(group)
	for _, m := range members {
		if m.Replica == id {
			node = m.Node
		}
	}
	after, err := meta.Replace(ctx, group, id)
	if err != nil {
		return 0, err
	}
	now, _ := after.MemberOn(group, node)
	n.cfg.Logger.Info("a replica is replaced", "shard", group, "on", node, "old", id, "fresh", now.Replica)
	return now.Replica, nil
}

// spared is nil if the leader of a group says that it can do without a replica.
func (n *Node) spared(ctx context.Context, state *raftfsm.ClusterState, group shard.ID, id shard.ReplicaID) error {
	switch answer := n.leaderOn(ctx, state, group, id); {
	case answer == nil:
		return fmt.Errorf("%w: nobody leads shard %d", raftfsm.ErrNotSpared, group)
	case answer.GetNeeded() != "" && answer.GetMember():
		return fmt.Errorf("%w: %s", raftfsm.ErrNotSpared, answer.GetNeeded())
	}
	return nil
}

// leaderOn is what the leader of a group says of a replica; nil: nobody could be found who leads it.
func (n *Node) leaderOn(ctx context.Context, state *raftfsm.ClusterState, group shard.ID, id shard.ReplicaID) *ostrakapb.MembershipResponse {
	members, _ := state.Members(group)
	for _, m := range members {
		if answer, err := n.membershipOf(ctx, m.Node, group, id); err == nil && answer.GetLeads() {
			return answer
		}
	}
	return nil
}

// report tells the meta group's leader what became of a replica.
func (n *Node) report(ctx context.Context, part *membership, group shard.ID, id shard.ReplicaID, event ostrakapb.ReplicaEvent) error {
	meta := part.host.Meta()
	if meta != nil && meta.IsLeader() {
		return n.hearReport(ctx, part, meta, n.NodeID(), group, id, event)
	}
	leader := part.metaLeader()
	if leader == "" || leader == n.NodeID() {
		var err error
		if leader, err = n.findMetaLeader(ctx, part); err != nil {
			return err
		}
	}
	client, err := n.members(leader)
	if err != nil {
		return err
	}
	answer, err := client.Report(ctx, &ostrakapb.ReportRequest{From: n.handshake(leader), Group: uint32(group), Replica: uint64(id), Event: event})
	switch {
	case err != nil:
		return err
	case !answer.GetAccepted():
		return fmt.Errorf("%w: %s does not lead the meta group", raftfsm.ErrNotLeader, leader)
	}
	return nil
}

// findMetaLeader asks the other nodes who leads the meta group.
func (n *Node) findMetaLeader(ctx context.Context, part *membership) (shard.NodeID, error) {
	for id := range n.book.snapshot() {
		if id == n.NodeID() {
			continue
		}
		client, err := n.members(id)
		if err != nil {
			continue
		}
		asked, cancel := context.WithTimeout(ctx, time.Second)
		answer, err := client.ClusterState(asked, &ostrakapb.ClusterStateRequest{From: n.handshake(id), KnownEpoch: uint64(part.newestMap().Epoch())})
		cancel()
		if leader := shard.NodeID(answer.GetMetaLeader()); err == nil && leader != "" && leader != n.NodeID() {
			return leader, nil
		}
	}
	return "", fmt.Errorf("%w: nobody is known to lead the meta group", raftfsm.ErrNotLeader)
}

// members returns a client of another node's service.
func (n *Node) members(id shard.NodeID) (ostrakapb.MembersClient, error) {
	conn, err := n.transport.Conn(id)
	if err != nil {
		return nil, err
	}
	return ostrakapb.NewMembersClient(conn), nil
}

func (n *Node) standingRequest(to shard.NodeID, group shard.ID, id shard.ReplicaID) *ostrakapb.StandingRequest {
	return &ostrakapb.StandingRequest{From: n.handshake(to), Group: uint32(group), Replica: uint64(id)}
}

// membershipOf asks a node, which may be this one, as the leader of a group.
func (n *Node) membershipOf(ctx context.Context, at shard.NodeID, group shard.ID, id shard.ReplicaID) (*ostrakapb.MembershipResponse, error) {
	if at == n.NodeID() {
		return membershipIn(n.Host(), group, id), nil
	}
	client, err := n.members(at)
	if err != nil {
		return nil, err
	}
	asked, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return client.Membership(asked, n.standingRequest(at, group, id))
}

// clusterStateOf asks another node for the cluster's state; nil: it knows nothing newer.
func (n *Node) clusterStateOf(id shard.NodeID, known uint64) (*raftfsm.ClusterState, error) {
	client, err := n.members(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(n.life, time.Second)
	defer cancel()
	answer, err := client.ClusterState(ctx, &ostrakapb.ClusterStateRequest{From: n.handshake(id), KnownEpoch: known})
	if err != nil || answer.GetState() == nil {
		return nil, err
	}
	if got := answer.GetState().GetClusterId(); got != n.ClusterID() {
		return nil, fmt.Errorf("%w: %q", transport.ErrWrongCluster, got)
	}
	if err := checkPlan(answer.GetState(), n.NodeID()); err != nil {
		return nil, err
	}
	return stateOf(answer.GetState())
}

// clusterView implements raftfsm.Cluster: what the leaders on this node know of the rest of the cluster.
type clusterView struct {
	node *Node
	part *membership
}

// State implements raftfsm.Cluster.
func (v *clusterView) State() *raftfsm.ClusterState { return v.part.state() }

// Standing implements raftfsm.Cluster.
func (v *clusterView) Standing(ctx context.Context, group shard.ID, m raftfsm.Member) (raftfsm.Standing, error) {
	if m.Node == v.node.NodeID() {
		return v.part.host.Standing(group, m.Replica), nil
	}
	client, err := v.node.members(m.Node)
	if err != nil {
		return raftfsm.Standing{}, err
	}
	st, err := client.Standing(ctx, v.node.standingRequest(m.Node, group, m.Replica))
	if err != nil {
		return raftfsm.Standing{}, err
	}
	return raftfsm.Standing{Running: st.GetRunning(), Joining: st.GetJoining(), Leads: st.GetLeads(), Voter: st.GetVoter(), Term: st.GetTerm(),
		Applied: st.GetAppliedIndex(), Last: st.GetLastIndex()}, nil
}

// Promoted implements raftfsm.Cluster.
func (v *clusterView) Promoted(ctx context.Context, group shard.ID, id shard.ReplicaID) error {
	return v.node.report(ctx, v.part, group, id, ostrakapb.ReplicaEvent_REPLICA_EVENT_PROMOTED)
}
