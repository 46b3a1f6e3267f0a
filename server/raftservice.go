package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/transport"
	"github.com/ostraka-db/ostraka/shard"
)

// raftService is what nodes say to each other. The streams are transport's; the rest is about who the nodes
// are and where they listen.
type raftService struct {
	*transport.Transport
	ostrakapb.UnimplementedRaftServer
	node *Node
}

// Exchange implements ostrakapb.RaftServer.
func (s *raftService) Exchange(stream ostrakapb.Raft_ExchangeServer) error {
	return s.Transport.Exchange(stream)
}

// InstallSnapshot implements ostrakapb.RaftServer.
func (s *raftService) InstallSnapshot(stream ostrakapb.Raft_InstallSnapshotServer) error {
	return s.Transport.InstallSnapshot(stream)
}

// Hello implements ostrakapb.RaftServer. Anyone may ask; only a member of the same cluster is believed.
func (s *raftService) Hello(_ context.Context, from *ostrakapb.Handshake) (*ostrakapb.HelloResponse, error) {
	switch from.GetClusterId() {
	case "":
		s.node.meetBlank(shard.NodeID(from.GetNodeId()), from.GetAddress())
	case s.node.ClusterID():
		s.node.book.learn(shard.NodeID(from.GetNodeId()), from.GetAddress(), from.GetIncarnation())
	}
	return s.node.helloAnswer(), nil
}

// helloAnswer is what this node tells of itself.
func (n *Node) helloAnswer() *ostrakapb.HelloResponse {
	id := n.identity.Load()
	answer := &ostrakapb.HelloResponse{Self: n.handshake(""), Plan: id.plan, Phase: id.Phase.message()}
	for id, e := range n.book.snapshot() {
		answer.Nodes = append(answer.Nodes, &ostrakapb.MapNode{Id: string(id), Address: e.Address, Incarnation: e.Incarnation})
	}
	return answer
}

// Adopt implements ostrakapb.RaftServer.
func (s *raftService) Adopt(_ context.Context, req *ostrakapb.AdoptRequest) (*ostrakapb.AdoptResponse, error) {
	if target := req.GetFrom().GetTargetNodeId(); target != s.node.cfg.ID {
		return nil, fmt.Errorf("%w: meant for node %q", transport.ErrWrongNode, target)
	}
	already, err := s.node.adopt(req.GetPlan(), req.GetStart())
	if err != nil {
		return nil, err
	}
	return &ostrakapb.AdoptResponse{Already: already}, nil
}

// Announce implements ostrakapb.RaftServer: the meta group's leader records where a node listens.
func (s *raftService) Announce(ctx context.Context, from *ostrakapb.Handshake) (*ostrakapb.AnnounceResponse, error) {
	part := s.node.membership.Load()
	if part == nil || from.GetClusterId() != part.clusterID {
		return nil, transport.ErrWrongCluster
	}
	if err := s.node.checkAnnounced(from); err != nil {
		return nil, err
	}
	meta := part.host.Meta()
	if meta == nil {
		return &ostrakapb.AnnounceResponse{Leader: string(part.metaLeader())}, nil
	}
	epoch, err := meta.SetNode(ctx, shard.NodeID(from.GetNodeId()), from.GetAddress(), from.GetIncarnation())
	switch {
	case errors.Is(err, raftfsm.ErrNotLeader):
		return &ostrakapb.AnnounceResponse{Leader: string(meta.Leader())}, nil
	case err != nil:
		return nil, err
	}
	return &ostrakapb.AnnounceResponse{Accepted: true, Epoch: uint64(epoch)}, nil
}

// checkAnnounced judges what the whole cluster would come to believe as strictly as the address book does what this
// node would.
func (n *Node) checkAnnounced(from *ostrakapb.Handshake) error {
	if err := checkReachable("address", from.GetAddress()); err != nil {
		return err
	}
	id := shard.NodeID(from.GetNodeId())
	known, member := n.Map().Node(id)
	switch {
	case !member:
		return fmt.Errorf("%w: %q", transport.ErrStranger, id)
	case id == n.NodeID():
		return fmt.Errorf("%w: only node %s itself says where it listens", transport.ErrWrongNode, id)
	case !plausible(from.GetIncarnation(), known.Incarnation):
		return fmt.Errorf("%w: node %s claims to be in start %d after %d", errIncarnationLeap, id, from.GetIncarnation(), known.Incarnation)
	}
	return nil
}
