package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// Errors of bootstrap.
var (
	// ErrAlreadyMember: a named node belongs to a cluster, or to another plan.
	ErrAlreadyMember = errors.New("already belongs to a cluster")
	// ErrBootstrapRequest: the request contradicts itself.
	ErrBootstrapRequest = errors.New("bootstrap request refused")
	// ErrNodeUnreachable: a named node did not answer; nothing was changed that a repeated bootstrap won't finish.
	ErrNodeUnreachable = errors.New("a named node can't be reached")
)

const (
	// DefaultShards is how many shards a cluster is cut into unless told otherwise: see
	// docs/decisions/0004-default-shards.md for the measurement.
	DefaultShards = 4
	// DefaultReplicas is how many copies of a shard there are unless told otherwise or the nodes are fewer.
	DefaultReplicas = 3
	shardsMax       = 256
	replicasMax     = 7
	planFormat      = 1
)

// Bootstrap makes one cluster of the named blank nodes, of which this must be one:
//
//	hello every node ─► all blank: draw up a plan ─► adopt it on every node ─► wait for a meta leader
//	                 └► some hold a plan for the same request: go on with that one
//	                 └► anything else: refuse, nothing changed
//
// Each step may be repeated, and the plan is on disk at the first node that adopted it, so a bootstrap that
// was cut off is finished by running it again.
func (n *Node) Bootstrap(ctx context.Context, req *ostrakapb.BootstrapRequest) (*ostrakapb.BootstrapResponse, error) {
	req, err := n.checkBootstrap(req)
	if err != nil {
		return nil, err
	}
	found, err := n.greetNamed(ctx, req)
	if err != nil {
		return nil, err
	}
	plan, holders, err := choosePlan(req, found)
	if err != nil {
		return nil, err
	}
	for _, spec := range req.GetNodes() {
		if err := n.adoptOn(ctx, spec, plan); err != nil {
			return nil, fmt.Errorf("node %s at %s did not adopt the plan; run the same command again to go on: %w",
				spec.GetId(), spec.GetAddress(), err)
		}
	}
	if err := n.awaitState(ctx); err != nil {
		return nil, err
	}
	return &ostrakapb.BootstrapResponse{ClusterId: plan.GetClusterId(), Shards: req.GetShards(), Replicas: req.GetReplicas(),
		Already: holders == len(req.GetNodes())}, nil
}

// checkBootstrap validates a request and returns it with its defaults filled in and its nodes in order, so
// that equal requests are equal messages.
func (n *Node) checkBootstrap(in *ostrakapb.BootstrapRequest) (*ostrakapb.BootstrapRequest, error) {
	req := proto.CloneOf(in)
	refuse := func(format string, args ...any) (*ostrakapb.BootstrapRequest, error) {
		return nil, fmt.Errorf("%w: %s", ErrBootstrapRequest, fmt.Sprintf(format, args...))
	}
	if len(req.GetNodes()) == 0 {
		return refuse("no nodes are named")
	}
	if req.Shards == 0 {
		req.Shards = DefaultShards
	}
	if req.Replicas == 0 {
		req.Replicas = uint32(min(DefaultReplicas, len(req.GetNodes())))
	}
	slices.SortFunc(req.Nodes, func(a, b *ostrakapb.NodeSpec) int { return cmpString(a.GetId(), b.GetId()) })
	named := false
	addresses := make(map[string]string)
	for i, spec := range req.GetNodes() {
		if err := CheckNodeID(spec.GetId()); err != nil {
			return refuse("%s", err)
		}
		if err := checkAddress("address of "+spec.GetId(), spec.GetAddress()); err != nil {
			return refuse("%s", err)
		}
		if i > 0 && req.Nodes[i-1].GetId() == spec.GetId() {
			return refuse("node %s is named twice", spec.GetId())
		}
		if other, taken := addresses[spec.GetAddress()]; taken {
			return refuse("nodes %s and %s have the same address %s", other, spec.GetId(), spec.GetAddress())
		}
		addresses[spec.GetAddress()] = spec.GetId()
		named = named || spec.GetId() == n.cfg.ID
	}
	switch {
	case !named:
		return refuse("node %s, which was asked, is not among the named: send it to one of them", n.cfg.ID)
	case req.GetShards() > shardsMax:
		return refuse("%d shards; 1 to %d are possible", req.GetShards(), shardsMax)
	case req.GetReplicas() > replicasMax:
		return refuse("%d replicas; 1 to %d are possible", req.GetReplicas(), replicasMax)
	case int(req.GetReplicas()) > len(req.GetNodes()):
		return refuse("%d replicas need as many nodes, %d are named", req.GetReplicas(), len(req.GetNodes()))
	}
	return req, nil
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// greetNamed says hello to every named node and returns their answers in the request's order.
func (n *Node) greetNamed(ctx context.Context, req *ostrakapb.BootstrapRequest) ([]*ostrakapb.HelloResponse, error) {
	found := make([]*ostrakapb.HelloResponse, len(req.GetNodes()))
	for i, spec := range req.GetNodes() {
		if spec.GetId() == n.cfg.ID {
			answer, err := n.helloAnswer()
			if err != nil {
				return nil, err
			}
			found[i] = answer
			continue
		}
		asked, cancel := context.WithTimeout(ctx, 5*time.Second)
		answer, err := n.helloNamed(asked, spec)
		cancel()
		if err != nil {
			return nil, err
		}
		found[i] = answer
	}
	return found, nil
}

func (n *Node) helloNamed(ctx context.Context, spec *ostrakapb.NodeSpec) (*ostrakapb.HelloResponse, error) {
	answer, err := n.hello(ctx, spec.GetAddress(), "")
	if err != nil {
		return nil, fmt.Errorf("%w: %s at %s: is its server running? %w", ErrNodeUnreachable, spec.GetId(), spec.GetAddress(), err)
	}
	if got := answer.GetSelf().GetNodeId(); got != spec.GetId() {
		return nil, fmt.Errorf("%w: at %s answers node %s, not %s", ErrBootstrapRequest, spec.GetAddress(), got, spec.GetId())
	}
	return answer, nil
}

// choosePlan returns the plan to carry out and how many of the named nodes hold it already.
func choosePlan(req *ostrakapb.BootstrapRequest, found []*ostrakapb.HelloResponse) (*ostrakapb.BootstrapPlan, int, error) {
	var plan *ostrakapb.BootstrapPlan
	holders := 0
	for _, answer := range found {
		held := answer.GetPlan()
		if held == nil {
			continue
		}
		holders++
		node, cluster := answer.GetSelf().GetNodeId(), held.GetClusterId()
		switch {
		case !proto.Equal(held.GetRequest(), req):
			return nil, 0, fmt.Errorf("%w: node %s is of cluster %s, which was made with other arguments", ErrAlreadyMember, node, cluster)
		case plan != nil && plan.GetClusterId() != cluster:
			return nil, 0, fmt.Errorf("%w: node %s is of cluster %s, another of %s", ErrAlreadyMember, node, cluster, plan.GetClusterId())
		}
		plan = held
	}
	if plan != nil {
		return plan, holders, nil
	}
	plan, err := newPlan(req)
	return plan, 0, err
}

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
		FormatLevel:   raftfsm.FormatLevel, Request: req}, nil
}

