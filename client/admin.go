package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/shard"
)

// Admin talks to nodes that need not belong to a cluster yet. Safe for use by many goroutines.
type Admin struct {
	cfg       config
	endpoints []string
	pool      *pool
}

// NewAdmin prepares to talk to the nodes at these addresses ("host:port"). It connects to nothing yet.
// Errors: ErrInvalid, ErrNoEndpoint for an empty list.
func NewAdmin(endpoints []string, opts ...Option) (*Admin, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	if endpoints, err = cleanEndpoints(endpoints); err != nil {
		return nil, err
	}
	return &Admin{cfg: cfg, endpoints: endpoints, pool: newPool(&cfg)}, nil
}

// Close closes the connections; calls under way end with an error.
func (a *Admin) Close() error {
	a.pool.close()
	return nil
}

// NodeSpec names a node of a cluster to be.
type NodeSpec struct {
	ID, Address, Zone string
}

// BootstrapSpec is a plan for a new cluster.
type BootstrapSpec struct {
	Nodes []NodeSpec
	// Shards to cut the slots into, 1..256; 0: as few as give every node equally many replicas, which is one for three nodes.
	Shards int
	// Replicas of each shard, 1..7; 0: 3, or the number of nodes where that is less.
	Replicas int
}

// BootstrapResult tells what cluster there is now.
type BootstrapResult struct {
	ClusterID string `json:"cluster_id"`
	Shards    int    `json:"shards"`
	Replicas  int    `json:"replicas"`
	// Already: an earlier call with the same plan had made it.
	Already bool `json:"already"`
}

// Bootstrap makes one cluster of blank nodes. It is safe to repeat with the same plan, and does so itself
// within its deadline as long as the nodes are not all reachable.
//
// Errors: ErrAlreadyMember if a node belongs to another cluster or plan, ErrInvalid for a plan that cannot be,
// ErrNoEndpoint or ErrUnavailable if nodes cannot be reached in time.
func (a *Admin) Bootstrap(ctx context.Context, spec BootstrapSpec) (BootstrapResult, error) {
	if spec.Shards < 0 || spec.Replicas < 0 {
		return BootstrapResult{}, &InvalidError{Field: "shards and replicas", Message: "must not be negative"}
	}
	req := &ostrakapb.BootstrapRequest{Shards: uint32(spec.Shards), Replicas: uint32(spec.Replicas)}
	for _, n := range spec.Nodes {
		req.Nodes = append(req.Nodes, &ostrakapb.NodeSpec{Id: n.ID, Address: n.Address, Zone: n.Zone})
	}
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	var resp *ostrakapb.BootstrapResponse
	if err := a.insist(ctx, func(ctx context.Context, n *node) (err error) {
		resp, err = n.admin.Bootstrap(ctx, req)
		return err
	}); err != nil {
		return BootstrapResult{}, fmt.Errorf("bootstrap: %w", err)
	}
	return BootstrapResult{
		ClusterID: resp.GetClusterId(),
		Shards:    int(resp.GetShards()),
		Replicas:  int(resp.GetReplicas()),
		Already:   resp.GetAlready(),
	}, nil
}

// roundMin is the least time that is worth another round: with less, nodes that are well would seem to be away.
const roundMin = 200 * time.Millisecond

// insist asks any node, again and again until the deadline as long as what was asked for could not be done yet.
func (a *Admin) insist(ctx context.Context, ask func(context.Context, *node) error) error {
	// said is what nodes had to say last. A round that the deadline cuts off hears nothing of them.
	var said error
	for round := 1; ; round++ {
		err := a.any(ctx, ask)
		if err == nil {
			return nil
		}
		if said == nil || !errors.Is(err, ErrNoEndpoint) {
			said = err
		}
		again := errors.Is(err, ErrUnavailable) && sleep(ctx, backOff(round))
		if deadline, _ := ctx.Deadline(); !again || time.Until(deadline) < roundMin {
			return said
		}
	}
}

// ReplacedReplica is a replica whose place on its node was given to a fresh one.
type ReplacedReplica struct {
	// Shard is 0 for the replica of the cluster's own state.
	Shard shard.ID        `json:"shard"`
	Old   shard.ReplicaID `json:"old"`
	Fresh shard.ReplicaID `json:"fresh"`
}

