package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ostraka-db/ostraka/proto"
	"github.com/ostraka-db/ostraka/raftfsm"
	"github.com/ostraka-db/ostraka/raftfsm/storage"
	"github.com/ostraka-db/ostraka/shard"
)

// diskStallMax is how long a write to the log may take before the process ends itself. An append's deadline must be
// longer (raft.md): a leader that gave up earlier would send again what is only slow.
const (
	diskStallMax  = 10 * time.Second
	appendTimeout = diskStallMax + 2*time.Second
)

// handshakeFormat is the version of the messages between nodes.
const handshakeFormat = 1

// join makes this node the member that the plan says, from wherever its identity left off: it writes the
// first configurations if that was not finished, and starts all replicas. adoption is held.
func (n *Node) join(plan *ostrakapb.BootstrapPlan) error {
	m, err := decodeMap(plan.GetMap())
	if err != nil {
		return err
	}
	disks, err := storage.Open(storage.Config{Dir: n.cfg.DataDir, FS: n.cfg.FS, Fatal: n.cfg.Fatal, Logger: n.cfg.Logger, StallMax: diskStallMax})
	if err != nil {
		return err
	}
	host, err := raftfsm.NewHost(raftfsm.Config{Node: n.NodeID(), Storage: disks, Transport: n.transport,
		Clock: n.cfg.Clock, Logger: n.cfg.Logger, Fatal: n.cfg.Fatal,
		Timing: n.cfg.Timing, Proposer: n.cfg.Proposer, Snapshots: n.cfg.Snapshots})
	if err != nil {
		return errors.Join(err, disks.Close())
	}
	part := &membership{clusterID: plan.GetClusterId(), planned: m, storage: disks, host: host}
	n.book.learnMap(m)
	if err := n.startReplicas(part, plan); err != nil {
		return errors.Join(err, host.Close(), disks.Close())
	}
	host.SetPreferred(n.Map)
	n.membership.Store(part)
	n.background.Go(func() { n.followMeta(part) })
	return nil
}

// startReplicas writes first configurations where the node is still adopting, and then starts every replica.
// A member never writes them again: a replica without its data must not vote.
func (n *Node) startReplicas(part *membership, plan *ostrakapb.BootstrapPlan) error {
	meta := membersOf(plan.GetMeta())
	own, ok := memberOn(meta, n.NodeID())
	if !ok {
		return fmt.Errorf("the plan of cluster %s does not name node %s", plan.GetClusterId(), n.cfg.ID)
	}
	if n.phase() == phaseAdopting {
		if err := n.bootstrapReplicas(part, meta, own); err != nil {
			return err
		}
	}
	seed := &raftfsm.ClusterState{ClusterID: plan.GetClusterId(), FormatLevel: plan.GetFormatLevel(), Map: part.planned,
		Meta: meta, NextReplica: shard.ReplicaID(plan.GetNextReplicaId())}
	var err error
	if part.meta, err = part.host.StartMeta(own.Replica, seed); err != nil {
		return err
	}
	for _, s := range part.planned.Shards() {
		r, ok := part.planned.ReplicaOn(s.ID, n.NodeID())
		if !ok {
			continue
		}
		if _, err := part.host.StartGroup(raftfsm.GroupSpec{Shard: s.ID, Replica: r.ID, Ranges: s.Ranges}); err != nil {
			return err
		}
	}
	return nil
}

