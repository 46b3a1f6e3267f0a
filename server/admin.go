package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/shard"
)

// bootstrapper makes a cluster of blank nodes. Node implements it.
type bootstrapper interface {
	Bootstrap(context.Context, *ostrakapb.BootstrapRequest) (*ostrakapb.BootstrapResponse, error)
}

// States of a node, as NodeStatus gives them.
const (
	stateUp          = "up"
	stateBlank       = "blank"
	stateAdopting    = "adopting"
	stateDraining    = "draining"
	stateUnreachable = "unreachable"
	stateSuperseded  = "superseded"
)

// States of a replica, as ReplicaStatus gives them.
const (
	replicaOK         = "ok"
	replicaCatchingUp = "catching up"
	replicaDamaged    = "damaged"
)

const roleLeader = "leader"

// peerStatusTimeout bounds the wait for one node's part of a cluster's status: who has not answered by then is
// as good as unreachable to whoever asks.
const peerStatusTimeout = time.Second

// adminService tells of the cluster. Unlike KV it answers on blank and draining nodes too.
type adminService struct {
	ostrakapb.UnimplementedAdminServer
	bootstrapper
	replacer
	verifier
	node     nodeView
	replicas replicaSet
}

func newAdminService(node nodeView, b bootstrapper, r replacer, v verifier) *adminService {
	return &adminService{bootstrapper: b, replacer: r, verifier: v, node: node, replicas: hostReplicas{node}}
}

// Replace implements ostrakapb.AdminServer.
func (s *adminService) Replace(ctx context.Context, r *ostrakapb.ReplaceRequest) (*ostrakapb.ReplaceResponse, error) {
	return s.replacer.Replace(ctx, r)
}

// Verify implements ostrakapb.AdminServer.
func (s *adminService) Verify(ctx context.Context, r *ostrakapb.VerifyRequest) (*ostrakapb.VerifyResponse, error) {
	return s.verifier.Verify(ctx, r)
}

// Bootstrap implements ostrakapb.AdminServer.
func (s *adminService) Bootstrap(ctx context.Context, r *ostrakapb.BootstrapRequest) (*ostrakapb.BootstrapResponse, error) {
	return s.bootstrapper.Bootstrap(ctx, r)
}

// Map implements ostrakapb.AdminServer.
func (s *adminService) Map(_ context.Context, r *ostrakapb.MapRequest) (*ostrakapb.MapResponse, error) {
	m := s.node.Map()
	if m == nil {
		return nil, whyNoMap(s.node)
	}
	limits := s.node.Limits()
	answer := &ostrakapb.MapResponse{ClusterId: s.node.ClusterID(), FormatLevel: s.node.FormatLevel(),
		KeyBytesMax: int64(limits.KeyBytesMax), ValueBytesMax: int64(limits.ValueBytesMax)}
	if r.GetKnownEpoch() < uint64(m.Epoch()) {
		answer.Map = encodeMap(m)
	}
	leaders := s.replicas.leaders()
	for _, id := range slices.Sorted(maps.Keys(leaders)) {
		hint := &ostrakapb.LeaderHint{Shard: uint32(id), Node: string(leaders[id])}
		if r, ok := s.replicas.replica(id); ok {
			hint.ShardTimeMs = int64(r.SessionTime())
		}
		answer.Leaders = append(answer.Leaders, hint)
	}
	return answer, nil
}

// Status implements ostrakapb.AdminServer. What the whole cluster says is merged from every node's own part,
// and is no consistent picture: each node answered at its own moment.
func (s *adminService) Status(ctx context.Context, r *ostrakapb.StatusRequest) (*ostrakapb.StatusResponse, error) {
	m := s.node.Map()
	if m == nil || r.GetLocal() {
		return s.local(m), nil
	}
	parts := s.askAll(ctx, m)
	answer := &ostrakapb.StatusResponse{ClusterId: s.node.ClusterID(), Epoch: uint64(m.Epoch()),
		FormatLevel: s.node.FormatLevel(), MetaLeader: string(s.node.MetaLeader())}
	shards := describeShards(m)
	for i, described := range m.Nodes() {
		answer.Nodes = append(answer.Nodes, nodeOf(parts[i], described))
		for _, part := range parts[i].GetShards() {
			if whole := shards[shard.ID(part.GetId())]; whole != nil {
				whole.Replicas = append(whole.Replicas, part.GetReplicas()...)
				whole.Alarm = cmp.Or(whole.Alarm, part.GetAlarm()) // the leader's; others have none
			}
		}
	}
	for _, described := range m.Shards() {
		whole := shards[described.ID]
		summarize(whole)
		answer.Shards = append(answer.Shards, whole)
	}
	return answer, nil
}

// local is this node's part. m is nil while the node is blank or starting.
func (s *adminService) local(m *shard.Map) *ostrakapb.StatusResponse {
	self := s.node.NodeID()
	address, _ := s.node.Address(self)
	node := &ostrakapb.NodeStatus{Id: string(self), Address: address, State: stateUp, Build: buildVersion(),
		Incarnation: s.node.Incarnation(), FormatLevel: s.node.FormatLevel(), Sync: s.node.Sync()}
	answer := &ostrakapb.StatusResponse{ClusterId: s.node.ClusterID(), FormatLevel: s.node.FormatLevel(),
		MetaLeader: string(s.node.MetaLeader()), Nodes: []*ostrakapb.NodeStatus{node}}
	switch {
	case s.node.Draining():
		node.State = stateDraining
	case s.node.Superseded():
		node.State = stateSuperseded
	case answer.ClusterId == "":
		node.State = stateBlank
	case s.node.Adopting():
		node.State = stateAdopting
	}
	if m == nil {
		return answer
	}
	answer.Epoch = uint64(m.Epoch())
	if host := s.node.Host(); host != nil {
		use := host.Memory()
		node.MemoryBytes, node.MemoryLimitBytes, node.MemoryOver = uint64(use.Used), uint64(use.Limit), use.Over
	}
	if described, ok := m.Node(self); ok {
		node.Zone = described.Zone
	}
	shards := describeShards(m)
	for _, st := range s.replicas.statuses() {
		if st.Shard == shard.MetaGroup {
			node.MetaReplica = replicaState(st, len(m.Nodes()) <= raftfsm.MetaVotersMax)
			continue
		}
		part := shards[st.Shard]
		if part == nil {
			part = &ostrakapb.ShardStatus{Id: uint32(st.Shard)}
		}
		part.Replicas, part.Alarm = []*ostrakapb.ReplicaStatus{replicaStatus(self, st)}, st.Alarm
		summarize(part)
		part.Leader = string(st.Leader) // a follower believes in one too
		answer.Shards = append(answer.Shards, part)
	}
	return answer
}