// Replace gives the place of replicas on a node to fresh ones on the same node: their data are wiped and come again from
// the others. With shards it is about the replicas of those alone, else about all of the node's. It returns once that is
// decided; Status tells how far it has come. Within its deadline it tries again while nobody leads, or a group can't do
// without its replica.
//
// Errors: ErrInvalid for a node or shard that isn't there, ErrUnavailable, ErrNoEndpoint. ErrUnavailable also where a group
// can't do without its replica, and then nothing was done.
func (a *Admin) Replace(ctx context.Context, id string, shards ...uint32) ([]ReplacedReplica, error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	requests := []*ostrakapb.ReplaceRequest{{Node: id}}
	if len(shards) > 0 {
		requests = nil
		for _, one := range shards {
			requests = append(requests, &ostrakapb.ReplaceRequest{Node: id, Shard: &one})
		}
	}
	var replaced []ReplacedReplica
	for _, req := range requests {
		var resp *ostrakapb.ReplaceResponse
		if err := a.insist(ctx, func(ctx context.Context, n *node) (err error) {
			resp, err = n.admin.Replace(ctx, req)
			return err
		}); err != nil {
			return replaced, fmt.Errorf("replace: %w", err)
		}
		for _, r := range resp.GetReplaced() {
			replaced = append(replaced, ReplacedReplica{shard.ID(r.GetShard()), shard.ReplicaID(r.GetOld()), shard.ReplicaID(r.GetFresh())})
		}
	}
	return replaced, nil
}