func (n *Node) adoptOn(ctx context.Context, spec *ostrakapb.NodeSpec, plan *ostrakapb.BootstrapPlan) error {
	if spec.GetId() == n.cfg.ID {
		_, err := n.adopt(plan)
		return err
	}
	return n.withConn(spec.GetAddress(), func(conn *grpc.ClientConn) error {
		_, err := ostrakapb.NewRaftClient(conn).Adopt(ctx, &ostrakapb.AdoptRequest{From: n.handshake(shard.NodeID(spec.GetId())), Plan: plan})
		return err
	})
}

// adopt makes a blank node part of a plan. A node that holds the same plan finishes what it had begun, or
// says that it has.
func (n *Node) adopt(plan *ostrakapb.BootstrapPlan) (already bool, err error) {
	n.adoption.Lock()
	defer n.adoption.Unlock()
	if plan.GetFormat() != planFormat {
		return false, fmt.Errorf("%w: plan of format %d, this build reads up to %d", ErrBootstrapRequest, plan.GetFormat(), planFormat)
	}
	if plan.GetClusterId() == "" {
		return false, fmt.Errorf("%w: the plan names no cluster", ErrBootstrapRequest)
	}
	if current := n.ClusterID(); current != "" && current != plan.GetClusterId() {
		return false, fmt.Errorf("%w: node %s is of cluster %s", ErrAlreadyMember, n.cfg.ID, current)
	}
	if n.membership.Load() != nil {
		return true, nil
	}
	if n.phase() == phaseBlank {
		if err := n.keepPlan(plan); err != nil {
			return false, err
		}
	}
	return false, n.join(plan)
}

// keepPlan writes the plan to node.json, after checking what join relies on: from then on the node is no
// longer blank.
func (n *Node) keepPlan(plan *ostrakapb.BootstrapPlan) error {
	if _, err := decodeMap(plan.GetMap()); err != nil {
		return fmt.Errorf("%w: %w", ErrBootstrapRequest, err)
	}
	if _, ok := memberOn(membersOf(plan.GetMeta()), n.NodeID()); !ok {
		return fmt.Errorf("%w: the plan does not name node %s", ErrBootstrapRequest, n.cfg.ID)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.identity.adopt(plan); err != nil {
		return err
	}
	return n.identity.save(n.cfg.FS, n.cfg.DataDir)
}

// awaitState waits until the new cluster's state is known here, which takes an election.
func (n *Node) awaitState(ctx context.Context) error {
	part := n.membership.Load()
	for {
		changed := part.meta.Changed()
		if part.meta.State() != nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the nodes have adopted the plan, but the meta group has elected no leader yet: %w", ctx.Err())
		}
	}
}
