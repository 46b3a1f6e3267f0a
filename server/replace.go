package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// replacer gives a node's replicas fresh ids. Node implements it.
type replacer interface {
	Replace(context.Context, *ostrakapb.ReplaceRequest) (*ostrakapb.ReplaceResponse, error)
}

// Replace gives the place of one, or all, of a node's replicas to fresh ones on the same node. Every group is asked first;
// if one can't do without its replica, nothing is done. Errors: errField, ErrNotSpared, ErrLastVoter, those of writes.
func (n *Node) Replace(ctx context.Context, req *ostrakapb.ReplaceRequest) (*ostrakapb.ReplaceResponse, error) {
	part := n.membership.Load()
	if part == nil || part.state() == nil {
		return nil, whyNoMap(n)
	}
	meta := part.host.Meta()
	if meta == nil || !meta.IsLeader() {
		return n.forwardReplace(ctx, part, req)
	}
	state, node := part.state(), shard.NodeID(req.GetNode())
	groups, err := groupsToReplace(state, req)
	if err != nil {
		return nil, err
	}
	for _, group := range groups {
		old, _ := state.MemberOn(group, node)
		if err := n.spared(ctx, state, group, old.Replica); err != nil {
			return nil, err
		}
	}
	answer := new(ostrakapb.ReplaceResponse)
	slices.Reverse(groups) // the meta group last: if its leader is to be replaced, it hands over as soon as that is said
	for _, group := range groups {
		old, _ := state.MemberOn(group, node)
		fresh, err := n.replace(ctx, part, meta, group, old.Replica)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("shard %d on %s", group, node), err)
		}
		answer.Replaced = append(answer.Replaced, &ostrakapb.ReplacedReplica{Shard: uint32(group), Old: uint64(old.Replica), Fresh: uint64(fresh)})
	}
	slices.Reverse(answer.Replaced)
	return answer, nil
}

// groupsToReplace are the groups that a request names.
func groupsToReplace(state *raftfsm.ClusterState, req *ostrakapb.ReplaceRequest) ([]shard.ID, error) {
	node := shard.NodeID(req.GetNode())
	if _, ok := state.Map.Node(node); !ok {
		return nil, &fieldError{"node", fmt.Sprintf("%q is not a node of this cluster", node)}
	}
	if req.Shard == nil {
		return state.GroupsOn(node), nil
	}
	group := shard.ID(req.GetShard())
	if _, ok := state.MemberOn(group, node); !ok {
		return nil, &fieldError{"shard", fmt.Sprintf("%s holds no replica of shard %d", node, group)}
	}
	return []shard.ID{group}, nil
}

// forwardReplace passes a request on to the meta group's leader.
func (n *Node) forwardReplace(ctx context.Context, part *membership, req *ostrakapb.ReplaceRequest) (*ostrakapb.ReplaceResponse, error) {
	leader := part.metaLeader()
	if leader == "" || leader == n.NodeID() || req.GetForwarded() {
		return nil, &raftfsm.NotLeaderError{Group: shard.MetaGroup, Leader: leader}
	}
	conn, err := n.transport.Conn(leader)
	if err != nil {
		return nil, err
	}
	return ostrakapb.NewAdminClient(conn).Replace(ctx, &ostrakapb.ReplaceRequest{Node: req.GetNode(), Shard: req.Shard, Forwarded: true})
}