// Status tells the state of the cluster, or of a blank node. Errors: ErrNoEndpoint, ErrUnavailable.
func (a *Admin) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	var resp *ostrakapb.StatusResponse
	err := a.any(ctx, func(ctx context.Context, n *node) (err error) {
		resp, err = n.admin.Status(ctx, &ostrakapb.StatusRequest{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return statusFromProto(resp), nil
}

// Status tells the state of the cluster, as one of its nodes sees it. Errors: ErrUnavailable.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	var resp *ostrakapb.StatusResponse
	err := askAny(ctx, c.askingOrder(), func(ctx context.Context, n *node) (err error) {
		resp, err = n.admin.Status(ctx, &ostrakapb.StatusRequest{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return statusFromProto(resp), nil
}

func (a *Admin) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, a.cfg.timeout)
}

// any asks the endpoints in their order.
func (a *Admin) any(ctx context.Context, ask func(context.Context, *node) error) error {
	var nodes []*node
	for _, e := range a.endpoints {
		n, err := a.pool.node(e)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
	}
	return askAny(ctx, nodes, ask)
}

// askAny asks one node after the other until one answers, or refuses for good. It is for requests that may be
// asked twice, so that all failures count as not done. ErrNoEndpoint: no node was heard of at all.
func askAny(ctx context.Context, nodes []*node, ask func(context.Context, *node) error) error {
	errs := []error{ErrNoEndpoint}
	for i, n := range nodes {
		err := askInTurn(ctx, n, len(nodes)-i, ask)
		if err == nil {
			return nil
		}
		f := understand(err, false, false)
		if f.remedy == giveUp {
			return f.err
		}
		if f.detail != nil {
			errs[0] = ErrUnavailable
		}
		errs = append(errs, fmt.Errorf("%s: %w", n.address, f.err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// askInTurn gives a node its share of the time that is left, so that one that hangs does not use it all up.
func askInTurn(ctx context.Context, n *node, nodesLeft int, ask func(context.Context, *node) error) error {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(nodesLeft))
		defer cancel()
	}
	return ask(ctx, n)
}

// Status is the cluster's state, in the form that `ostraka cluster status --json` prints.
type Status struct {
	ClusterID string `json:"cluster_id"`
	// Epoch of the map; 0: the node is blank.
	Epoch       uint64        `json:"epoch"`
	FormatLevel uint32        `json:"format_level"`
	MetaLeader  string        `json:"meta_leader"`
	Nodes       []NodeStatus  `json:"nodes"`
	Shards      []ShardStatus `json:"shards"`
}

// NodeStatus is one node's state.
type NodeStatus struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	// State: "up", "unreachable", "draining", "blank", "adopting", or "superseded": the cluster has taken the node back without
	// its data since, so that what this one holds counts no more.
	State       string `json:"state"`
	Zone        string `json:"zone,omitempty"`
	Build       string `json:"build,omitempty"`
	Incarnation uint64 `json:"incarnation"`
	FormatLevel uint32 `json:"format_level"`
	// Sync: "always", or "interval": then a power cut can lose what was acknowledged last.
	Sync string `json:"sync,omitempty"`
	// MetaReplica is the state of the node's replica of the cluster's own state, as ReplicaStatus.State.
	MetaReplica string `json:"meta_replica,omitempty"`
	// MemoryBytes is what all replicas of the node take in memory, MemoryLimitBytes its limit; 0: none. MemoryOver: writes that
	// would take more are refused by every shard with a voter on it.
	MemoryBytes      uint64 `json:"memory_bytes,omitempty"`
	MemoryLimitBytes uint64 `json:"memory_limit_bytes,omitempty"`
	MemoryOver       bool   `json:"memory_over,omitempty"`
}

// ShardStatus is one shard's state; Leader, Term, Keys and Bytes are its leader's account.
type ShardStatus struct {
	ID shard.ID `json:"id"`
	// Slots is their number, Ranges which, as Redis writes them: "0-5460", inclusive.
	Slots     int             `json:"slots"`
	Ranges    []string        `json:"ranges"`
	Leader    string          `json:"leader"`
	Preferred string          `json:"preferred"`
	Replicas  []ReplicaStatus `json:"replicas"`
	Term      uint64          `json:"term"`
	Keys      uint64          `json:"keys"`
	Bytes     uint64          `json:"bytes"`
	// Alarm: in which slots replicas differed when they were last compared; empty: in none.
	Alarm string `json:"alarm,omitempty"`
}

// ReplicaStatus is one replica's state.
type ReplicaStatus struct {
	ID   shard.ReplicaID `json:"id"`
	Node string          `json:"node"`
	// Role: "leader", "follower", "candidate", "shutdown"; empty: its node was not reached.
	Role string `json:"role"`
	// State: "ok"; "catching up": it has no vote yet; "damaged": it lost data and is to be replaced; empty: its node was not
	// reached.
	State         string `json:"state,omitempty"`
	Voter         bool   `json:"voter"`
	Term          uint64 `json:"term"`
	CommitIndex   uint64 `json:"commit_index"`
	AppliedIndex  uint64 `json:"applied_index"`
	SnapshotIndex uint64 `json:"snapshot_index"`
	Keys          uint64 `json:"keys"`
	Bytes         uint64 `json:"bytes"`
	// Checksum of the contents; replicas that have applied the same index have the same.
	Checksum uint64 `json:"checksum,string"`
}

func statusFromProto(p *ostrakapb.StatusResponse) *Status {
	s := &Status{
		ClusterID:   p.GetClusterId(),
		Epoch:       p.GetEpoch(),
		FormatLevel: p.GetFormatLevel(),
		MetaLeader:  p.GetMetaLeader(),
		Nodes:       []NodeStatus{},
		Shards:      []ShardStatus{},
	}
	for _, n := range p.GetNodes() {
		s.Nodes = append(s.Nodes, NodeStatus{
			ID:          n.GetId(),
			Address:     n.GetAddress(),
			State:       n.GetState(),
			Zone:        n.GetZone(),
			Build:       n.GetBuild(),
			Incarnation: n.GetIncarnation(),
			FormatLevel: n.GetFormatLevel(),
			Sync:        n.GetSync(),
			MetaReplica: n.GetMetaReplica(),

			MemoryBytes:      n.GetMemoryBytes(),
			MemoryLimitBytes: n.GetMemoryLimitBytes(),
			MemoryOver:       n.GetMemoryOver(),
		})
	}
	for _, sh := range p.GetShards() {
		s.Shards = append(s.Shards, shardStatusFromProto(sh))
	}
	return s
}

func shardStatusFromProto(p *ostrakapb.ShardStatus) ShardStatus {
	s := ShardStatus{
		ID:        shard.ID(p.GetId()),
		Slots:     int(p.GetSlots()),
		Ranges:    append([]string{}, p.GetRanges()...),
		Leader:    p.GetLeader(),
		Preferred: p.GetPreferred(),
		Replicas:  []ReplicaStatus{},
		Term:      p.GetTerm(),
		Keys:      p.GetKeys(),
		Bytes:     p.GetBytes(),
		Alarm:     p.GetAlarm(),
	}
	for _, r := range p.GetReplicas() {
		s.Replicas = append(s.Replicas, ReplicaStatus{
			ID:            shard.ReplicaID(r.GetReplica()),
			Node:          r.GetNode(),
			Role:          r.GetRole(),
			State:         r.GetState(),
			Voter:         r.GetVoter(),
			Term:          r.GetTerm(),
			CommitIndex:   r.GetCommitIndex(),
			AppliedIndex:  r.GetAppliedIndex(),
			SnapshotIndex: r.GetSnapshotIndex(),
			Keys:          r.GetKeys(),
			Bytes:         r.GetBytes(),
			Checksum:      r.GetChecksum(),
		})
	}
	return s
}