// bootstrapReplicas writes every first configuration and then, durably, that this is done. No raft instance
// runs before that, so no vote can be forgotten by repeating it.
func (n *Node) bootstrapReplicas(part *membership, meta []raftfsm.Member, own raftfsm.Member) error {
	if err := part.host.Bootstrap(shard.MetaGroup, own.Replica, meta); err != nil {
		return err
	}
	for _, s := range part.planned.Shards() {
		r, ok := part.planned.ReplicaOn(s.ID, n.NodeID())
		if !ok {
			continue
		}
		members := make([]raftfsm.Member, len(s.Replicas))
		for i, other := range s.Replicas {
			members[i] = raftfsm.Member{Node: other.Node, Replica: other.ID, Voter: other.Voter}
		}
		if err := part.host.Bootstrap(s.ID, r.ID, members); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.identity.Phase = phaseMember
	return n.identity.save(n.cfg.FS, n.cfg.DataDir)
}

func (n *Node) phase() phase {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.identity.Phase
}

func membersOf(replicas []*ostrakapb.MapReplica) []raftfsm.Member {
	members := make([]raftfsm.Member, len(replicas))
	for i, r := range replicas {
		members[i] = raftfsm.Member{Node: shard.NodeID(r.GetNode()), Replica: shard.ReplicaID(r.GetId()), Voter: r.GetVoter()}
	}
	return members
}

func memberOn(members []raftfsm.Member, node shard.NodeID) (raftfsm.Member, bool) {
	for _, m := range members {
		if m.Node == node {
			return m, true
		}
	}
	return raftfsm.Member{}, false
}

// followMeta serves once the cluster's state is known here, and keeps the address book with it.
func (n *Node) followMeta(part *membership) {
	for {
		changed := part.meta.Changed() // before State, so that no change is missed
		if state := part.meta.State(); state != nil {
			n.book.learnMap(state.Map)
			if !n.draining.Load() {
				n.health.setServing(true)
			}
		}
		select {
		case <-changed:
		case <-n.life.Done():
			return
		}
	}
}

// discover goes on as long as the node lives: it says hello to the seeds and to every node it can't hear, and
// tells the meta group where this node listens, until both need it no more.
func (n *Node) discover() {
	const beat = time.Second
	for {
		if m := n.membership.Load(); m != nil {
			n.announce(m)
			if !n.hearsAll() {
				n.greetAll()
			}
		}
		wait := time.NewTimer(beat + time.Duration(rand.Int64N(int64(beat/4))))
		select {
		case <-wait.C:
		case <-n.life.Done():
			wait.Stop()
			return
		}
	}
}

func (n *Node) hearsAll() bool {
	peers := n.transport.Stats()
	for _, other := range n.Map().Nodes() {
		if other.ID != n.NodeID() && !peers[other.ID].Connected {
			return false
		}
	}
	return true
}

// greetAll says hello to every seed and every address in the book.
func (n *Node) greetAll() {
	known := n.book.snapshot()
	targets := make(map[string]bool)
	for _, p := range n.cfg.Peers {
		targets[p] = true
	}
	for id, e := range known {
		if id != n.NodeID() {
			targets[e.Address] = true
		}
	}
	delete(targets, n.advertisedAddress())
	for address := range targets {
		if n.life.Err() != nil {
			return
		}
		ctx, cancel := context.WithTimeout(n.life, 2*time.Second)
		if _, err := n.hello(ctx, address, ""); err != nil {
			n.cfg.Logger.Debug("no answer to hello", "address", address, "error", err)
		}
		cancel()
	}
}

// hello exchanges identities with whoever listens at an address, and learns from the answer.
func (n *Node) hello(ctx context.Context, address string, target shard.NodeID) (*ostrakapb.HelloResponse, error) {
	var answer *ostrakapb.HelloResponse
	err := n.withConn(address, func(conn *grpc.ClientConn) (err error) {
		answer, err = ostrakapb.NewRaftClient(conn).Hello(ctx, n.handshake(target))
		return err
	})
	if err != nil {
		return nil, err
	}
	if self := answer.GetSelf(); self.GetClusterId() == n.ClusterID() {
		n.book.learn(shard.NodeID(self.GetNodeId()), self.GetAddress(), self.GetIncarnation())
		for _, other := range answer.GetNodes() {
			n.book.learn(shard.NodeID(other.GetId()), other.GetAddress(), other.GetIncarnation())
		}
	}
	return answer, nil
}

// withConn lends a connection of its own to an address whose node may not be known.
func (n *Node) withConn(address string, use func(*grpc.ClientConn) error) error {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithContextDialer(n.cfg.Dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return use(conn)
}

// announce makes sure that the meta group knows where this node listens.
func (n *Node) announce(part *membership) {
	state := part.meta.State()
	if state == nil {
		return
	}
	address := n.advertisedAddress()
	if known, ok := state.Map.Node(n.NodeID()); ok && known.Address == address {
		return
	}
	ctx, cancel := context.WithTimeout(n.life, 2*time.Second)
	defer cancel()
	var err error
	switch leader := part.meta.Leader(); leader {
	case "":
		return
	case n.NodeID():
		_, err = part.meta.SetNode(ctx, n.NodeID(), address, n.Incarnation())
	default:
		conn, connErr := n.transport.Conn(leader)
		if connErr != nil {
			err = connErr
			break
		}
		_, err = ostrakapb.NewRaftClient(conn).Announce(ctx, n.handshake(leader))
	}
	if err != nil {
		n.cfg.Logger.Info("address not announced yet", "error", err)
	}
}
