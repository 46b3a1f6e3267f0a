package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ostraka-db/ostraka/proto"
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
	// DefaultReplicas is how many copies of a shard there are unless told otherwise or the nodes are fewer.
	DefaultReplicas = 3
)

// DefaultShards is how many shards a cluster is cut into unless told otherwise: as few as give every node equally many
// replicas, since each shard more divides the writes that share a round and a sync (docs/decisions/0004-default-shards.md has
// the measurement). Three replicas on 3 nodes make it 1, on 5 nodes 5, on 6 nodes 2.
func DefaultShards(nodes, replicas int) int {
	return min(nodes/greatestCommonDivisor(nodes, replicas), shardsMax)
}

func greatestCommonDivisor(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Bootstrap makes one cluster of the named blank nodes, of which this must be one:
//
//	hello every node ─► all blank: draw up a plan ─┬► pass 1: every node keeps the plan ─► pass 2: every node starts
//	                 ├► some hold a plan for the   │                                            │
//	                 │  same request: go on with it┘                            wait for a meta leader
//	                 ├► some are members already, others blank: refuse, their data is gone
//	                 └► anything else: refuse, nothing changed
//
// Each step may be repeated, and the plan is on disk at the first node that adopted it, so a bootstrap that
// was cut off is finished by running it again.
//
// Why two passes: nothing runs anywhere before every node holds the plan. So a node that is blank where others run has
// lost what it held, perhaps votes and acknowledged writes. Under its old replica ids it would be believed to have
// them still; with one more like it a majority could forget what was promised.
func (n *Node) Bootstrap(ctx context.Context, req *ostrakapb.BootstrapRequest) (*ostrakapb.BootstrapResponse, error) {
	req, err := n.checkBootstrap(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := leaveTimeToAnswer(ctx)
	defer cancel()
	found, err := n.greetNamed(ctx, req)
	if err != nil {
		return nil, err
	}
	plan, already, err := choosePlan(req, found)
	if err != nil {
		return nil, err
	}
	passes := []bool{false, true}
	if already {
		passes = nil // some may have been taken back since, and hold another plan
	}
	for _, start := range passes {
		for _, spec := range req.GetNodes() {
			if err := n.adoptOn(ctx, spec, plan, start); err != nil {
				return nil, fmt.Errorf("node %s at %s did not adopt the plan; run the same command again to go on: %w",
					spec.GetId(), spec.GetAddress(), err)
			}
		}
	}
	if err := n.awaitState(ctx); err != nil {
		return nil, err
	}
	return &ostrakapb.BootstrapResponse{ClusterId: plan.GetClusterId(), Shards: req.GetShards(), Replicas: req.GetReplicas(),
		Already: already}, nil
}

// answerTimeMax is the most that leaveTimeToAnswer sets aside.
const answerTimeMax = 2 * time.Second

// leaveTimeToAnswer ends a call's work while a quarter of its time is left. A named node that hangs takes all the time that
// it is given, and a caller whose own time is up by then would never be told which node it was.
func leaveTimeToAnswer(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/4, answerTimeMax)))
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
	if req.Replicas == 0 {
		req.Replicas = uint32(min(DefaultReplicas, len(req.GetNodes())))
	}
	if req.Shards == 0 {
		req.Shards = uint32(DefaultShards(len(req.GetNodes()), int(req.GetReplicas())))
	}
	slices.SortFunc(req.Nodes, func(a, b *ostrakapb.NodeSpec) int { return strings.Compare(a.GetId(), b.GetId()) })
	named := false
	addresses := make(map[string]string)
	for i, spec := range req.GetNodes() {
		if err := CheckNodeID(spec.GetId()); err != nil {
			return refuse("%s", err)
		}
		if err := checkReachable("address of "+spec.GetId(), spec.GetAddress()); err != nil {
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

// helloTimeout bounds the wait for one named node.
const helloTimeout = 5 * time.Second

// greetNamed says hello to all named nodes at once and returns their answers in the request's order, or an error that names
// every node that is away.
func (n *Node) greetNamed(ctx context.Context, req *ostrakapb.BootstrapRequest) ([]*ostrakapb.HelloResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	found, errs := make([]*ostrakapb.HelloResponse, len(req.GetNodes())), make([]error, len(req.GetNodes()))
	var asking sync.WaitGroup
	for i, spec := range req.GetNodes() {
		if spec.GetId() == n.cfg.ID {
			found[i] = n.helloAnswer()
			continue
		}
		asking.Go(func() { found[i], errs[i] = n.helloNamed(ctx, spec) })
	}
	asking.Wait()
	return found, errors.Join(errs...)
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

func (n *Node) adoptOn(ctx context.Context, spec *ostrakapb.NodeSpec, plan *ostrakapb.BootstrapPlan, start bool) error {
	if spec.GetId() == n.cfg.ID {
		_, err := n.adopt(plan, start)
		return err
	}
	return n.withConn(spec.GetAddress(), func(conn *grpc.ClientConn) error {
		_, err := ostrakapb.NewRaftClient(conn).Adopt(ctx, &ostrakapb.AdoptRequest{
			From: n.handshake(shard.NodeID(spec.GetId())), Plan: plan, Start: start})
		return err
	})
}

// adopt takes this node through one pass: without start a blank node keeps the plan, with it an adopting one becomes
// a member. A node that has passed that step already says so.
func (n *Node) adopt(plan *ostrakapb.BootstrapPlan, start bool) (already bool, err error) {
	n.adoption.Lock()
	defer n.adoption.Unlock()
	current := n.identity.Load()
	switch {
	case current.Phase == phaseBlank && start:
		return false, fmt.Errorf("%w: node %s is blank, and so has nothing to start", ErrBootstrapRequest, n.cfg.ID)
	case current.Phase == phaseBlank:
		if err := n.keepPlan(plan); err != nil {
			return false, err
		}
	case current.ClusterID != plan.GetClusterId():
		return false, fmt.Errorf("%w: node %s is of cluster %s", ErrAlreadyMember, n.cfg.ID, current.ClusterID)
	case !proto.Equal(current.plan, plan):
		return false, fmt.Errorf("%w: node %s holds another plan of cluster %s", ErrBootstrapRequest, n.cfg.ID, current.ClusterID)
	}
	stored := n.identity.Load()
	switch {
	case start && n.membership.Load() == nil:
		return false, n.join(stored.plan)
	case !start && stored.Phase == phaseAdopting:
		return current.Phase == phaseAdopting, n.prepare(stored.plan)
	}
	return true, nil
}

// keepPlan writes the plan to node.json: from then on the node is no longer blank.
func (n *Node) keepPlan(plan *ostrakapb.BootstrapPlan) error {
	if err := checkPlan(plan, n.NodeID()); err != nil {
		return err
	}
	if err := n.changeIdentity(func(id *identity) error { return id.adopt(plan) }); err != nil {
		return err
	}
	return n.meetPlanned(n.identity.Load().plan)
}

// meetPlanned lets the address book take the nodes of a plan for members.
func (n *Node) meetPlanned(plan *ostrakapb.BootstrapPlan) error {
	m, err := decodeMap(plan.GetMap())
	if err != nil {
		return err
	}
	n.book.learnMap(m)
	return nil
}

// awaitState waits until the new cluster's state is known here, which takes an election.
func (n *Node) awaitState(ctx context.Context) error {
	beat := time.NewTicker(10 * time.Millisecond)
	defer beat.Stop()
	for {
		if part := n.membership.Load(); part != nil && part.state() != nil {
			return nil
		}
		select {
		case <-beat.C:
		case <-ctx.Done():
			return fmt.Errorf("the nodes have adopted the plan, but the meta group has elected no leader yet: %w", ctx.Err())
		}
	}
}
