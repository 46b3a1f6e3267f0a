package server

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
	"github.com/ostraka-db/ostraka/store"
)

// verifier compares the replicas of a shard. Node implements it.
type verifier interface {
	Verify(context.Context, *ostrakapb.VerifyRequest) (*ostrakapb.VerifyResponse, error)
}

// Verify implements ostrakapb.AdminServer: as the shard's leader, or by passing it on to that.
func (n *Node) Verify(ctx context.Context, req *ostrakapb.VerifyRequest) (*ostrakapb.VerifyResponse, error) {
	part := n.membership.Load()
	if part == nil {
		return nil, whyNoMap(n)
	}
	id := shard.ID(req.GetShard())
	described, ok := part.newestMap().Shard(id)
	if !ok || req.GetFrom() > store.SlotCount {
		return nil, &fieldError{"shard", fmt.Sprintf("there is no shard %d, or no slot %d", id, req.GetFrom())}
	}
	result, err := part.host.Verify(ctx, id, uint16(req.GetFrom()), true)
	if err == nil {
		return verifyResponse(result), nil
	}
	lead, elsewhere := errors.AsType[*raftfsm.NotLeaderError](err)
	if !elsewhere || req.GetForwarded() {
		return nil, &shardError{shard: id, err: err}
	}
	to := lead.Leader
	if to == "" {
		to = described.Preferred // who has no replica of it knows no leader
	}
	if to == n.NodeID() {
		return nil, &shardError{shard: id, err: err}
	}
	conn, err := n.transport.Conn(to)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNodeUnreachable, err)
	}
	return ostrakapb.NewAdminClient(conn).Verify(ctx, &ostrakapb.VerifyRequest{Shard: req.GetShard(), From: req.GetFrom(), Forwarded: true})
}

func verifyResponse(v *raftfsm.Verification) *ostrakapb.VerifyResponse {
	answer := &ostrakapb.VerifyResponse{From: uint32(v.From), To: uint32(v.To), Slots: uint32(v.Slots), More: v.More, Index: v.Index, Keys: v.Keys, Bytes: v.Bytes}
	for _, r := range v.Replicas {
		told := &ostrakapb.VerifiedReplica{Replica: uint64(r.Replica), Node: string(r.Node)}
		if r.Err != nil {
			told.Error = r.Err.Error()
		}
		answer.Replicas = append(answer.Replicas, told)
	}
	for _, d := range v.Differences {
		told := &ostrakapb.SlotDifference{Slot: uint32(d.Slot), Odd: replicaIDs(d.Odd), Fenced: replicaIDs(d.Fenced), Text: d.String()}
		if d.NotFenced != nil {
			told.NotFenced = d.NotFenced.Error()
		}
		answer.Differences = append(answer.Differences, told)
	}
	return answer
}

func replicaIDs(members []raftfsm.Member) (ids []uint64) {
	for _, m := range members {
		ids = append(ids, uint64(m.Replica))
	}
	return ids
}

// SlotSums implements raftfsm.VerifyPeers.
func (v *clusterView) SlotSums(ctx context.Context, group shard.ID, m raftfsm.Member, index uint64, asked bool) ([]raftfsm.SlotSum, error) {
	if m.Node == v.node.NodeID() {
		return v.part.host.SlotSums(ctx, group, m.Replica, index, asked)
	}
	client, err := v.node.members(m.Node)
	if err != nil {
		return nil, err
	}
	answer, err := client.SlotSums(ctx, &ostrakapb.SlotSumsRequest{From: v.node.handshake(m.Node), Group: uint32(group), Replica: uint64(m.Replica),
		Index: index, Asked: asked})
	if err != nil {
		return nil, err
	}
	return decodeSums(answer.GetSums())
}

// SlotSums implements ostrakapb.MembersServer.
func (s *membersService) SlotSums(ctx context.Context, req *ostrakapb.SlotSumsRequest) (*ostrakapb.SlotSumsResponse, error) {
	part, err := s.asked(req.GetFrom())
	if err != nil {
		return nil, err
	}
	sums, err := part.host.SlotSums(ctx, shard.ID(req.GetGroup()), shard.ReplicaID(req.GetReplica()), req.GetIndex(), req.GetAsked())
	if err != nil {
		return nil, err
	}
	return &ostrakapb.SlotSumsResponse{Sums: encodeSums(sums)}, nil
}

func encodeSums(sums []raftfsm.SlotSum) []*ostrakapb.SlotSum {
	encoded := make([]*ostrakapb.SlotSum, len(sums))
	for i, s := range sums {
		encoded[i] = &ostrakapb.SlotSum{Slot: uint32(s.Slot), Kept: encodeFigures(s.Kept)}
		if s.Counted != s.Kept {
			encoded[i].Counted = encodeFigures(s.Counted)
		}
	}
	return encoded
}

func encodeFigures(s store.Stats) *ostrakapb.SlotFigures {
	return &ostrakapb.SlotFigures{Keys: s.Keys, Bytes: s.Bytes, Expiring: s.Expiring, Checksum: s.Checksum}
}

func decodeSums(encoded []*ostrakapb.SlotSum) ([]raftfsm.SlotSum, error) {
	sums := make([]raftfsm.SlotSum, len(encoded))
	for i, e := range encoded {
		if e.GetSlot() >= store.SlotCount {
			return nil, fmt.Errorf("%w: slot %d", errField, e.GetSlot())
		}
		sums[i] = raftfsm.SlotSum{Slot: uint16(e.GetSlot()), Kept: decodeFigures(e.GetKept())}
		if sums[i].Counted = sums[i].Kept; e.GetCounted() != nil {
			sums[i].Counted = decodeFigures(e.GetCounted())
		}
	}
	return sums, nil
}