func replicaStatus(node shard.NodeID, st raftfsm.Status) *ostrakapb.ReplicaStatus {
	return &ostrakapb.ReplicaStatus{Shard: uint32(st.Shard), Replica: uint64(st.Replica), Node: string(node), Role: st.Role,
		Term: st.Term, CommitIndex: st.Commit, AppliedIndex: st.Applied, SnapshotIndex: st.Snapshot, Voter: st.Voter,
		Keys: st.Keys, Bytes: st.Bytes, Checksum: st.Checksum, State: replicaState(st, true)}
}

// replicaState names how a replica stands. votes: it is to have a vote, as all have but in the meta group of a large cluster.
func replicaState(st raftfsm.Status, votes bool) string {
	switch {
	case st.Lost:
		return replicaDamaged
	case st.Joining || votes && !st.Voter:
		return replicaCatchingUp
	}
	return replicaOK
}

// describeShards returns what the map says of each shard.
func describeShards(m *shard.Map) map[shard.ID]*ostrakapb.ShardStatus {
	all := make(map[shard.ID]*ostrakapb.ShardStatus, len(m.Shards()))
	for _, described := range m.Shards() {
		st := &ostrakapb.ShardStatus{Id: uint32(described.ID), Slots: uint32(described.Slots()), Preferred: string(described.Preferred)}
		for _, r := range described.Ranges {
			st.Ranges = append(st.Ranges, r.String())
		}
		all[described.ID] = st
	}
	return all
}

// summarize draws a shard's figures from its replicas: the leader is the one of the newest term, keys and bytes
// are the leader's or, while none leads, those of the replica that has applied most.
func summarize(st *ostrakapb.ShardStatus) {
	slices.SortFunc(st.Replicas, func(a, b *ostrakapb.ReplicaStatus) int { return cmp.Compare(a.GetReplica(), b.GetReplica()) })
	var leader, newest *ostrakapb.ReplicaStatus
	for _, r := range st.Replicas {
		st.Term = max(st.Term, r.GetTerm())
		if r.GetRole() == roleLeader && (leader == nil || r.GetTerm() > leader.GetTerm()) {
			leader = r
		}
		if newest == nil || r.GetAppliedIndex() > newest.GetAppliedIndex() {
			newest = r
		}
	}
	if leader != nil {
		st.Leader, newest = leader.GetNode(), leader
	}
	st.Keys, st.Bytes = newest.GetKeys(), newest.GetBytes()
}

// askAll asks every node of the map for its part of the status; nil stands for one that did not answer.
func (s *adminService) askAll(ctx context.Context, m *shard.Map) []*ostrakapb.StatusResponse {
	return askEach(ctx, s.node.NodeID(), m, func() *ostrakapb.StatusResponse { return s.local(m) }, s.ask)
}

// askEach asks every node of the map side by side for its part, and this one by local; the zero value stands for one that did not
// answer. The goroutines end with the call.
func askEach[T any](ctx context.Context, self shard.NodeID, m *shard.Map, local func() T, ask func(context.Context, shard.NodeID) (T, error)) []T {
	ctx, cancel := context.WithTimeout(ctx, peerStatusTimeout)
	defer cancel()
	parts := make([]T, len(m.Nodes()))
	var wg sync.WaitGroup
	for i, described := range m.Nodes() {
		if described.ID == self {
			parts[i] = local()
			continue
		}
		wg.Go(func() {
			if part, err := ask(ctx, described.ID); err == nil {
				parts[i] = part
			}
		})
	}
	wg.Wait()
	return parts
}

var errStranger = errors.New("a stranger answered")

func (s *adminService) ask(ctx context.Context, node shard.NodeID) (*ostrakapb.StatusResponse, error) {
	conn, err := s.node.PeerConn(node)
	if err != nil {
		return nil, err
	}
	part, err := ostrakapb.NewAdminClient(conn).Status(ctx, &ostrakapb.StatusRequest{Local: true})
	if err != nil {
		return nil, err
	}
	if len(part.GetNodes()) != 1 || part.GetNodes()[0].GetId() != string(node) {
		return nil, fmt.Errorf("%w where %s should be", errStranger, node)
	}
	if id := part.GetClusterId(); id != "" && id != s.node.ClusterID() {
		return nil, fmt.Errorf("%w: %s is of cluster %s", errStranger, node, id)
	}
	return part, nil
}

// nodeOf is a node's own account, or what the map says of one that gave none.
func nodeOf(part *ostrakapb.StatusResponse, described shard.Node) *ostrakapb.NodeStatus {
	if part == nil {
		return &ostrakapb.NodeStatus{Id: string(described.ID), Address: described.Address, Zone: described.Zone,
			State: stateUnreachable, Incarnation: described.Incarnation}
	}
	return part.GetNodes()[0]
}