func decodeFigures(f *ostrakapb.SlotFigures) store.Stats {
	return store.Stats{Keys: f.GetKeys(), Bytes: f.GetBytes(), Expiring: f.GetExpiring(), Checksum: f.GetChecksum()}
}

// Fence implements raftfsm.VerifyPeers.
func (v *clusterView) Fence(ctx context.Context, group shard.ID, m raftfsm.Member, why string) error {
	if m.Node == v.node.NodeID() {
		return v.node.fence(v.part, group, m.Replica, why)
	}
	client, err := v.node.members(m.Node)
	if err != nil {
		return err
	}
	_, err = client.Fence(ctx, v.node.standingRequest(m.Node, group, m.Replica))
	return err
}

// errNotOdd: a replica was to be stopped whose group's leader has nothing against it.
var errNotOdd = fmt.Errorf("%w: the group's leader says nothing against the replica", raftfsm.ErrBadMeta)

// Fence implements ostrakapb.MembersServer. Whoever reaches the port can send it, so the node that it names is asked, where the address
// book has it.
func (s *membersService) Fence(ctx context.Context, req *ostrakapb.StandingRequest) (*ostrakapb.FenceResponse, error) {
	part, err := s.asked(req.GetFrom())
	if err != nil {
		return nil, err
	}
	leader, group, id := shard.NodeID(req.GetFrom().GetNodeId()), shard.ID(req.GetGroup()), shard.ReplicaID(req.GetReplica())
	client, err := s.node.members(leader)
	if err != nil {
		return nil, err
	}
	answer, err := client.Odd(ctx, s.node.standingRequest(leader, group, id))
	switch {
	case err != nil:
		return nil, err
	case answer.GetWhy() == "":
		return nil, errNotOdd
	}
	if err := s.node.fence(part, group, id, answer.GetWhy()); err != nil {
		return nil, err
	}
	return &ostrakapb.FenceResponse{}, nil
}

// Odd implements ostrakapb.MembersServer.
func (s *membersService) Odd(_ context.Context, req *ostrakapb.StandingRequest) (*ostrakapb.OddResponse, error) {
	part, err := s.asked(req.GetFrom())
	if err != nil {
		return nil, err
	}
	why, _ := part.host.Odd(shard.ID(req.GetGroup()), shard.ReplicaID(req.GetReplica()))
	return &ostrakapb.OddResponse{Why: why}, nil
}

// errOdd is why a fenced replica is lost.
var errOdd = errors.New("its contents differ from its peers'")

// fence stops a replica of this node for good: it is noted durably, since the replica would start again with what it wrote from its
// memory, and reported like one that lost its data.
func (n *Node) fence(part *membership, group shard.ID, id shard.ReplicaID, why string) error {
	n.adoption.Lock()
	defer n.adoption.Unlock()
	held, ok := n.identity.Load().holdings(part.planned)[group]
	if !ok || held.ID != id {
		return fmt.Errorf("%w: %w: replica %d of shard %d", raftfsm.ErrBadMeta, raftfsm.ErrStaleReplica, id, group)
	}
	if held.Fenced != "" || n.draining.Load() {
		return nil
	}
	held.Fenced = why
	if err := n.changeIdentity(func(id *identity) error { id.hold(group, held); return nil }); err != nil {
		return err
	}
	n.cfg.Logger.Error("a replica differs from its peers; it stops, and is to be replaced", "shard", group, "replica", id, "why", why)
	if err := part.host.Drop(group); err != nil {
		n.cfg.Logger.Warn("stopping a replica that differs", "shard", group, "error", err)
	}
	part.setLost(group, &lostReplica{id: id, why: fmt.Errorf("%w: %s", errOdd, why)})
	return nil
}

// verifyCollector reports on the comparison of replicas at the time of the scrape.
type verifyCollector struct {
	node                                     nodeView
	slots, passes, differences, fenced, keys *prometheus.Desc
	alarm                                    *prometheus.Desc // shard
}

func newVerifyCollector(node nodeView) *verifyCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("ostraka_verify_"+name, help, labels, nil)
	}
	return &verifyCollector{
		node:        node,
		slots:       desc("slots_total", "Slots in which leaders here compared their shard's replicas."),
		passes:      desc("passes_total", "Times that leaders here came to the end of a shard."),
		differences: desc("differences_total", "Slots in which replicas differed. Each is a fault of hardware or program."),
		fenced:      desc("fenced_total", "Replicas that leaders here had stopped, to be replaced, because they differed."),
		keys:        desc("keys_total", "Keys that were counted in memory here."),
		alarm:       desc("alarm", "1 for a shard led here whose replicas differed when they were last compared.", "shard"),
	}
}

// Describe implements prometheus.Collector.
func (c *verifyCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.slots, c.passes, c.differences, c.fenced, c.keys, c.alarm} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *verifyCollector) Collect(out chan<- prometheus.Metric) {
	host := c.node.Host()
	if host == nil {
		return
	}
	s := host.VerifyStats()
	for d, n := range map[*prometheus.Desc]uint64{c.slots: s.Slots, c.passes: s.Passes, c.differences: s.Differences, c.fenced: s.Fenced, c.keys: s.Keys} {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
	}
	for _, g := range host.Groups() {
		if g.IsLeader() {
			out <- prometheus.MustNewConstMetric(c.alarm, prometheus.GaugeValue, flag(g.Alarm() != ""), strconv.FormatUint(uint64(g.Shard()), 10))
		}
	}
}
